"""MM-Vet through `vwlmm score`: submission file and finished grades."""

import json

import pytest
from scoring import answer_line, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.cli import main


def record(number, capability):
    return {
        "imagename": f"v1_{number}.png",
        "imagesource": "",
        "question": "What is x in the equation?",
        "answer": "-1<AND>-5",
        "capability": capability,
    }


@pytest.fixture
def questions(tmp_path):
    records = {"v1_0": record(0, ["ocr", "math"]), "v1_1": record(1, ["rec"]), "v1_2": record(2, ["rec", "ocr"])}
    return write(tmp_path / "mm-vet.json", records)


def grade(*scores):
    return {"model": ["gpt-4-0613"] * len(scores), "content": [str(s) for s in scores], "score": list(scores)}


def test_grades_are_summed_up_by_capability(tmp_path, questions):
    grades = write(tmp_path / "grades.json", {"v1_2": grade(0.4), "v1_0": grade(1.0), "v1_1": grade(0.0)})
    result = run_score(tmp_path, "mmvet", questions, grades)
    expected = {"total": 1.4 / 3, "rec": 0.2, "ocr": 0.7, "math": 1.0}
    assert result["metrics"] == {name: pytest.approx(value) for name, value in expected.items()}
    assert result["notes"] == ["grades: 1 run(s) of gpt-4-0613"]


def test_several_runs_of_the_grader_are_averaged(tmp_path, questions):
    grades = write(tmp_path / "g.json", {f"v1_{number}": grade(0.0, 0.5, 1.0) for number in range(3)})
    assert run_score(tmp_path, "mmvet", questions, grades)["metrics"]["total"] == pytest.approx(0.5)


def test_the_submission_has_every_id(tmp_path, questions, capsys):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(number, f"answer {number}") for number in (2, 0, 1)])
    assert "nothing to score" in refused(capsys, tmp_path, "mmvet", questions, answers)
    given = ["--annotations", questions, "--answers", answers, "--submission", tmp_path / "up"]
    assert main(["score", "mmvet", *map(str, given)]) == 0
    written = json.loads((tmp_path / "up" / "mmvet_submission.json").read_text())
    assert written == {"v1_0": "answer 0", "v1_1": "answer 1", "v1_2": "answer 2"}
    again = write(tmp_path / "result.json", written)
    assert main(["score", "mmvet", *map(str, ["--annotations", questions, "--answers", again, *given[4:]])]) == 0


def test_questions_are_asked_bare(questions):
    question = get_benchmark("mmvet").read(Files((questions,)))[0]
    assert question.prompt == "What is x in the equation?"
    assert question.images == ("v1_0.png",)


def test_grades_that_are_missing_out_of_range_or_twice_are_refused(capsys, tmp_path, questions):
    grades = write(tmp_path / "g.json", {"v1_0": grade(1.0), "v1_1": grade(0.0)})
    assert "1 have none: v1_2" in refused(capsys, tmp_path, "mmvet", questions, grades)
    grades = write(tmp_path / "g.json", {"v1_0": grade(1.0), "v1_1": grade(7), "v1_2": grade(1)})
    message = refused(capsys, tmp_path, "mmvet", questions, grades)
    assert f"{grades}, line 1, field score: expected numbers from 0 to 1, found 7" in message
    one = json.dumps(grade(1.0))
    grades.write_text(f'{{"v1_0": {one}, "v1_1": {one}, "v1_2": {one}, "v1_0": {one}}}')
    assert f"{grades}, field v1_0: expected each name once" in refused(capsys, tmp_path, "mmvet", questions, grades)
