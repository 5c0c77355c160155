"""A small benchmark and a small model that answers it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy import Toy, write_toy

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
