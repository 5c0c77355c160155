"""Reads official JSON, JSONL and TSV files; whatever is wrong is said with file, line and field, before any scoring."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .benchmark import Files, Question

_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


@dataclass(frozen=True)
class Record:
    """One record of an official file and its place there.

    `at` is the way to it within a JSON document, as in `("annotations", 17)`; `line` its line where a line holds it.
    """

    path: Path
    value: Mapping[str, Any]
    at: tuple[str | int, ...] = ()
    line: int | None = None

    @property
    def where(self) -> str:
        """Place without searching for the line: `val.json [17]` or `val.jsonl, line 18`."""
        return f"{self.path}, line {self.line}" if self.line else f"{self.path}, {_dotted(self.at)}"

    def get(self, field: str, *kinds: type, length: int | None = None) -> Any:
        """The field's value, checked to be there, of one of the kinds, and of that length.

        Raises:
            ValueError: with file, line, field, what was expected and what was found.
        """
        value: Any = self.value.get(field)
        is_right = field in self.value and _is_kind(value, kinds)
        if is_right and (length is None or len(value) == length):
            return value
        expected = " or ".join(_KINDS[kind] for kind in kinds) + (f" of {length}" if length is not None else "")
        if field not in self.value:
            keys = ", ".join(map(str, list(self.value)[:8])) or "nothing"
            raise self.error(field, f"expected {expected}, found no such field; the record has: {keys}")
        raise self.error(field, f"expected {expected}, found {len(value) if is_right else shown(value)}")

    def within(self, *fields: str | int) -> "Record":
        """The record inside this one at `fields`, which must be an object."""
        value: Any = self.value
        for step in fields:
            value = value[step]
        if not isinstance(value, dict):
            raise self.error(_dotted(fields), f"expected an object, found {shown(value)}")
        return Record(self.path, value, (*self.at, *fields), self.line)

    @property
    def place(self) -> str:
        """File and line; within a JSON document the line is searched for, so this is for error messages."""
        return f"{self.path}, line {self.line or _line_of(self.path, self.at)}"

    def error(self, field: str, problem: str) -> ValueError:
        """The error to raise for a wrong field."""
        name = ".".join(part for part in (_dotted(self.at), field) if part)
        return ValueError(f"{self.place}, field {name}: {problem}.")


def shown(value: Any) -> str:
    """A value as a message shows it: short, in JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _is_kind(value: Any, kinds: Sequence[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))


def _dotted(at: Iterable[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at)
    return text.removeprefix(".")


def read_text(path: Path) -> str:
    """The file's text, UTF-8 with or without a byte-order mark."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"{path}: expected UTF-8 text, found other bytes at byte {problem.start}: is it compressed, or a picture?"
        ) from problem


def read_json(path: Path, *, unique_names: bool = False) -> Any:
    """One whole JSON document.

    Args:
        unique_names: refuse an object that has one name twice (Python keeps the last and says nothing).

    Raises:
        ValueError: broken or cut off, with line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_unique_names if unique_names else None)
    except json.JSONDecodeError as problem:
        hint = " The file ends too early: it was cut off while it was written." if _at_end(text, problem) else ""
        if problem.msg == "Extra data":
            hint = " Is it a JSONL file, of another benchmark?"
        raise ValueError(
            f"{path}, line {problem.lineno}, column {problem.colno}: expected JSON, found {problem.msg.lower()}.{hint}"
        ) from problem
    except _Twice as problem:
        raise ValueError(f"{path}, field {problem}: expected each name once in an object, found it twice.") from None


