"""VQAv2 through `vwlmm score`, on files in the official format."""

import json

import pytest
from scoring import answer_line, cases, details_by_id, refused, run_score, write, write_lines

from vwlmm.benchmarks import Files, get_benchmark

TYPES = "yes/no", "number", "other"
VQA = cases("vqa")["cases"]
NORM = cases("vqa_norm")["cases"]


def annotation(name, answers, answer_type="other"):
    listed = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, start=1)]
    return {
        "question_type": "what is",
        "multiple_choice_answer": answers[0],
        "answers": listed,
        "image_id": name // 1000,
        "answer_type": answer_type,
        "question_id": name,
    }


def annotation_file(path, annotations, **more):
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    return write(path, {**head, "annotations": annotations, **more})


def question_file(path, names, split="val2014"):
    questions = [{"image_id": name // 1000, "question": f"What is {name}?", "question_id": name} for name in names]
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split, "license": {}}
    return write(path, {**head, "questions": questions})


@pytest.fixture
def files(tmp_path):
    """Three questions with their labels in another order."""
    names = [1001000, 1001001, 2002000]
    labels = [annotation(name, ["red"] * 4 + ["blue"] * 6) for name in reversed(names)]
    lines = [answer_line(name, text) for name, text in zip(names, ["Red", "Blue", "green"], strict=True)]
    return {
        "annotations": annotation_file(tmp_path / "v2_mscoco_val2014_annotations.json", labels),
        "questions": question_file(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", names),
        "answers": write_lines(tmp_path / "answers.jsonl", lines),
        "lines": lines,
        "labels": labels,
    }


def test_every_case_through_the_command(tmp_path):
    labels = [annotation(1000 * c["id"] + 7, c["answers"], TYPES[i % 3]) for i, c in enumerate(VQA)]
    annotations = annotation_file(tmp_path / "annotations.json", labels[::-1])
    questions = question_file(tmp_path / "questions.json", [label["question_id"] for label in labels])
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(1000 * c["id"] + 7, c["prediction"]) for c in VQA])
    result = run_score(tmp_path, "vqav2", annotations, answers, "--questions", questions)
    details = details_by_id(result)
    for case in VQA:
        detail = details[str(1000 * case["id"] + 7)]
        assert detail["accuracy"] == pytest.approx(case["official_accuracy"], abs=1e-6)
        assert detail["submission_accuracy"] == pytest.approx(case["submission_then_official_accuracy"], abs=1e-6)
        assert detail["normalised"] == case["official_prediction_normalised"]
        assert detail["submission"] == case["evalai_prediction_normalised"]
        assert detail["normalisation_applies"] == case["official_applies_normalisation"]
    mean = sum(case["official_accuracy"] for case in VQA) / len(VQA)
    assert result["metrics"]["accuracy"] == pytest.approx(mean, abs=1e-6)
    for number, kind in enumerate(TYPES):
        chosen = [case["official_accuracy"] for case in VQA[number::3]]
        assert result["metrics"][f"accuracy/{kind}"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-6)


def test_every_normalisation_case_through_the_command(tmp_path):
    labels = [annotation(1000 * number, ["yes", *["no"] * 9]) for number in range(len(NORM))]
    answers = [answer_line(1000 * number, case["text"]) for number, case in enumerate(NORM)]
    annotations = annotation_file(tmp_path / "annotations.json", labels)
    result = run_score(tmp_path, "vqav2", annotations, write_lines(tmp_path / "a.jsonl", answers))
    for case, detail in zip(NORM, result["details"], strict=True):
        assert detail["normalised"] == case["official_normalised"]
        assert detail["submission"] == case["evalai_normalised"]


def test_labels_in_another_order_are_joined_by_id(tmp_path, files):
    with_questions = run_score(
        tmp_path, "vqav2", files["annotations"], files["answers"], "--questions", files["questions"]
    )
    alone = run_score(tmp_path, "vqav2", files["annotations"], files["answers"])
    assert [detail["question_id"] for detail in with_questions["details"]] == ["1001000", "1001001", "2002000"]
    assert [detail["accuracy"] for detail in with_questions["details"]] == [1.0, 1.0, 0.0]
    assert alone["metrics"] == with_questions["metrics"]


