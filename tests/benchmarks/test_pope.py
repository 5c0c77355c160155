"""POPE through `vwlmm score`: official figures, LLaVA's answers and official ones, ids that repeat."""

import pytest
from scoring import answer_line, cases, details_by_id, refused, run_score, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.pope import parse_yes_no

POPE = cases("pope")
SHORT = "Answer the question using a single word or phrase."


def label_file(folder, category, labels, pictures=0):
    rows = [
        {
            "question_id": i,
            "image": f"COCO_val2014_{i + pictures:012d}.jpg",
            "text": f"Is there a thing {i}?",
            "label": label,
        }
        for i, label in enumerate(labels, start=1)
    ]
    return write_lines(folder / f"coco_pope_{category}.json", rows), rows


def asked_of(category, rows, begin=0):
    """Lines of LLaVA's questions file for one subset."""
    return [
        {"question_id": begin + i, "image": row["image"], "text": f"{row['text']}\n{SHORT}", "category": category}
        for i, row in enumerate(rows)
    ]


def llava_answers(asked, texts):
    return [answer_line(a["question_id"], text, a["text"]) for a, text in zip(asked, texts, strict=True)]


def check(metrics, category, expected):
    for name, value in expected.items():
        assert metrics[f"{category}/{name}"] == pytest.approx(value, abs=1e-6), (category, name)


@pytest.mark.parametrize("case", POPE["parse"], ids=lambda case: repr(case["text"]))
def test_an_answer_is_read_as_the_official_script_reads_it(case):
    assert parse_yes_no(case["text"]) == case["parsed"]


def test_every_parse_case_through_the_command(tmp_path):
    labels, rows = label_file(tmp_path, "random", ["yes"] * len(POPE["parse"]))
    lines = [{"question": row["text"], "answer": case["text"]} for row, case in zip(rows, POPE["parse"], strict=True)]
    result = run_score(tmp_path, "pope", labels, write_lines(tmp_path / "a.json", lines))
    assert [detail["parsed"] for detail in result["details"]] == [case["parsed"] for case in POPE["parse"]]


@pytest.mark.parametrize("subset", POPE["subsets"], ids=lambda subset: subset["category"])
def test_one_label_file_with_official_answers(tmp_path, subset):
    labels, rows = label_file(tmp_path, subset["category"], subset["labels"])
    lines = [{"question": row["text"], "answer": text} for row, text in zip(rows, subset["answers"], strict=True)]
    result = run_score(tmp_path, "pope", labels, write_lines(tmp_path / "a.json", lines))
    check(result["metrics"], subset["category"], subset["metrics"])
    assert result["metrics"]["f1"] == pytest.approx(subset["metrics"]["f1"], abs=1e-6)


@pytest.mark.parametrize("edge", POPE["edge"], ids=lambda edge: edge["name"])
def test_where_the_official_script_divides_by_zero_zero_is_given_and_said(tmp_path, edge):
    labels, rows = label_file(tmp_path, "popular", edge["labels"])
    lines = [{"question": row["text"], "answer": text} for row, text in zip(rows, edge["answers"], strict=True)]
    result = run_score(tmp_path, "pope", labels, write_lines(tmp_path / "a.json", lines))
    if "error" in edge["metrics"]:
        assert result["metrics"]["f1"] == 0.0
        assert "divides by zero" in " ".join(result["notes"])
    else:
        check(result["metrics"], "popular", edge["metrics"])