class _Twice(Exception):
    pass


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        raise _Twice(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found


def _at_end(text: str, problem: json.JSONDecodeError) -> bool:
    return problem.pos >= len(text.rstrip()) or problem.msg.startswith("Unterminated string")


def read_json_lines(path: Path) -> list[Record]:
    """The objects of a JSONL file, one a line; blank lines hold nothing."""
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as problem:
            hint = " The line ends too early: the file was cut off." if _at_end(line, problem) else ""
            if line.strip() in ("{", "["):
                hint = " Is it one JSON document, of another benchmark?"
            raise ValueError(
                f"{path}, line {number}, column {problem.colno}: expected one JSON object a line, "
                f"found {problem.msg.lower()}.{hint}"
            ) from problem
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {shown(value)}.")
        records.append(Record(path, value, line=number))
    if not records:
        raise ValueError(f"{path}: expected one JSON object a line, found an empty file.")
    return records


def list_records(path: Path, document: Any, name: str | None, what: str) -> Iterator[Record]:
    """The objects of a list, which is the document itself or its field `name`.

    Args:
        what: what the file should be, for the message when it is a file of another benchmark.
    """
    rows = document.get(name) if name is not None and isinstance(document, dict) else document
    if not isinstance(rows, list) or (name is not None and rows is document):
        layout = f"an object with a list {name!r}" if name is not None else "a list of objects"
        raise ValueError(
            f"{path}, line 1, field {name or '(whole file)'}: expected {what}, {layout}; found {outline(document)}. "
            "Is it a file of another benchmark?"
        )
    if not rows:
        raise ValueError(f"{path}, line 1, field {name or '(whole file)'}: expected {what}, found an empty list.")
    at = () if name is None else (name,)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Record(path, {}, (*at, index)).error("", f"expected an object, found {shown(row)}")
        yield Record(path, row, (*at, index))


def dict_records(path: Path, document: Any, what: str) -> Iterator[tuple[str, Record]]:
    """The objects of a document that is one object from id to object."""
    if not isinstance(document, dict) or not document or not isinstance(next(iter(document.values())), dict):
        raise ValueError(
            f"{path}, line 1, field (whole file): expected {what}, an object from id to object; "
            f"found {outline(document)}. Is it a file of another benchmark?"
        )
    for name, value in document.items():
        if not isinstance(value, dict):
            raise Record(path, {}, (name,)).error("", f"expected an object, found {shown(value)}")
        yield name, Record(path, value, (name,))


def outline(document: Any) -> str:
    """What a document is, for a message: its kind and its first names."""
    if isinstance(document, dict):
        return "an object with " + (", ".join(repr(name) for name in list(document)[:6]) or "nothing in it")
    if isinstance(document, list):
        return f"a list of {len(document)}" + (f", first {outline(document[0])}" if document else "")
    return shown(document)


def read_table(path: Path, columns: Sequence[str], what: str) -> list[Record]:
    """The rows of a TSV file with a header, values as text; fields may be quoted and hold line breaks, as pandas reads.

    Raises:
        ValueError: a column is missing, or a row has more or fewer fields than the header.
    """
    csv.field_size_limit(sys.maxsize)  # a picture in base64 is one field
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    header = next(reader, [])
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1, field {missing[0]}: expected {what} with columns {', '.join(columns)}; "
            f"found {shown(header)}. Is it a file of another benchmark?"
        )
    records, begin = [], reader.line_num + 1
    for row in reader:
        if row and len(row) != len(header):
            raise ValueError(
                f"{path}, line {begin}, field {header[min(len(row), len(header) - 1)]}: expected {len(header)} fields, "
                f"found {len(row)}. The file may have been cut off."
            )
        if row:
            records.append(Record(path, dict(zip(header, row, strict=True)), line=begin))
        begin = reader.line_num + 1
    if not records:
        raise ValueError(f"{path}, line 2: expected {what}, found a header and no rows.")
    return records


def _line_of(path: Path, at: Sequence[str | int]) -> int:
    """The line on which the value at `at` begins; walks over the document, so it is for error messages only."""
    text, parse = read_text(path), json.JSONDecoder().raw_decode

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    position = skip(0)
    for wanted in at:
        named = text[position] == "{"
        position, index = skip(position + 1), 0
        while True:
            key: str | int = index
            if named:
                key, position = parse(text, position)
                position = skip(skip(position) + 1)
            if key == wanted:
                break
            position = skip(skip(parse(text, position)[1]) + 1)
            index += 1
    return text.count("\n", 0, position) + 1


def find_files(data: Path, benchmark: str, *names: str) -> list[Path]:
    """Official files or folders by name: in `data`'s folder of the benchmark's name, in `data`, or one folder down.

    Raises:
        FileNotFoundError: lists every one that is missing.
    """
    found = [_find(data, benchmark, name) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"{benchmark}: {data} has no {', '.join(missing)}. Expected there, in {data / benchmark} or one folder down, "
            "under the official names."
        )
    return [path for path in found if path is not None]


def _find(data: Path, benchmark: str, name: str) -> Path | None:
    folders = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    return next((folder / name for folder in (data / benchmark, data, *folders) if (folder / name).exists()), None)


def find_one(data: Path, benchmark: str, *names: str) -> Path:
    """The first of several names under which one official file has been published."""
    found = next((path for path in (_find(data, benchmark, name) for name in names) if path is not None), None)
    return found if found is not None else find_files(data, benchmark, " or ".join(names))[0]


def only_file(files: Files, benchmark: str, name: str) -> Path:
    """The one file of a benchmark that publishes questions and labels together, given as either."""
    given = [*files.annotations, *files.questions]
    if len(given) != 1:
        found = ", ".join(map(str, given)) or "none"
        raise ValueError(f"{benchmark}: expected one file, {name}, as --annotations; found {found}.")
    return given[0]


def mean(values: Iterable[float]) -> float:
    """Mean of what there is; at least one."""
    values = list(values)
    return sum(values) / len(values)


def has_labels(questions: Sequence[Question], field: str) -> bool:
    """True when the records have the label, False for a test split, where none has it.

    Raises:
        ValueError: some have it and some do not.
    """
    bare = [question for question in questions if not question.record.get(field)]
    if bare and len(bare) < len(questions):
        raise ValueError(f"{bare[0].where}, field {field}: expected it as in the other records, found none.")
    return not bare


def check_images(questions: Sequence[Question], images: Path | None) -> None:
    """Checks that every picture the questions name is there.

    Raises:
        FileNotFoundError: names the record, the field and the picture.
    """
    for question in questions:
        for name in question.images:
            if isinstance(name, str) and not (Path() if images is None else images).joinpath(name).is_file():
                raise FileNotFoundError(
                    f"{question.where}, field image (question {question.id}): expected the picture {name} in "
                    f"{images}, found no such file."
                )
