"""What every test shares: tiny random models from configurations, a tokenizer trained on the spot, pictures. No network."""

import json
import os
import shutil

import pytest

# Before torch is imported: the machines that run this are shared, and two threads that wait for each other are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import torch
from PIL import Image
from small_pairs import save_pairs, save_towers
from small_runs import save_model, save_parts, save_rows
from tiny import make_processor, tiny_config

from vwlmm import VisualWordLlavaForConditionalGeneration


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture
def model(config):
    return VisualWordLlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def processor():
    return make_processor()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with red.png, green.png, blue.png, 40×30 pixels each."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A folder with `tower` (CLIP vision tower of 2×2 patches) and `llm` (Llama without the word `<image>`), saved."""
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def trained(parts, tmp_path_factory) -> Path:
    """A folder with a whole model of those parts, VM head and processor included: what an earlier stage leaves behind."""
    return save_model(parts, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A folder with pictures, captions.json (8 pictures) and instruct.json (5 with a picture, 1 with two, 2 without)."""
    return save_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Path:
    """A folder with `vision` (DINOv2 of 2×2 patches) and `text` (BERT), both 16 wide, saved."""
    return save_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A folder with captions.jsonl and its eight pictures."""
    return save_pairs(tmp_path)


@pytest.fixture
def with_dropout(trained, tmp_path):
    """The trained model with dropout in its LLM, so that a run draws random numbers all the time, each rank its own."""
    folder = shutil.copytree(trained, tmp_path / "with dropout")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.2
    (folder / "config.json").write_text(json.dumps(config))
    return folder
