"""The page of the VLAP comparison: means and spreads, hits counted, the hand-written part left alone."""

import json
from pathlib import Path

import pytest

from vwlmm.config import read_recipe
from vwlmm.demo.vlap import ARMS, BEGIN, END, LISTS, METRICS, RECIPE, arm_recipe, exchanged, measured, write_measured


def run_of(value):
    samples = [{"caption": f"c{n}", "written": "a | b\nc"} for n in range(8)]
    return dict.fromkeys(METRICS, value) | {
        "num_pairs": 300,
        "num_captions": 100,
        "samples": samples,
        "train_runtime": 60,
    }


def sum_of(rank, alone=None):
    return {
        "note": "a − b + c",
        "expected": "x",
        "rank": rank,
        "rank_of_first_picture": alone,
        "words": ["w"] * 10,
        "caption": "",
    }


def test_the_tables_give_mean_lowest_and_highest_and_count_the_hits():
    scores = {arm: [run_of(0.1), run_of(0.3)] for arm in ARMS}
    rows = [sum_of(1), sum_of(10, alone=10), sum_of(11, alone=1), sum_of(None)]
    text = measured(scores, [dict.fromkeys(LISTS, rows)] * 2, read_recipe(RECIPE), [0, 1])
    assert "0.200 (0.100–0.300)" in text
    assert "| second list | 2 of 4 (1) | 2 of 4 (1) |" in text
    assert "Chance is 0.003 at R@1 and 0.017 at R@5" in text
    assert "| c0 | a \\| b c | a \\| b c |" in text
    assert "| a − b + c | x | > 1000 | > 1000 |" in text


def test_only_the_measured_part_of_a_page_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_measured(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text(f"{BEGIN} old")
    with pytest.raises(ValueError, match="put that back"):
        write_measured(page, "new")


def test_the_arms_differ_in_the_weight_of_the_assignment_alone():
    data = Path("data")
    one, other = (arm_recipe(arm, 0, Path("out"), data, []).to_dict() for arm in ARMS)
    assert one["objective"]["weights"]["assignment"] > 0
    one["objective"]["weights"]["assignment"] = 0
    assert one == other


def test_captions_exchanged_are_scored_against_every_other_picture_s():
    samples = [{"caption": caption, "written": "red heart"} for caption in ("red heart", "red apple", "dog")]
    assert exchanged(samples) == pytest.approx((0.5 + 0 + 1 + 0 + 1 + 0.5) / 6)


@pytest.mark.parametrize("name", LISTS)
def test_the_twenty_sums_are_well_formed(name):
    rows = [json.loads(line) for line in LISTS[name].read_text().splitlines()]
    assert len(rows) == 20
    assert all(len(row["plus"]) == 2 and len(row["minus"]) == 1 and len(row["expected"]) == 1 for row in rows)


@pytest.mark.embedded
def test_emoji_are_drawn_once_each_and_split_the_same_way_every_time(tmp_path):
    from PIL import Image

    from vwlmm.demo.emoji import emoji_names
    from vwlmm.embedded import prepare

    folder = prepare("emoji", tmp_path)
    train, test = (json.loads((folder / f"captions_{split}.json").read_text()) for split in ("train", "test"))
    assert len(test) == 300
    assert len(train) + len(test) > 1500
    assert not {row["image"] for row in train} & {row["image"] for row in test}
    assert {row["caption"] for row in train + test} <= set(emoji_names().values())
    assert [row["caption"] for row in test[:3]] == ["1st place medal", "3rd place medal", "A button (blood type)"]
    picture = Image.open(folder / "images" / train[0]["image"])
    assert picture.size == (112, 112)
    assert len(picture.getcolors(112 * 112)) > 10
