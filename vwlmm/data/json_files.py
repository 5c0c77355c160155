"""Rows of JSON files, read one by one and found again by number.

A file is indexed once (three numbers a row) and never held in memory: 665,000 LLaVA rows cost 16 MB, not 5 GB.
"""

import codecs
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vwlmm.data.bad_row import BadRow
from vwlmm.data.records import Record, Records

CHUNK = 1 << 22  # bytes read at a time; a row longer than this is read in more than one go


class _JsonRecords(Records):
    """A JSON file whose rows are known by their place in it; a row is read from the file each time it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent

    @cached_property
    def places(self) -> np.ndarray:
        """Begin, end (bytes) and line or row number of each row, `[rows, 3]`."""
        numbers = itertools.chain.from_iterable(self._scan())
        return np.fromiter(numbers, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        begin, end, number = self.places[index].tolist()
        with self.path.open("rb") as file:  # opened anew each time, so that worker processes share nothing
            file.seek(begin)
            return self._record(index, number, file.read(end - begin))

    @abstractmethod
    def _scan(self) -> Iterator[tuple[int, int, int]]: ...

    @abstractmethod
    def _record(self, index: int, number: int, raw: bytes) -> Record: ...


class JsonArray(_JsonRecords):
    """One JSON list of rows, as LLaVA's files are."""

    def _scan(self) -> Iterator[tuple[int, int, int]]:
        for index, element in enumerate(scan_json_array(self.path)):
            yield element.begin, element.end, index

    def __iter__(self) -> Iterator[Record]:
        for index, element in enumerate(scan_json_array(self.path)):
            yield Record(f"{self.path.name} row {index}", index, element.value, element.text.encode())

    def _record(self, index: int, number: int, raw: bytes) -> Record:
        return Record(f"{self.path.name} row {number}", index, json.loads(raw), raw)


class JsonLines(_JsonRecords):
    """One row a line; empty lines are passed over but counted, so that a message names the line an editor shows."""

    def _scan(self) -> Iterator[tuple[int, int, int]]:
        begin = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield begin, begin + len(line), number
                begin += len(line)

    def __iter__(self) -> Iterator[Record]:
        index = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._record(index, number, line)
                    index += 1

    def _record(self, index: int, number: int, raw: bytes) -> Record:
        source, raw = f"{self.path.name} line {number}", raw.strip()
        try:
            return Record(source, index, json.loads(raw.removeprefix(codecs.BOM_UTF8)), raw)
        except json.JSONDecodeError as problem:
            found = f"malformed JSON at column {problem.colno}: {problem.msg}"
        except UnicodeDecodeError as problem:
            found = f"bytes that are not UTF-8 at column {problem.start + 1}"
        return Record(source, index, BadRow(source, str(index), "line", "one JSON object", found), raw)


class Element(NamedTuple):
    """One element of a JSON list: begin and end in bytes, its text and its value."""

    begin: int
    end: int
    text: str
    value: Any


def scan_json_array(path: Path) -> Iterator[Element]:
    """Walks over one JSON list without holding more than one element and a chunk of the file.

    Raises:
        ValueError: the document is broken; with line and column.
    """
    scanner = _ArrayScanner(path)
    with path.open("rb") as file:
        yield from scanner.elements(file)


class _ArrayScanner:
    """A window of text over the file: `text[at:]` is still to be read, `offset` is where `text[at]` lies in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        self.at = 0
        self.offset = 0
        self.ended = False
        self.decode = codecs.getincrementaldecoder("utf-8")()
        self.parse = json.JSONDecoder().raw_decode

    def elements(self, file: Any) -> Iterator[Element]:
        has_mark = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8  # files written on Windows begin with it
        self.offset = len(codecs.BOM_UTF8) if has_mark else 0
        file.seek(self.offset)
        self._expect(file, "[")
        if self._peek(file) == "]":
            self._advance(self.at + 1)
        else:
            while True:
                yield self._element(file)
                if self._expect(file, ",]") == "]":
                    break
        if self._peek(file):
            self._fail(self.at, "the end of the file after the list")

    def _element(self, file: Any) -> Element:
        self._peek(file)
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                # A number at the window's edge may go on behind it.
                if end < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError as problem:
                near_edge = problem.pos > len(self.text) - 16 or problem.msg.startswith("Unterminated string")
                if self.ended or not near_edge:
                    self._fail(problem.pos, f"valid JSON ({problem.msg})")
            self._read(file)
        begin, text = self.offset, self.text[self.at : end]
        self._advance(end)
        return Element(begin, self.offset, text, value)

    def _read(self, file: Any) -> None:
        """Drops what has been read and adds the next chunk; chunks grow with the row, so a long row costs no more."""
        self.text, self.at = self.text[self.at :], 0
        chunk = file.read(max(CHUNK, len(self.text)))
        self.ended = not chunk
        try:
            self.text += self.decode.decode(chunk, final=self.ended)
        except UnicodeDecodeError as problem:
            raise ValueError(
                f"{self.path}: expected UTF-8 text, found other bytes behind byte {self.offset}: {problem.reason}."
            ) from problem

    def _advance(self, end: int) -> None:
        self.offset += len(self.text[self.at : end].encode())
        self.at = end

    def _peek(self, file: Any) -> str:
        """The next character that is not white space, or an empty string at the end of the file."""
        while True:
            at = self.at
            while at < len(self.text) and self.text[at] in " \t\r\n":
                at += 1
            self._advance(at)
            if at < len(self.text) or self.ended:
                return self.text[at : at + 1]
            self._read(file)

    def _expect(self, file: Any, wanted: str) -> str:
        found = self._peek(file)
        if not found or found not in wanted:
            self._fail(self.at, " or ".join(repr(character) for character in wanted))
        self._advance(self.at + 1)
        return found

    def _fail(self, at: int, expected: str) -> None:
        before = self.text[self.at : at].encode()
        with self.path.open("rb") as file:
            head = file.read(self.offset) + before
        line, column = head.count(b"\n") + 1, len(head[head.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        found = repr(self.text[at : at + 20]) if at < len(self.text) else "the end of the file"
        raise ValueError(
            f"{self.path}: broken JSON at line {line}, column {column}: expected {expected}, found {found}. "
            "The file may have been cut off while it was copied."
        )
