"""Reads a finished answers file and joins it to the questions by id: exactly one answer each, or an error.

Understood: LLaVA's JSONL (`question_id, prompt, text, …`), lists as submission files have them, and an object from id to
answer (MM-Vet). Several files are read one after the other, as the shards of one run.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .benchmark import Answer, Benchmark, Question
from .official_files import Record, list_records, read_json, read_json_lines, read_text, shown


def read_answers(paths: Sequence[Path], benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, Answer]:
    """Answers by question id, in the order of the questions, each with its `question_id` and, where it has one, `text`.

    Raises:
        ValueError: an unknown id, a second answer for a question, questions without an answer, or a broken file; it
            names file, line and field.
    """
    match = benchmark.matcher(questions)
    found: dict[str, Answer] = {}
    first: dict[str, Record] = {}
    for path in paths:
        for record in _records(path, benchmark):
            answer = _answer(record, benchmark)
            try:
                name = match(answer)
            except ValueError as problem:
                raise ValueError(f"{record.place}, {problem}") from problem
            if name is None:
                raise _unknown(record, answer, benchmark, questions)
            if name in found:
                raise _second(record, first[name], name, answer.get("text") == found[name].get("text"), benchmark)
            found[name], first[name] = {**answer, "question_id": name}, record
    missing = [q.id for q in questions if q.id not in found and not benchmark.may_be_missing(q)]
    if missing:
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(
            f"{', '.join(map(str, paths))}, field {benchmark.id_fields[0]}: expected an answer for each of "
            f"{len(questions)} questions, {len(missing)} have none: {names}. Finish the run; half a file is not scored."
        )
    return {question.id: found[question.id] for question in questions if question.id in found}


def _records(path: Path, benchmark: Benchmark) -> Iterator[Record]:
    """The lines, list entries or named answers of one file."""
    text = read_text(path).lstrip()
    if not text:
        raise ValueError(f"{path}, line 1: expected answers, found an empty file.")
    if text[0] == "[":
        yield from list_records(path, read_json(path), None, "a list of answers")
    elif _is_json_lines(text, benchmark):
        yield from read_json_lines(path)
    else:
        yield from _named_answers(path, read_json(path, unique_names=True), benchmark)


def _is_json_lines(text: str, benchmark: Benchmark) -> bool:
    """True when the first line is a whole object with a field of an answer, or is cut while more lines follow it."""
    line, _, rest = text.partition("\n")
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        # An object written over many lines has "{" or a little more on its first; a cut line of answers has more.
        return rest.lstrip().startswith("{") and len(line) > 1
    return isinstance(value, dict) and (bool(rest.strip()) or not _is_named(value, benchmark))


def _is_named(document: dict[str, Any], benchmark: Benchmark) -> bool:
    fields = {*benchmark.id_fields, *benchmark.answer_fields}
    return bool(document) and not fields & set(document)


def _named_answers(path: Path, document: Any, benchmark: Benchmark) -> Iterator[Record]:
    if not isinstance(document, dict) or not _is_named(document, benchmark):
        # One answer written over many lines, or no answers at all: the field check says what is missing.
        yield Record(path, document if isinstance(document, dict) else {})
        return
    for name, value in document.items():
        if isinstance(value, str):
            value = {benchmark.answer_fields[0]: value}
        elif not isinstance(value, dict):
            raise Record(path, document).error(name, f"expected text or an object, found {shown(value)}")
        yield Record(path, {benchmark.id_fields[0]: name, **value}, (name,))


def _answer(record: Record, benchmark: Benchmark) -> dict[str, Any]:
    """The record with `question_id` as text and `text`, from the fields that the benchmark's files have."""
    answer = dict(record.value)
    id_field = next((field for field in benchmark.id_fields if field in answer), None)
    if id_field is not None:
        answer["question_id"] = str(record.get(id_field, str, int))
    for name in ("prompt", "question", "category", "image"):  # what some benchmarks join by
        if name in answer and name not in benchmark.id_fields:
            record.get(name, str)
    field = next((field for field in benchmark.answer_fields if field in answer), None)
    if field is None:
        record.get(benchmark.answer_fields[0], benchmark.answer_kind)
    elif isinstance(answer[field], str):
        answer["text"] = answer[field]
    elif field in ("text", "answer", "prediction", "caption"):
        record.get(field, str)
    return answer


def _unknown(record: Record, answer: Answer, benchmark: Benchmark, questions: Sequence[Question]) -> ValueError:
    field = next((field for field in benchmark.id_fields if field in record.value), None)
    if field is None:
        record.get(benchmark.id_fields[0], str, int)
    example = f", whose ids are like {questions[0].id!r}" if questions else ""
    return record.error(
        str(field),
        f"expected the id of one of the {len(questions)} questions of {benchmark.title}{example}; "
        f"found {shown(record.value[str(field)])}. Is it a file of another benchmark or split?",
    )


def _second(record: Record, first: Record, name: str, same: bool, benchmark: Benchmark) -> ValueError:
    texts = "the same answer again: remove one" if same else "another answer: keep the right one"
    field = next((field for field in benchmark.id_fields if field in record.value), benchmark.id_fields[0])
    place = first.place.removeprefix(f"{record.path}, ")
    return record.error(field, f"expected one answer for question {name}, which {place} has answered; found {texts}")
