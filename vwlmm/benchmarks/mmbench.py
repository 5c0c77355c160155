"""MMBench and MMBench-CN: multiple choice, asked again with rotated options (Liu et al. 2023), as LLaVA-1.5 asks them.

`vwlmm score mmbench --annotations mmbench_dev_20230712.tsv --answers answers.jsonl`. Papers report circular accuracy.
"""

import base64
import binascii
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from . import prompts
from .benchmark import Answer, Benchmark, Files, Question, Score
from .official_files import Record, find_one, has_labels, mean, only_file, read_table
from .option_letters import infer_option

LETTERS = "ABCD"
ROTATION = 1_000_000  # rotations of one question share their index modulo this
COLUMNS = ("index", "question", *LETTERS, "image")
SUBMISSION = ("index", "question", *LETTERS, "prediction", "answer", "split")
# What pandas, with which LLaVA and VLMEvalKit read the table, takes for nothing; LLaVA adds any nan and none.
_NOTHING = {
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "n/a",
}


class MMBench(Benchmark):
    """Circular: a question counts when all its rotations are right. Vanilla: its first rotation alone, points higher.

    Letters are inferred by rules; what they cannot decide counts as wrong here, where the server asks a judge model.
    """

    name = "mmbench"
    title = "MMBench"
    max_new_tokens = 1024
    options = {"split": "dev"}
    published = {
        "LLaVA-1.5-7B": 64.3,
        "VW-LMM Vicuna-7B": 65.9,
        "VW-LMM Mistral-7B": 80.6,
    }
    instruction = prompts.OPTION_LETTER
    file_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dev": ("mmbench_dev_20230712.tsv", "MMBench_DEV_EN.tsv"),
        "test": ("mmbench_test_20230712.tsv", "MMBench_TEST_EN.tsv"),
    }

    def files(self, data: Path) -> Files:
        """The table of the split, which holds the pictures too."""
        split = self.settings["split"]
        if split not in self.file_names:
            raise ValueError(f"{self.name}: expected split {' or '.join(self.file_names)}, found {split!r}.")
        return Files((find_one(data, self.name, *self.file_names[split]),))

    def read(self, files: Files) -> list[Question]:
        """Every row, rotations too, in the official order."""
        path = only_file(files, self.name, self.file_names["dev"][0])
        rows: dict[str, Record] = {}
        for record in read_table(path, COLUMNS, f"{self.title}'s table"):
            name = _index(record)
            if name in rows:
                raise record.error("index", f"expected each index once, found {name} again")
            rows[name] = record
        return [self._question(name, record, rows) for name, record in rows.items()]

    def _question(self, name: str, record: Record, rows: Mapping[str, Record]) -> Question:
        options = _options(record.value)
        if len(options) < 2:
            raise record.error("B", f"expected at least two options, found {len(options)}")
        answer = record.value.get("answer", "")
        if not _is_nothing(answer) and answer not in options:
            raise record.error("answer", f"expected one of {', '.join(options)}, found {answer!r}")
        hint = record.value.get("hint", "")
        lines = [] if _is_nothing(hint) else [hint]
        lines += [record.value["question"], *(f"{letter}. {option}" for letter, option in options.items())]
        image = _image(name, record, rows)
        return Question(
            id=name,
            messages=prompts.user_turn(*lines, self.instruction) if image is not None else (),
            images=() if image is None else (image,),
            record={
                **{key: value for key, value in record.value.items() if key != "image"},
                "answer": "" if _is_nothing(answer) else answer,
            },
            where=record.where,
        )

    def score(self, questions: Sequence[Question], answers: Mapping[str, Answer]) -> Score:
        """Circular and vanilla accuracy, and circular accuracy of each category."""
        if not has_labels(questions, "answer"):
            return Score(
                {}, notes=["this split's answers are not public: upload the submission file to MMBench's server"]
            )
        rows = [_row(question, answers[question.id]["text"]) for question in questions]
        groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            groups[int(row["question_id"]) % ROTATION].append(row)
        circular = {group: _circular(members) for group, members in groups.items()}
        for row in rows:
            row["circular"] = circular[int(row["question_id"]) % ROTATION]
        firsts = [min(members, key=lambda row: int(row["question_id"])) for members in groups.values()]
        metrics = {
            "circular_accuracy": mean(right is True for right in circular.values()),
            "vanilla_accuracy": mean(row["correct"] is True for row in firsts),
        }
        for field in ("l2-category", "category"):
            for value in sorted({row[field] for row in firsts if row[field]}):
                metrics[f"circular_accuracy/{field}/{value}"] = mean(
                    row["circular"] is True for row in firsts if row[field] == value
                )
        undecided = sum(row["inferred"] is None for row in rows)
        notes = [
            f"circular: right in all rotations, {len(groups)} questions in {len(rows)} rows; vanilla: first rotation only",
            f"{undecided} answers could not be decided by rules and count as wrong; the server asks a judge model",
        ]
        return Score(metrics, rows, notes)

    def write_submission(self, questions: Sequence[Question], answers: Mapping[str, Answer], folder: Path) -> Path:
        """The server's workbook, with LLaVA's columns."""
        try:
            from openpyxl import Workbook
            from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
        except ImportError as problem:
            raise ImportError(
                "MMBench's submission is a workbook: pip install openpyxl, then run this again."
            ) from problem
        book = Workbook()
        sheet = book.active
        sheet.append(SUBMISSION)
        for number, question in enumerate(questions, start=2):
            values = {**question.record, "prediction": answers[question.id]["text"]}
            for column, name in enumerate(SUBMISSION, start=1):
                value = values.get(name, "")
                if name == "index":
                    sheet.cell(number, column, int(value))
                elif name == "prediction" or not _is_nothing(value):
                    cell = sheet.cell(number, column)
                    cell.value = ILLEGAL_CHARACTERS_RE.sub("", value)
                    cell.data_type = "s"  # an answer that begins with = is no formula
        path = folder / f"{self.name}_submission.xlsx"
        book.save(path)
        return path


