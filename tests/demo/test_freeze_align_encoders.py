"""The page of encoders and curation says what was counted."""

import json

import pytest

from vwlmm.demo.freeze_align_encoders import _chance, page, write_concepts


def test_concepts_are_categories_with_enough_stamps_and_no_emoji(tmp_path):
    categories = ["emoji"] * 20 + ["animals"] * 12 + ["food"] * 5 + ["space"] * 4
    rows = [{"image": f"images/{i}.png", "category": category} for i, category in enumerate(categories)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert write_concepts(tmp_path, tmp_path / "concepts.jsonl") == (["animals", "food"], 8 + 5)
    written = [json.loads(line) for line in (tmp_path / "concepts.jsonl").read_text().splitlines()]
    assert [row["category"] for row in written] == ["animals"] * 12 + ["food"] * 5
    assert written[0]["image"] == str(tmp_path / "images/20.png")


def test_chance_is_what_drawing_without_looking_gives():
    assert _chance(["a"] * 10, ["a"] * 20 + ["b"] * 60) == pytest.approx(0.25, abs=0.02)
    assert _chance([], ["a"]) == 0.0


def test_the_page_shows_each_cell_and_each_concept():
    table = {"pictures": 9, "vision": ["v"], "text": ["s", "t"], "linear": [[0.25, 0.5]], "rbf": [[0.125, 0.375]]}
    row = {"concept": "food", "commonality": 0.5, "chosen": 2, "nearest_of_all": 3, "nearest_of_chosen": 2}
    part = {"stamps": 4, "right": 3, "chance": 0.25}
    report = {"concepts": [row], "num_rows": 10, "num_chosen": 2, "num_clipped_high": 0}
    curated = {"report": report, "concepts": ["food"], "pool": 10, "prototypes": 8, "emoji": ["bread"]}
    text = page(table | {"best": ["v", "t"]}, curated | {"emoji_in_pool": 6, "all": part, "held out": part})
    assert "| v | 0.250 (0.125) | 0.500 (0.375) |" in text
    assert "| all | 3 of 4 (75 %) | 25 % |" in text
    assert "| food | 0.500 | 2 | 3 (30.0 %) | 2 (100.0 %) |" in text