@pytest.fixture
def three(tmp_path):
    """Three subsets whose ids repeat, with questions file and answers in LLaVA's form; random is shorter, as in its copy."""
    texts = {"adversarial": ["Yes", "no", "No", "yes"], "popular": ["No", "no", "yes", "yes"], "random": ["Yes", "No"]}
    files, asked, answers = {}, [], []
    for number, (category, given) in enumerate(texts.items()):
        labels = ["yes", "no"] * (len(given) // 2)
        files[category], rows = label_file(tmp_path, category, labels, pictures=0 if category == "random" else number)
        asked += asked_of(category, rows, begin=len(asked))
        answers += given
    return {"files": files, "asked": asked, "texts": answers, "folder": tmp_path}


EXPECTED = {"adversarial": 0.5, "popular": 0.5, "random": 1.0}


def accuracies(result):
    return {category: result["metrics"][f"{category}/accuracy"] for category in EXPECTED}


def test_three_subsets_with_llavas_answers_and_questions_file(tmp_path, three):
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", three["asked"])
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(three["asked"], three["texts"])[::-1])
    result = run_score(tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions)
    assert accuracies(result) == EXPECTED
    mean = sum(result["metrics"][f"{category}/f1"] for category in EXPECTED) / 3
    assert result["metrics"]["f1"] == pytest.approx(mean, abs=1e-12)
    assert result["metrics"]["accuracy"] == pytest.approx(2 / 3)


def test_labels_in_another_order_are_joined_by_subset_picture_and_text(tmp_path, three):
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", three["asked"])
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(three["asked"], three["texts"]))
    for path in three["files"].values():
        path.write_text("\n".join(reversed(path.read_text().strip().split("\n"))) + "\n")
    result = run_score(tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions)
    assert accuracies(result) == EXPECTED


def repeated(three):
    """The questions file with ids that begin anew in every subset."""
    numbers = dict.fromkeys(EXPECTED, 0)
    asked = []
    for line in three["asked"]:
        numbers[line["category"]] += 1
        asked.append({**line, "question_id": numbers[line["category"]]})
    return asked


def test_repeated_ids_in_the_order_of_the_questions_file_are_joined(tmp_path, three):
    asked = repeated(three)
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(asked, three["texts"]))
    result = run_score(tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions)
    assert accuracies(result) == EXPECTED


def test_repeated_ids_with_their_category_are_joined_in_any_order(tmp_path, three):
    asked = repeated(three)
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    lines = llava_answers(asked, three["texts"])
    lines = [{**line, "category": a["category"]} for line, a in zip(lines, asked, strict=True)]
    answers = write_lines(tmp_path / "a.jsonl", lines[::-1])
    result = run_score(tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions)
    assert accuracies(result) == EXPECTED


def test_repeated_ids_in_another_order_and_without_category_are_refused(capsys, tmp_path, three):
    asked = repeated(three)
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    lines = llava_answers(asked, three["texts"])
    answers = write_lines(tmp_path / "a.jsonl", lines[1:] + lines[:1])
    given = tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions
    message = refused(capsys, *given)
    assert f"{answers}, line " in message
    assert "stands for questions of several subsets" in message


def test_questions_that_nothing_but_their_order_tells_apart_keep_their_order(tmp_path):
    """One picture and one text for all, and ids that run on from subset to subset as in LLaVA's file."""
    files, asked, texts = [], [], []
    for category, labels in (("adversarial", ["yes", "no", "no"]), ("popular", ["no", "yes", "yes", "no"])):
        rows = [{"question_id": i, "image": "x.jpg", "text": "A dog?", "label": t} for i, t in enumerate(labels, 1)]
        files.append(write_lines(tmp_path / f"coco_pope_{category}.json", rows))
        asked += asked_of(category, rows, begin=len(asked))
        texts += labels
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(asked, texts))
    metrics = run_score(tmp_path, "pope", files, answers, "--questions", questions)["metrics"]
    assert (metrics["adversarial/accuracy"], metrics["popular/accuracy"]) == (1.0, 1.0)


def test_a_questions_line_without_label_is_refused(capsys, tmp_path, three):
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", three["asked"])
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(three["asked"], three["texts"]))
    given = tmp_path, "pope", three["files"]["random"], answers, "--questions", questions
    assert f"{questions}, line 1, field text: expected a question of the label files" in refused(capsys, *given)


