"""The fork server's modules are found by name, as pytest finds those of `tests`."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from vwlmm import load_model

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def question(trained, rows):
    """A batch of one picture and a question."""
    _, processor = load_model(trained)
    picture = Image.open(rows / "images" / "0.png")
    return processor(images=picture, text="<image>\nWhat colour is this?", return_tensors="pt")
