"""Concepts and shards for the tests of curation."""

import json

import pytest
import torch
from curation_cases import CONCEPTS, DIM, vectors

from vwlmm.curation import Prototypes


@pytest.fixture
def prototypes() -> Prototypes:
    return Prototypes(
        [f"concept {i}" for i in range(CONCEPTS)], torch.nn.functional.normalize(vectors(CONCEPTS, DIM, seed=1))
    )


@pytest.fixture
def shards(tmp_path):
    """Writes JSON-lines shards of these sizes; captions are numbered through."""

    def write(*sizes):
        folder, start, files = tmp_path / "shards", 0, []
        folder.mkdir(exist_ok=True)
        for number, size in enumerate(sizes):
            rows = [{"image": f"{i}.png", "caption": f"caption {i}"} for i in range(start, start + size)]
            files.append(folder / f"{number}.jsonl")
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
            start += size
        return files

    return write