def test_our_own_answers_name_subset_and_id(tmp_path, three):
    read = get_benchmark("pope").read(Files(tuple(three["files"].values())))
    answers = write_lines(
        tmp_path / "a.jsonl",
        [answer_line(q.id, t, q.prompt) for q, t in zip(read, three["texts"], strict=True)][::-1],
    )
    assert read[0].prompt == f"Is there a thing 1?\n{SHORT}"
    assert accuracies(run_score(tmp_path, "pope", list(three["files"].values()), answers)) == EXPECTED


def test_official_answers_in_another_order_are_refused(capsys, tmp_path):
    labels, rows = label_file(tmp_path, "random", ["yes", "no", "yes"])
    lines = [{"question": row["text"], "answer": "yes"} for row in rows]
    answers = write_lines(tmp_path / "a.json", [lines[0], lines[2], lines[1]])
    message = refused(capsys, tmp_path, "pope", labels, answers)
    assert f"{answers}, line 2, field question: expected 'Is there a thing 2?'" in message


def test_too_many_and_too_few_official_answers_are_refused(capsys, tmp_path):
    labels, rows = label_file(tmp_path, "random", ["yes", "no"])
    lines = [{"question": row["text"], "answer": "yes"} for row in rows]
    answers = write_lines(tmp_path / "a.json", [*lines, lines[1]])
    assert f"{answers}, line 3, field question" in refused(capsys, tmp_path, "pope", labels, answers)
    answers = write_lines(tmp_path / "a.json", lines[:1])
    assert "1 have none: random/2" in refused(capsys, tmp_path, "pope", labels, answers)


def test_another_version_of_the_label_file_is_refused_and_not_shifted(capsys, tmp_path, three):
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", three["asked"])
    answers = write_lines(tmp_path / "a.jsonl", llava_answers(three["asked"], three["texts"]))
    three["files"]["random"], _ = label_file(tmp_path, "random", ["yes", "no", "yes", "no"])
    message = refused(capsys, tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions)
    assert "2,910 lines" in message
    assert f"{three['files']['random']}, line 3, field text" in message


def test_a_prompt_of_another_question_is_refused(capsys, tmp_path, three):
    questions = write_lines(tmp_path / "llava_pope_test.jsonl", three["asked"])
    lines = llava_answers(three["asked"], three["texts"])
    lines[3]["prompt"] = "Is there a cat?\n" + SHORT
    answers = write_lines(tmp_path / "a.jsonl", lines)
    given = tmp_path, "pope", list(three["files"].values()), answers, "--questions", questions
    assert f"{answers}, line 4, field prompt" in refused(capsys, *given)


def test_a_label_that_is_neither_yes_nor_no_is_refused(capsys, tmp_path):
    labels, rows = label_file(tmp_path, "random", ["yes", "maybe"])
    answers = write_lines(tmp_path / "a.json", [{"question": row["text"], "answer": "yes"} for row in rows])
    message = refused(capsys, tmp_path, "pope", labels, answers)
    assert f"{labels}, line 2, field label: expected yes or no, found 'maybe'" in message


def test_a_missing_picture_is_an_error_that_names_it(tmp_path):
    from vwlmm.benchmarks.official_files import check_images

    labels, rows = label_file(tmp_path, "random", ["yes", "no"])
    (tmp_path / rows[0]["image"]).write_bytes(b"picture")
    questions = get_benchmark("pope").read(Files((labels,), (), tmp_path))
    check_images(questions[:1], tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"line 2, field image .*{rows[1]['image']}"):
        check_images(questions, tmp_path)


def test_details_say_what_was_read_from_each_answer(tmp_path):
    labels, rows = label_file(tmp_path, "random", ["yes", "no"])
    answers = write_lines(tmp_path / "a.json", [{"question": row["text"], "answer": "No, it is not"} for row in rows])
    detail = details_by_id(run_score(tmp_path, "pope", labels, answers))["random/1"]
    assert (detail["parsed"], detail["label"], detail["correct"]) == ("no", "yes", False)
