"""What every test shares: tiny random models from configurations, a tokenizer trained on the spot, pictures. No network."""

import os

import pytest

# Before torch is imported: the machines that run this are shared, and two threads that wait for each other are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import torch
from PIL import Image
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
