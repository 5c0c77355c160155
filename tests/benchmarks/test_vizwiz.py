"""VizWiz through `vwlmm score`, on files in the official format."""

import json

import pytest
from scoring import answer_line, cases, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.cli import main

VQA = cases("vqa")["cases"]
ADDED = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)


def image(number, split="val"):
    return f"VizWiz_{split}_{number:08d}.jpg"


def record(number, answers, answer_type="other"):
    return {
        "image": image(number),
        "question": f"What is this {number}?",
        "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
        "answer_type": answer_type,
        "answerable": 1,
    }


@pytest.fixture
def val(tmp_path):
    """Every case, in an order that is not that of the pictures' numbers."""
    return write(tmp_path / "val.json", [record(case["id"], case["answers"]) for case in VQA[::-1]])


def check(result):
    details = details_by_id(result)
    for case in VQA:
        expected = pytest.approx(case["vizwiz_api_accuracy"], abs=1e-6)
        assert details[image(case["id"])]["accuracy"] == expected
    mean = sum(case["vizwiz_api_accuracy"] for case in VQA) / len(VQA)
    assert result["metrics"]["accuracy"] == pytest.approx(mean, abs=1e-6)


def test_every_case_with_llavas_answers(tmp_path, val):
    lines = [answer_line(c["id"], c["prediction"], f"What is this {c['id']}?\n{ADDED}") for c in VQA]
    check(run_score(tmp_path, "vizwiz", val, write_lines(tmp_path / "a.jsonl", lines)))


def test_every_case_as_a_submission_list(tmp_path, val):
    listed = [{"image": image(case["id"]), "answer": case["prediction"]} for case in VQA]
    check(run_score(tmp_path, "vizwiz", val, write(tmp_path / "a.json", listed)))


def test_every_case_with_our_own_ids(tmp_path, val):
    lines = [answer_line(image(case["id"]), case["prediction"]) for case in VQA]
    check(run_score(tmp_path, "vizwiz", val, write_lines(tmp_path / "a.jsonl", lines)))


def test_answer_types_are_reported(tmp_path):
    path = write(tmp_path / "val.json", [record(0, ["can"] * 10), record(1, ["5"] * 10, "number")])
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(0, "can"), answer_line(1, "6")])
    metrics = run_score(tmp_path, "vizwiz", path, answers)["metrics"]
    assert (metrics["accuracy"], metrics["accuracy/other"], metrics["accuracy/number"]) == (0.5, 1.0, 0.0)


def test_test_gives_a_submission_and_no_figure(capsys, tmp_path):
    test = write(tmp_path / "test.json", [{"image": image(n, "test"), "question": "What?"} for n in (3, 1)])
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(1, "A can."), answer_line(3, "Unanswerable")])
    assert "nothing to score" in refused(capsys, tmp_path, "vizwiz", test, answers)
    given = ["--annotations", test, "--answers", answers, "--submission", tmp_path / "up"]
    assert main(["score", "vizwiz", *map(str, given)]) == 0
    assert json.loads((tmp_path / "up" / "vizwiz_submission.json").read_text()) == [
        {"image": image(3, "test"), "answer": "unanswerable"},
        {"image": image(1, "test"), "answer": "can"},
    ]


def test_the_prompt_is_llavas(val):
    question = get_benchmark("vizwiz").read(Files((val,)))[-1]
    assert question.prompt == f"What is this 0?\n{ADDED}"


def test_llavas_ids_that_are_not_the_pictures_numbers_are_refused(capsys, tmp_path, val):
    lines = [answer_line(c["id"], c["prediction"], f"What is this {c['id'] + 1}?\n{ADDED}") for c in VQA]
    answers = write_lines(tmp_path / "a.jsonl", lines)
    assert f"{answers}, line 1, field prompt" in refused(capsys, tmp_path, "vizwiz", val, answers)


def test_two_names_for_one_picture_are_two_answers(capsys, tmp_path, val):
    lines = [answer_line(c["id"], c["prediction"]) for c in VQA] + [answer_line(image(0), "x")]
    answers = write_lines(tmp_path / "a.jsonl", lines)
    assert f"line {len(VQA) + 1}, field question_id" in refused(capsys, tmp_path, "vizwiz", val, answers)
