"""Bad input: one line that names file, line and field, exit code 1, and no figure."""

import json

import pytest
from scoring import answer_line, refused, run_score, write, write_lines
from test_vqav2 import annotation, annotation_file


@pytest.fixture
def vqa(tmp_path):
    labels = [annotation(name, ["red"] * 4 + ["blue"] * 6) for name in (1000, 2000, 3000)]
    return annotation_file(tmp_path / "annotations.json", labels)


def lines(*pairs):
    return [answer_line(name, text) for name, text in pairs]


GOOD = (1000, "red"), (2000, "blue"), (3000, "green")


def test_an_unknown_id(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD, (4000, "x")))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 4, field question_id" in message
    assert "found 4000" in message


def test_the_same_answer_twice(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD, (2000, "blue")))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 4, field question_id" in message
    assert "line 2 has answered; found the same answer again" in message


def test_two_answers_for_one_question(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD, (1000, "blue")))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 4, field question_id" in message
    assert "line 1 has answered; found another answer" in message


def test_a_question_without_answer(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD[:2]))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, field question_id" in message
    assert "1 have none: 3000" in message


def test_a_line_that_was_cut_off(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    answers.write_text(answers.read_text()[:-30])
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 3, column" in message
    assert "cut off" in message


def test_a_first_line_that_was_cut_off(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    answers.write_text("\n".join([answers.read_text()[:30], *answers.read_text().split("\n")[1:]]))
    assert f"{answers}, line 1, column" in refused(capsys, tmp_path, "vqav2", vqa, answers)


def test_a_truncated_label_file(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    vqa.write_text(json.dumps(json.loads(vqa.read_text()), indent=1)[:-100])
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{vqa}, line " in message
    assert "cut off" in message


def test_a_field_that_is_missing_in_one_record(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    document = json.loads(vqa.read_text())
    del document["annotations"][2]["answers"]
    vqa.write_text(json.dumps(document, indent=1))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    rows = vqa.read_text().split("\n")
    begin = [number for number, row in enumerate(rows, start=1) if row == "  {"][2]
    assert f"{vqa}, line {begin}, field annotations[2].answers: expected a list of 10, found no such field" in message


def test_a_number_of_annotators_that_is_not_ten(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    document = json.loads(vqa.read_text())
    document["annotations"][0]["answers"].pop()
    message = refused(capsys, tmp_path, "vqav2", write(vqa, document), answers)
    assert "field annotations[0].answers: expected a list of 10, found 9" in message


@pytest.mark.parametrize("text", [None, 3, ["red"], True])
def test_an_answer_that_is_no_text(capsys, tmp_path, vqa, text):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD[:2], (3000, text)))
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 3, field text: expected text, found {json.dumps(text)}" in message


def test_an_answer_without_text_or_id(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", [*lines(*GOOD[:2]), {"question_id": 3000}])
    assert f"{answers}, line 3, field text" in refused(capsys, tmp_path, "vqav2", vqa, answers)
    answers = write_lines(tmp_path / "a.jsonl", [*lines(*GOOD[:2]), {"text": "red"}])
    assert f"{answers}, line 3, field question_id" in refused(capsys, tmp_path, "vqav2", vqa, answers)


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "{}"])
def test_an_answers_file_with_nothing_in_it(capsys, tmp_path, vqa, content):
    answers = tmp_path / "a.jsonl"
    answers.write_text(content)
    assert str(answers) in refused(capsys, tmp_path, "vqav2", vqa, answers)


def test_files_that_do_not_exist_or_are_no_text(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    assert "no such file" in refused(capsys, tmp_path, "vqav2", vqa, tmp_path / "none.jsonl")
    assert "no such file" in refused(capsys, tmp_path, "vqav2", tmp_path / "none.json", answers)
    picture = tmp_path / "picture.json"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    assert "expected UTF-8 text" in refused(capsys, tmp_path, "vqav2", picture, answers)


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    plain = run_score(tmp_path, "vqav2", vqa, answers)
    answers.write_bytes(b"\xef\xbb\xbf" + answers.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert run_score(tmp_path, "vqav2", vqa, answers)["metrics"] == plain["metrics"]


def test_a_line_separator_inside_an_answer_is_part_of_the_answer(tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines((1000, "red\u2028x"), *GOOD[1:]))
    assert run_score(tmp_path, "vqav2", vqa, answers)["details"][0]["text"] == "red\u2028x"


def test_one_record_without_its_label_is_no_test_split(capsys, tmp_path):
    first = {"image": "a_1.jpg", "question": "What?", "answers": [{"answer": "x"}] * 10, "answer_type": "other"}
    labels = write(tmp_path / "val.json", [first, {"image": "a_2.jpg", "question": "What?"}])
    answers = write_lines(tmp_path / "a.jsonl", lines((1, "x"), (2, "x")))
    given = tmp_path, "vizwiz", labels, answers, "--submission", tmp_path / "up"
    assert f"{labels}, [1], field answers: expected it as in the other records" in refused(capsys, *given)


@pytest.mark.parametrize("field", ["prompt", "category", "image"])
def test_a_field_that_answers_are_joined_by_is_text(capsys, tmp_path, vqa, field):
    bad = {**answer_line(3000, "x"), field: 7}
    answers = write_lines(tmp_path / "a.jsonl", [*lines(*GOOD[:2]), bad])
    message = refused(capsys, tmp_path, "vqav2", vqa, answers)
    assert f"{answers}, line 3, field {field}: expected text, found 7" in message


def test_lines_for_a_document_and_a_document_for_lines_are_told_apart(capsys, tmp_path, vqa):
    answers = write_lines(tmp_path / "a.jsonl", lines(*GOOD))
    assert "Is it a JSONL file" in refused(capsys, tmp_path, "vqav2", answers, answers)
    vqa.write_text(json.dumps(json.loads(vqa.read_text()), indent=1))
    assert "Is it one JSON document" in refused(capsys, tmp_path, "pope", vqa, answers)