def test_the_prompt_is_llavas(files):
    benchmark = get_benchmark("vqav2")
    question = benchmark.read(Files((files["annotations"],), (files["questions"],)))[0]
    assert question.prompt == "What is 1001000?\nAnswer the question using a single word or phrase."
    assert question.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "\n" + question.prompt}]
    assert question.images == ("COCO_val2014_000000001001.jpg",)


def test_the_submission_lists_all_of_test2015_and_is_evalais(tmp_path, capsys):
    asked = question_file(tmp_path / "test-dev.json", [5000, 3000], split="test2015")
    everything = question_file(tmp_path / "test.json", [1000, 3000, 4000, 5000], split="test2015")
    answers = write_lines(tmp_path / "a.jsonl", [answer_line(3000, "The Dog."), answer_line(5000, "two")])
    read = get_benchmark("vqav2").read(Files((), (asked, everything)))
    assert [question.images for question in read] == [
        ("COCO_test2015_000000000005.jpg",),
        ("COCO_test2015_000000000003.jpg",),
    ]
    from vwlmm.cli import main

    arguments = ["--questions", asked, everything, "--answers", answers, "--submission", tmp_path / "upload"]
    assert main(["score", "vqav2", *map(str, arguments)]) == 0
    assert "not public" in capsys.readouterr().out
    assert json.loads((tmp_path / "upload" / "vqav2_submission.json").read_text()) == [
        {"question_id": 1000, "answer": ""},
        {"question_id": 3000, "answer": "dog"},
        {"question_id": 4000, "answer": ""},
        {"question_id": 5000, "answer": "2"},
    ]


def test_a_submission_list_is_scored_like_the_answers_it_came_from(tmp_path, files):
    listed = [{"question_id": line["question_id"], "answer": line["text"]} for line in files["lines"]]
    from_list = run_score(tmp_path, "vqav2", files["annotations"], write(tmp_path / "list.json", listed))
    assert from_list["metrics"] == run_score(tmp_path, "vqav2", files["annotations"], files["answers"])["metrics"]


def test_shards_are_read_one_after_the_other(tmp_path, files):
    first = write_lines(tmp_path / "0.jsonl", files["lines"][::2])
    second = write_lines(tmp_path / "1.jsonl", files["lines"][1::2])
    whole = run_score(tmp_path, "vqav2", files["annotations"], files["answers"])
    shards = run_score(tmp_path, "vqav2", files["annotations"], first, "--answers", first, second)
    assert shards["details"] == whole["details"]


def test_options_and_benchmarks_that_do_not_exist_are_refused_with_the_known_ones(capsys, tmp_path, files):
    given = files["annotations"], files["answers"]
    assert "it has: split" in refused(capsys, tmp_path, "vqav2", *given, "--option", "spilt=val2014")
    assert "Did you mean 'vqav2'?" in refused(capsys, tmp_path, "vqa2", *given)
    assert "expected key=value" in refused(capsys, tmp_path, "vqav2", *given, "--option", "split")


def test_annotations_without_answer_id_are_refused(capsys, tmp_path, files):
    del files["labels"][1]["answers"][3]["answer_id"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"annotations": files["labels"]}, indent=1))
    message = refused(capsys, tmp_path, "vqav2", path, files["answers"])
    assert "field annotations[1].answers[3].answer_id: expected a whole number or text, found no such field" in message


def test_questions_and_labels_of_different_splits_are_refused(capsys, tmp_path, files):
    other = question_file(tmp_path / "other.json", [1001000, 1001001, 9009000])
    message = refused(capsys, tmp_path, "vqav2", files["annotations"], files["answers"], "--questions", other)
    assert "field annotations[0].question_id: 2002000 is not in" in message
