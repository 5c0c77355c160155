"""ScienceQA through `vwlmm score`, on files in the official format."""

import json

import pytest
from scoring import answer_line, cases, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.scienceqa import parse_letter

SQA = cases("scienceqa")["cases"]
LETTER = "Answer with the option's letter from the given choices directly."


def problem(num_choices, answer, image="image.png", hint="", split="test"):
    return {
        "question": "Which is larger?",
        "choices": [f"thing {number}" for number in range(num_choices)],
        "answer": answer,
        "hint": hint,
        "image": image,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "physics",
        "split": split,
    }


def files(folder, problems):
    splits = {"train": [], "val": [], "test": list(problems), "minitest": []}
    return [write(folder / "problems.json", problems), write(folder / "pid_splits.json", splits)]


@pytest.fixture
def all_cases(tmp_path):
    """Every case, and one more problem that has no answer."""
    problems = {
        c["question_id"]: problem(c["n_choices"], c["answer"], "image.png" if c["has_image"] else None) for c in SQA
    }
    return files(tmp_path, problems | {"99999": problem(2, 0)})


def lines_of(chosen):
    return [answer_line(c["question_id"], c["text"], "<image>\nWhich?" if c["has_image"] else "Which?") for c in chosen]


@pytest.mark.parametrize("case", SQA, ids=lambda case: repr(case["text"]))
def test_an_answer_is_read_as_llavas_script_reads_it(case):
    assert parse_letter(case["text"]) == case["parsed"]


def test_every_case_through_the_command(tmp_path, all_cases):
    result = run_score(tmp_path, "scienceqa", all_cases, write_lines(tmp_path / "a.jsonl", lines_of(SQA)[::-1]))
    details = details_by_id(result)
    for case in SQA:
        found = details[case["question_id"]]
        assert {name: found[name] for name in ("parsed", "pred_index", "correct", "has_image")} == {
            name: case[name] for name in ("parsed", "pred_index", "correct", "has_image")
        }
    correct = sum(case["correct"] for case in SQA)
    with_image = [case["correct"] for case in SQA if case["has_image"]]
    assert result["metrics"]["accuracy"] == pytest.approx(correct / (len(SQA) + 1), abs=1e-6)
    assert result["metrics"]["image_accuracy"] == pytest.approx(sum(with_image) / len(with_image), abs=1e-6)
    assert "1 of 54 problems have no answer" in " ".join(result["notes"])


def test_the_result_file_is_llavas(tmp_path, all_cases):
    answers = write_lines(tmp_path / "a.jsonl", lines_of(SQA))
    run_score(tmp_path, "scienceqa", all_cases, answers, "--submission", tmp_path / "up")
    result = json.loads((tmp_path / "up" / "scienceqa_result.json").read_text())
    correct = sum(case["correct"] for case in SQA)
    assert (result["correct"], result["count"]) == (correct, len(SQA) + 1)
    assert result["acc"] == pytest.approx(100 * correct / (len(SQA) + 1))
    assert result["results"] == {case["question_id"]: case["pred_index"] for case in SQA} | {"99999": -1}
    assert result["outputs"]["45"] == "A. foo"


def test_a_question_counts_as_one_with_a_picture_by_its_prompt(tmp_path):
    given = files(tmp_path, {"1": problem(2, 0), "2": problem(2, 0, None), "3": problem(2, 1)})
    lines = [answer_line("1", "A", "<image>\nx"), answer_line("2", "A", "x"), answer_line("3", "A", "x")]
    metrics = run_score(tmp_path, "scienceqa", given, write_lines(tmp_path / "a.jsonl", lines))["metrics"]
    assert (metrics["image_accuracy"], metrics["image_count"]) == (1.0, 1)
    assert metrics["accuracy"] == pytest.approx(2 / 3)


def test_the_split_comes_from_the_problems_where_no_split_file_is_given(tmp_path):
    problems = write(tmp_path / "problems.json", {"1": problem(2, 0), "2": problem(2, 0, split="val")})
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("1", "A")])
    assert run_score(tmp_path, "scienceqa", problems, answers)["num_questions"] == 1
    (tmp_path / "a.jsonl").write_text(json.dumps(answer_line("2", "B")) + "\n")
    assert run_score(tmp_path, "scienceqa", problems, answers, "--option", "split=val")["metrics"]["accuracy"] == 0.0


def test_prompts_are_context_question_choices_and_instruction(tmp_path):
    given = files(tmp_path, {"4": problem(2, 1), "5": problem(3, 0, None, hint="Read this.")})
    benchmark = get_benchmark("scienceqa")
    pictured, bare = benchmark.read(Files(tuple(given)))
    assert pictured.prompt == f"Which is larger?\nA. thing 0\nB. thing 1\n{LETTER}"
    assert benchmark.answer_prompt(pictured) == "<image>\n" + pictured.prompt
    assert pictured.images == ("test/4/image.png",)
    assert bare.prompt == f"Context: Read this.\nWhich is larger?\nA. thing 0\nB. thing 1\nC. thing 2\n{LETTER}"
    assert bare.messages == [{"role": "user", "content": [{"type": "text", "text": bare.prompt}]}]
    assert benchmark.answer_prompt(bare) == bare.prompt


def test_llavas_converted_file_gives_its_own_prompts(tmp_path):
    given = files(tmp_path, {"4": problem(2, 1)})
    turns = [{"from": "human", "value": "Which?\nA. a pin\nB. a house\n<image>"}, {"from": "gpt", "value": "B"}]
    converted = write(tmp_path / "llava_test_CQM-A.json", [{"id": "4", "image": "4/image.png", "conversations": turns}])
    question = get_benchmark("scienceqa").read(Files(tuple(given), (converted,)))[0]
    assert question.prompt == f"Which?\nA. a pin\nB. a house\n{LETTER}"


def test_an_unknown_problem_and_an_impossible_label_are_refused(capsys, tmp_path):
    given = files(tmp_path, {"4": problem(2, 1)})
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("4", "A"), answer_line("6", "A")])
    assert f"{answers}, line 2, field question_id" in refused(capsys, tmp_path, "scienceqa", given, answers)
    given = files(tmp_path, {"4": problem(2, 2)})
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("4", "A")])
    message = refused(capsys, tmp_path, "scienceqa", given, answers)
    assert f"{given[0]}, line 1, field 4.answer: expected the place of one of 2 choices, found 2" in message
