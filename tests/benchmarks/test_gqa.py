"""GQA through `vwlmm score`, on a file in the official format."""

import json

import pytest
from scoring import answer_line, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.cli import main


def record(answer, structural, balanced=True):
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "cat (123)"}],
        "entailed": [],
        "equivalent": [],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": balanced,
        "groups": {"global": None, "local": "13-sky"},
        "answer": answer,
        "types": {"detailed": "existAttr", "semantic": "global", "structural": structural},
        "fullAnswer": "No, it is clear.",
    }


@pytest.fixture
def questions(tmp_path):
    records = {
        "201": record("no", "verify"),
        "202": record("yes", "logical"),
        "203": record("dog", "query"),
        "204": record("tv", "query"),
    }
    return write(tmp_path / "testdev_balanced_questions.json", records)


TEXTS = {"204": "TV", "203": "a dog", "202": "Yes...", "201": "No."}


def test_full_stops_at_the_end_and_case_do_not_count_and_nothing_else_is_forgiven(tmp_path, questions):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(name, text) for name, text in TEXTS.items()])
    result = run_score(tmp_path, "gqa", questions, answers)
    assert result["metrics"] == {"accuracy": 0.75, "accuracy/open": 0.5, "accuracy/binary": 1.0}
    assert {name: detail["correct"] for name, detail in details_by_id(result).items()} == {
        "201": True,
        "202": True,
        "203": False,
        "204": True,
    }


@pytest.mark.parametrize("text", ["no ", " no", "No!", "no, it is not", "n.o"])
def test_a_blank_or_another_mark_is_wrong(tmp_path, questions, text):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(n, text if n == "201" else t) for n, t in TEXTS.items()])
    assert details_by_id(run_score(tmp_path, "gqa", questions, answers))["201"]["correct"] is False


def test_official_predictions_are_read_and_written(tmp_path, questions):
    predictions = [{"questionId": name, "prediction": text} for name, text in TEXTS.items()]
    path = write(tmp_path / "p.json", predictions)
    result = run_score(tmp_path, "gqa", questions, path, "--submission", tmp_path / "up")
    assert result["metrics"]["accuracy"] == 0.75
    assert json.loads((tmp_path / "up" / "testdev_balanced_predictions.json").read_text()) == [
        {"questionId": "201", "prediction": "no"},
        {"questionId": "202", "prediction": "yes"},
        {"questionId": "203", "prediction": "a dog"},
        {"questionId": "204", "prediction": "tv"},
    ]


def test_questions_outside_the_balanced_set_are_not_scored_and_need_no_answer(tmp_path, questions):
    records = json.loads(questions.read_text()) | {"205": record("yes", "verify", balanced=False)}
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(name, text) for name, text in TEXTS.items()])
    result = run_score(tmp_path, "gqa", write(questions, records), answers)
    assert result["metrics"]["accuracy"] == 0.75
    assert "4 of 5 questions are balanced" in result["notes"]


def test_validity_and_plausibility_come_from_a_choices_file_where_there_is_one(tmp_path, questions):
    choices = {name: {"valid": ["no", "yes", "a dog"], "plausible": ["no"]} for name in TEXTS}
    path = write(tmp_path / "val_choices.json", choices)
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(name, text) for name, text in TEXTS.items()])
    metrics = run_score(tmp_path, "gqa", questions, answers, "--option", f"choices={path}")["metrics"]
    assert (metrics["validity"], metrics["plausibility"]) == (0.75, 0.25)


def test_the_prompt_is_llavas(questions):
    question = get_benchmark("gqa").read(Files((questions,)))[0]
    assert question.prompt == "Is it overcast?\nAnswer the question using a single word or phrase."
    assert question.images == ("n161313.jpg",)


def test_the_official_layout_is_found_and_what_is_missing_is_named(tmp_path, questions):
    with pytest.raises(FileNotFoundError, match="images"):
        get_benchmark("gqa").files(tmp_path)
    (tmp_path / "images").mkdir()
    assert get_benchmark("gqa").files(tmp_path) == Files((questions,), (), tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"testdev_balanced_questions\.json"):
        get_benchmark("gqa").files(tmp_path / "elsewhere")


def test_one_question_twice_in_the_file_is_refused(capsys, tmp_path, questions):
    one = json.dumps(record("no", "verify"))
    questions.write_text(f'{{"201": {one}, "201": {one}}}')
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("201", "no")])
    assert f"{questions}, field 201: expected each name once" in refused(capsys, tmp_path, "gqa", questions, answers)


def test_a_file_of_another_benchmark_is_refused(capsys, tmp_path, questions):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(name, text) for name, text in TEXTS.items()])
    for benchmark in ("vqav2", "vizwiz", "textvqa", "pope", "scienceqa", "mmbench", "mmvet"):
        message = refused(capsys, tmp_path, benchmark, questions, answers)
        assert str(questions) in message, benchmark
        assert "field" in message or "column" in message, benchmark


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "examples:\n  vwlmm score vqav2" in capsys.readouterr().out
