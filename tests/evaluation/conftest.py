"""A small benchmark and a small model that answers it."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from toy import Toy, write_toy

from vwlmm.demo.easy_vqa import COLOURS, SHAPES, caption_rows, question_rows
from vwlmm.evaluation.runner import LoadedModel


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """A folder with toy.json (11 questions) and their pictures."""
    return write_toy(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def loaded(trained) -> LoadedModel:
    """The tiny model of the session, in fp32."""
    return LoadedModel.load(trained, "float32")


@pytest.fixture(scope="session")
def easy_vqa(tmp_path_factory):
    """What `prepare("easy-vqa")` leaves, with one small picture of every colour and shape."""
    data = tmp_path_factory.mktemp("embedded")
    (data / "easy-vqa" / "images" / "test").mkdir(parents=True)
    triples = []
    for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        Image.new("RGB", (16, 16), colour).save(data / "easy-vqa" / "images" / "test" / f"{number}.png")
        triples += [
            (f"what is the {colour} shape?", shape, number),
            ("what color is the shape?", colour, number),
            (f"is there a {colour} shape?", "yes", number),
        ]
    for name, rows in (("questions", question_rows(triples, "test")), ("captions", caption_rows(triples, "test"))):
        (data / "easy-vqa" / f"{name}_test.json").write_text(json.dumps(rows))
    return data