class MMBenchCN(MMBench):
    """The same questions in Chinese, with LLaVA's Chinese instruction."""

    name = "mmbench-cn"
    title = "MMBench-CN"
    published = {
        "LLaVA-1.5-7B": 58.3,
        "VW-LMM Vicuna-7B": 59.8,
        "VW-LMM Mistral-7B": 79.0,
    }
    instruction = prompts.OPTION_LETTER_CN
    file_names = {
        "dev": ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv"),
        "test": ("mmbench_test_cn_20231003.tsv", "MMBench_TEST_CN.tsv"),
    }


def _is_nothing(value: str) -> bool:
    return value in _NOTHING or value.lower().lstrip("-") in ("nan", "none", "null")


def _options(row: Mapping[str, str]) -> dict[str, str]:
    """Letter → option; the first that is missing ends the list."""
    options = {}
    for letter in LETTERS:
        if _is_nothing(row[letter]):
            break
        options[letter] = row[letter]
    return options


def _index(record: Record) -> str:
    value = record.get("index", str).removesuffix(".0")
    if not value.isdecimal():
        raise record.error("index", f"expected a whole number, found {value!r}")
    return str(int(value))


def _image(name: str, record: Record, rows: Mapping[str, Record]) -> bytes | None:
    """The encoded picture: the row's own, that of the index it names, or that of the question's first rotation."""
    text = record.value["image"]
    if text.isdecimal() and text != name and str(int(text)) in rows:
        text = rows[str(int(text))].value["image"]
    if _is_nothing(text):
        first = rows.get(str(int(name) % ROTATION), record)
        text = first.value["image"]
    if _is_nothing(text):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as problem:
        raise record.error(
            "image", f"expected a picture in base64, or the index of a row with one: {problem}"
        ) from None


def _row(question: Question, text: str) -> dict[str, Any]:
    inferred = infer_option(text, _options(question.record))
    return {
        "question_id": question.id,
        "category": question.record.get("category", ""),
        "l2-category": question.record.get("l2-category", ""),
        "text": text,
        "inferred": inferred,
        "answer": question.record["answer"],
        "correct": None if inferred is None else inferred == question.record["answer"],
    }


def _circular(rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """False when a rotation is wrong, None when none is wrong but rules could not decide all."""
    verdicts = [row["correct"] for row in rows]
    return False if False in verdicts else None if None in verdicts else True
