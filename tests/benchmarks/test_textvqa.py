"""TextVQA through `vwlmm score`, on files in the official format."""

import json

import pytest
from scoring import answer_line, cases, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.textvqa import question_of_prompt

VQA = cases("vqa")["cases"]
SHORT = "Answer the question using a single word or phrase."


def record(number, answers, image=None, question=None):
    return {
        "question": question or f"What brand is this {number}?",
        "image_id": image or f"{number // 8:04x}abc",
        "image_classes": ["Camera"],
        "image_width": 1024,
        "image_height": 768,
        "answers": answers,
        "question_tokens": [],
        "question_id": 34000 + number,
        "set_name": "val",
    }


def val_file(path, records):
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    return write(path, {**head, "data": records})


def prompt(question, tokens="ACME, CO"):
    return f"{question}\nReference OCR token: {tokens}\n{SHORT}"


@pytest.fixture
def val(tmp_path):
    """Every case; two pictures in three have several questions, and the labels are in another order."""
    return val_file(tmp_path / "TextVQA_0.5.1_val.json", [record(c["id"], c["answers"]) for c in VQA[::-1]])


def check(result):
    details = details_by_id(result)
    for case in VQA:
        detail = details[str(34000 + case["id"])]
        assert detail["accuracy"] == pytest.approx(case["evalai_accuracy"], abs=1e-6)
        assert detail["normalised"] == case["evalai_prediction_normalised"]
    mean = sum(case["evalai_accuracy"] for case in VQA) / len(VQA)
    assert result["metrics"] == {"accuracy": pytest.approx(mean, abs=1e-6)}


def test_every_case_with_llavas_answers_whose_id_is_the_picture(tmp_path, val):
    lines = []
    for case in VQA:
        asked = record(case["id"], [])
        lines.append(answer_line(asked["image_id"], case["prediction"], prompt(asked["question"])))
    assert len({line["question_id"] for line in lines}) < len(lines)
    check(run_score(tmp_path, "textvqa", val, write_lines(tmp_path / "a.jsonl", lines)))


def test_every_case_as_a_submission_list(tmp_path, val):
    listed = [{"question_id": 34000 + case["id"], "answer": case["prediction"]} for case in VQA]
    result = run_score(tmp_path, "textvqa", val, write(tmp_path / "a.json", listed), "--submission", tmp_path / "up")
    check(result)
    written = json.loads((tmp_path / "up" / "textvqa_submission.json").read_text())
    assert written == listed[::-1]


@pytest.mark.parametrize(
    "asked",
    [
        prompt("What Is it?"),
        f"Reference OCR token: ACME\nWhat Is it?\n{SHORT}",
        f"What Is it?\n{SHORT}",
        "OCR tokens: ACME. Question: What Is it? Short answer:",
        prompt("What Is it?", tokens=""),
    ],
)
def test_the_question_is_found_in_each_form_of_llavas_prompt(asked):
    assert question_of_prompt(asked) == "what is it?"


def test_the_prompt_has_the_ocr_line_and_can_do_without(tmp_path, val):
    images = {record(case["id"], [])["image_id"] for case in VQA}
    tokens = {"data": [{"image_id": image, "ocr_tokens": ["ACME", "CO"], "ocr_info": []} for image in sorted(images)]}
    ocr = write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", tokens)
    with_tokens = get_benchmark("textvqa").read(Files((val,), (ocr,)))[-1]
    without = get_benchmark("textvqa", ocr=False).read(Files((val,)))[-1]
    assert with_tokens.prompt == f"What brand is this 0?\nReference OCR token: ACME, CO\n{SHORT}"
    assert without.prompt == f"What brand is this 0?\n{SHORT}"
    assert with_tokens.images == ("0000abc.jpg",)


def test_without_the_tokens_that_its_prompt_needs_a_question_cannot_be_asked(val):
    question = get_benchmark("textvqa").read(Files((val,)))[0]
    assert question.messages == ()


def test_a_picture_without_tokens_is_refused(tmp_path, val):
    ocr = write(tmp_path / "ocr.json", {"data": [{"image_id": "other", "ocr_tokens": []}]})
    with pytest.raises(ValueError, match="expected OCR tokens of every picture"):
        get_benchmark("textvqa").read(Files((val,), (ocr,)))


def test_one_question_twice_about_one_picture_takes_its_answers_in_turn(capsys, tmp_path):
    same = [record(number, ["red"] * 10, image="abc", question="Which?") for number in (1, 2)]
    val = val_file(tmp_path / "val.json", same)
    lines = [answer_line("abc", "red", prompt("Which?")) for _ in same]
    assert run_score(tmp_path, "textvqa", val, write_lines(tmp_path / "a.jsonl", lines))["metrics"]["accuracy"] == 1.0
    (tmp_path / "score.json").unlink()
    answers = write_lines(tmp_path / "a.jsonl", [*lines, lines[0]])
    assert "line 3, field question_id" in refused(capsys, tmp_path, "textvqa", val, answers)


def test_a_question_that_the_picture_does_not_have_is_refused(capsys, tmp_path):
    val = val_file(tmp_path / "val.json", [record(1, ["red"] * 10, image="abc")])
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("abc", "red", prompt("Which?"))])
    message = refused(capsys, tmp_path, "textvqa", val, answers)
    assert f"{answers}, line 1, field prompt: picture abc has questions" in message


def test_nine_annotators_are_refused(capsys, tmp_path):
    val = val_file(tmp_path / "val.json", [record(1, ["red"] * 9)])
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(34001, "red")])
    message = refused(capsys, tmp_path, "textvqa", val, answers)
    assert f"{val}, line 1, field data[0].answers: expected a list of 10, found 9" in message
