"""MMBench through `vwlmm score`, on the table in the official format."""

import base64

import pytest
from scoring import answer_line, cases, refused, run_score, write_lines

from vwlmm.benchmarks import Files, get_benchmark
from vwlmm.benchmarks.option_letters import infer_option

MMB = cases("mmbench")
OPTIONS = {"A": "cat", "B": "dog", "C": "a red bird", "D": "fish"}
COLUMNS = MMB["tsv"].split("\n")[0].split("\t")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text(MMB["tsv"])
    return path


@pytest.fixture
def answers(tmp_path):
    lines = [answer_line(row["index"], row["prediction"]) for row in MMB["rows"][::-1]]
    return write_lines(tmp_path / "a.jsonl", lines)


def write_table(path, rows):
    lines = ["\t".join(COLUMNS), *("\t".join(str(row.get(column, "")) for column in COLUMNS) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("case", MMB["letter_inference"], ids=lambda case: repr(case["text"]))
def test_a_letter_is_inferred_as_vlmevalkit_infers_it(case):
    assert infer_option(case["text"], OPTIONS) == (case["vlmevalkit"] or None)


def test_every_letter_case_through_the_command(tmp_path):
    rows = [
        {"index": i, "question": "q", "answer": "A", "image": "aGk=", **OPTIONS}
        for i in range(len(MMB["letter_inference"]))
    ]
    lines = [answer_line(i, case["text"]) for i, case in enumerate(MMB["letter_inference"])]
    given = write_table(tmp_path / "dev.tsv", rows), write_lines(tmp_path / "a.jsonl", lines)
    result = run_score(tmp_path, "mmbench", *given)
    expected = [case["vlmevalkit"] or None for case in MMB["letter_inference"]]
    assert [detail["inferred"] for detail in result["details"]] == expected


def test_circular_and_vanilla_accuracy_of_the_collected_table(tmp_path, table, answers):
    result = run_score(tmp_path, "mmbench", table, answers)
    circular = {str(int(d["question_id"]) % 1_000_000): d["circular"] for d in result["details"]}
    vanilla = {d["question_id"]: d["correct"] for d in result["details"] if int(d["question_id"]) < 1_000_000}
    as_bool = {1: True, 0: False, None: None}
    assert circular == {group: as_bool[value] for group, value in MMB["vlmevalkit_circular"].items()}
    assert vanilla == {group: as_bool[value] for group, value in MMB["vanilla_first_rotation"].items()}
    assert result["metrics"]["circular_accuracy"] == pytest.approx(3 / 6)
    assert result["metrics"]["vanilla_accuracy"] == pytest.approx(5 / 6)
    static = MMB["lmms_eval_static"]
    for field, name in (("category", "category"), ("l2-category", "l2")):
        for value, expected in static[name].items():
            assert result["metrics"][f"circular_accuracy/{field}/{value}"] == pytest.approx(expected)
    assert "1 answers could not be decided" in " ".join(result["notes"])


def test_a_letter_counts_only_among_the_last_words():
    assert infer_option("A is what I would say it is", OPTIONS) is None
    assert infer_option("I would say it is A", OPTIONS) == "A"


def test_a_refusal_is_decided_and_wrong():
    assert infer_option("I'm sorry, but without the image provided I cannot say", OPTIONS) == "Z"


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("mmbench", "Answer with the option's letter from the given choices directly."),
        ("mmbench-cn", "请直接回答选项字母。"),
    ],
)
def test_prompts_are_llavas(tmp_path, name, instruction):
    rows = [
        {"index": 1, "question": "What?", "hint": "Look.", "A": "cat", "B": "dog", "answer": "A", "image": "aGk="},
        {"index": 1000001, "question": "What?", "hint": "nan", "A": "dog", "B": "cat", "answer": "B", "image": "1"},
    ]
    first, second = get_benchmark(name).read(Files((write_table(tmp_path / "t.tsv", rows),)))
    assert first.prompt == f"Look.\nWhat?\nA. cat\nB. dog\n{instruction}"
    assert second.prompt == f"What?\nA. dog\nB. cat\n{instruction}"
    assert first.images == second.images == (b"hi",)


def test_fields_in_quotes_may_hold_line_breaks_and_tabs(tmp_path):
    path = tmp_path / "t.tsv"
    row = ["7", '"Which ""one""\nof\tthese?"', "", "a", "b", "", "", "B", "c", "aGk=", "s", "l", "", "dev"]
    path.write_text("\t".join(COLUMNS) + "\n" + "\t".join(row) + "\n")
    question = get_benchmark("mmbench").read(Files((path,)))[0]
    assert question.prompt.startswith('Which "one"\nof\tthese?\nA. a\nB. b\n')


def test_the_workbook_has_llavas_columns(tmp_path, table):
    openpyxl = pytest.importorskip("openpyxl")
    lines = [answer_line(row["index"], "=B" if row["index"] == 2 else row["prediction"]) for row in MMB["rows"]]
    answers = write_lines(tmp_path / "a.jsonl", lines)
    run_score(tmp_path, "mmbench", table, answers, "--submission", tmp_path / "up")
    sheet = openpyxl.load_workbook(tmp_path / "up" / "mmbench_submission.xlsx").active
    rows = list(sheet.iter_rows(values_only=True))
    assert list(rows[0]) == MMB["llava_submission_columns"]
    assert rows[1] == (1, "q1", "cat", "dog", "bird", "fish", "B", "B", "dev")
    assert rows[5] == (2, "q2", "yes", "no", None, None, "=B", "A", "dev")
    assert len(rows) == len(MMB["rows"]) + 1


def test_a_split_without_answers_gives_no_figure(capsys, tmp_path):
    rows = [{"index": 1, "question": "What?", "A": "cat", "B": "dog", "image": "aGk=", "split": "test"}]
    given = write_table(tmp_path / "t.tsv", rows), write_lines(tmp_path / "a.jsonl", [answer_line(1, "A")])
    assert "answers are not public" in refused(capsys, tmp_path, "mmbench", *given)


def test_bad_rows_are_named(capsys, tmp_path, table, answers):
    text = table.read_text()
    table.write_text(text.replace("\nindex", "\nindx").replace("index\t", "indx\t", 1))
    assert f"{table}, line 1, field index" in refused(capsys, tmp_path, "mmbench", table, answers)
    table.write_text(text[:-40])
    assert f"{table}, line 22, field" in refused(capsys, tmp_path, "mmbench", table, answers)
    table.write_text(text.replace("\n1000001\t", "\n1\t"))
    assert f"{table}, line 3, field index" in refused(capsys, tmp_path, "mmbench", table, answers)
    table.write_text(text.replace("aGk=", "aGk", 1))
    assert f"{table}, line 2, field image" in refused(capsys, tmp_path, "mmbench", table, answers)


def test_a_large_picture_is_one_field(tmp_path):
    picture = base64.b64encode(bytes(200_000)).decode()
    rows = [{"index": 1, "question": "What?", "A": "cat", "B": "dog", "answer": "A", "image": picture}]
    assert get_benchmark("mmbench").read(Files((write_table(tmp_path / "t.tsv", rows),)))[0].images == (bytes(200_000),)
