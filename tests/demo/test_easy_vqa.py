"""easy-VQA as files, its questions sorted by kind, and the score without looking."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vwlmm.demo.easy_vqa import (
    accuracy,
    blind_baseline,
    caption_rows,
    question_and_answer,
    question_kind,
    question_rows,
    sample_questions,
    write_easy_vqa,
)
from vwlmm.embedded import package_folder


@pytest.fixture(scope="module")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = package_folder("easy_vqa")
    assert package is not None, "easy-vqa belongs to the dev extra: pip install --no-deps easy-vqa==1.0"
    out = tmp_path_factory.mktemp("easy-vqa")
    write_easy_vqa(package, out)
    return out


def read(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / name).read_text())


def row(question: str, answer: str) -> dict:
    return question_rows([(question, answer, 0)], "test")[0]


def scored(*pairs: tuple[str, str, str]) -> dict:
    return accuracy({"question": q, "expected": e, "answer": a} for q, e, a in pairs)


def test_all_questions_and_the_fully_determined_captions_are_written(easy_vqa):
    counts = {name: len(read(easy_vqa, f"{name}.json")) for name in ("questions_train", "questions_test")}
    assert counts == {"questions_train": 38_575, "questions_test": 9_673}
    assert len(read(easy_vqa, "captions_train.json")) == 3_542
    assert len(read(easy_vqa, "captions_test.json")) == 880


@pytest.mark.parametrize("name", ["questions_train", "questions_test", "captions_train", "captions_test"])
def test_every_row_is_a_llava_conversation_about_an_image_that_is_there(easy_vqa, name):
    rows = read(easy_vqa, f"{name}.json")
    assert len({r["id"] for r in rows}) == len(rows)
    for r in rows:
        human, gpt = r["conversations"]
        assert human["from"] == "human"
        assert human["value"].startswith("<image>\n")
        assert gpt["from"] == "gpt"
        assert gpt["value"]
    assert all((easy_vqa / "images" / image).is_file() for image in {r["image"] for r in rows})


def test_images_are_copied_bit_for_bit(easy_vqa):
    package = package_folder("easy_vqa")
    assert len(list((easy_vqa / "images/train").iterdir())) == 4_000
    assert len(list((easy_vqa / "images/test").iterdir())) == 1_000
    assert (easy_vqa / "images/test/7.png").read_bytes() == (package / "data/test/images/7.png").read_bytes()


def test_the_colour_in_a_caption_is_the_colour_in_the_picture(easy_vqa):
    shade = {"red": 0, "green": 1, "blue": 2}  # the channel that stands out
    checked = 0
    for r in read(easy_vqa, "captions_test.json"):
        colour = r["caption"].split()[0]
        if colour in shade:
            pixels = np.asarray(Image.open(easy_vqa / "images" / r["image"]).convert("RGB")).reshape(-1, 3)
            most_coloured = pixels[np.ptp(pixels, axis=1).argmax()]
            assert most_coloured.argmax() == shade[colour], r
            checked += 1
    assert checked > 200


def test_a_caption_needs_both_colour_and_shape_and_infers_nothing_by_elimination():
    triples = [
        ("what color is the circle?", "red", 0),
        ("what color is the shape?", "red", 1),
        ("is there a circle?", "no", 1),
        ("is there a triangle?", "no", 1),  # so it is a rectangle, but nobody says so
        ("what is the teal shape?", "rectangle", 2),
    ]
    assert [r["caption"] for r in caption_rows(triples, "train")] == ["red circle", "teal rectangle"]


def test_a_yes_and_a_no_to_a_negated_question_state_what_is_there():
    triples = [("is there a blue shape?", "yes", 0), ("does the image not contain a triangle?", "no", 0)]
    assert [r["caption"] for r in caption_rows(triples, "train")] == ["blue triangle"]


def test_contradicting_answers_are_an_error():
    with pytest.raises(ValueError, match="train image 4 contradict"):
        caption_rows([("what shape is present?", "circle", 4), ("is there a triangle?", "yes", 4)], "train")


def test_questions_are_of_three_kinds():
    assert question_kind("is there a red shape?", "no") == "yes/no"
    assert question_kind("what color is the shape?", "teal") == "colour"
    assert question_kind("what is the blue shape?", "circle") == "shape"
    assert question_kind("what colour is the car?", "pink") == "colour"
    assert question_kind("how many cars?", "3") == "other"


def test_every_easy_vqa_question_has_a_kind(easy_vqa):
    kinds = {question_kind(*question_and_answer(r)) for r in read(easy_vqa, "questions_test.json")}
    assert kinds == {"yes/no", "colour", "shape"}


def test_answers_match_up_to_case_blanks_and_a_full_stop():
    score = scored(("is it?", "yes", " Yes.\n"), ("is it?", "no", "nope"), ("what color?", "red", "a red"))
    assert score["overall"] == {"accuracy": 1 / 3, "right": 1, "count": 3}
    assert score["yes/no"]["accuracy"] == 0.5
    assert score["colour"]["right"] == 0


def test_colour_and_shape_are_also_scored_together():
    score = scored(("what color?", "red", "red"), ("what shape?", "circle", "box"), ("is it?", "no", "no"))
    assert score["colour and shape"] == {"accuracy": 0.5, "right": 1, "count": 2}
    assert list(score) == ["overall", "yes/no", "colour and shape", "colour", "shape"]


def test_an_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no answers"):
        accuracy([])


def test_without_looking_two_thirds_of_easy_vqa_can_be_answered(easy_vqa):
    score = blind_baseline(read(easy_vqa, "questions_train.json"), read(easy_vqa, "questions_test.json"))
    assert score["overall"]["accuracy"] == pytest.approx(0.670, abs=5e-4)
    assert score["yes/no"]["accuracy"] == pytest.approx(0.825, abs=5e-4)
    assert score["colour and shape"]["accuracy"] == pytest.approx(0.233, abs=5e-4)
    assert score["yes/no"]["count"] == 7_136


def test_the_blind_answer_is_the_commonest_to_that_question_and_else_the_commonest_of_all():
    train = [row("a?", "no"), row("a?", "no"), row("a?", "yes"), row("b?", "yes"), row("b?", "yes"), row("b?", "yes")]
    assert blind_baseline(train, [row("a?", "no")])["overall"]["right"] == 1
    assert blind_baseline(train, [row("b?", "yes")])["overall"]["right"] == 1
    assert blind_baseline(train, [row("never seen?", "yes")])["overall"]["right"] == 1


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_the_order():
    rows = [{"id": i} for i in range(100)]
    sample = sample_questions(rows, 10, seed=1)
    assert sample == sample_questions(rows, 10, seed=1)
    assert sample != sample_questions(rows, 10, seed=2)
    assert [r["id"] for r in sample] == sorted({r["id"] for r in sample})
    assert sample_questions(rows, 100, seed=5) == rows


def test_a_sample_larger_than_the_file_is_an_error():
    with pytest.raises(ValueError, match="5 of 3 rows"):
        sample_questions([{}] * 3, 5, seed=0)


def test_a_row_of_two_exchanges_cannot_be_scored():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
    with pytest.raises(ValueError, match="one human and one gpt turn"):
        question_and_answer({"id": "x", "conversations": turns})


def test_a_folder_that_is_not_the_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"questions\.json"):
        write_easy_vqa(tmp_path, tmp_path)
