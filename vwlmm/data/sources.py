"""Where rows lie: a JSON list, JSON lines, Parquet or any `datasets` source, read one by one and found again by number.

A JSON file is indexed once (three numbers a row) and never held in memory: 665,000 LLaVA rows cost 16 MB, not 5 GB.
"""

import codecs
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vwlmm.data.bad_row import BadRow

CHUNK = 1 << 22  # bytes read at a time; a row longer than this is read in more than one go


@dataclass(frozen=True)
class Record:
    """One row as it lies in the file.

    `value` is what was read, or the BadRow that says why it could not be; `raw` the row's own bytes in a JSON file,
    so that a clean file can repeat it unchanged, and empty for other sources.
    """

    source: str
    index: int
    value: Any
    raw: bytes = b""


class Records(ABC):
    """Rows of one source, in order. `len()` and `[i]` build an index on first use; iterating needs none."""

    folder: Path  # where relative image paths start when no image folder is given

    @abstractmethod
    def __iter__(self) -> Iterator[Record]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...


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


class DatasetRecords(Records):
    """Rows of a `datasets` dataset (memory-mapped Arrow) or, streaming, an iterable one.

    Rows are read as Arrow, so images arrive as their encoded bytes and path and nothing is decoded or copied on disk.
    """

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        self.dataset = dataset.with_format("arrow")
        self.name = name
        self.folder = folder

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.name} row {index}", index, self.dataset[int(index)].to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        # By batches: iterated plainly in a DataLoader worker, an iterable dataset keeps only its share of files,
        # and the caller already keeps only its share of rows.
        tables = self.dataset.iter(batch_size=16)
        rows = itertools.chain.from_iterable(table.to_pylist() for table in tables)
        for index, row in enumerate(rows):
            yield Record(f"{self.name} row {index}", index, row)


def open_records(path_or_name: str | Path, *, split: str | None = None, streaming: bool = False) -> Records:
    """Finds the reader for a source: by content for .json and .jsonl, else through `datasets`.

    Args:
        path_or_name: a .json, .jsonl or .parquet file, a folder (saved dataset or data files), or a dataset's name.
        split: of a dataset; `train` where a source has several and none is named.
        streaming: for `datasets` sources, rows are read as they come and the source has no length.

    Raises:
        FileNotFoundError: a data file that is not there.
        ValueError: a JSON file that holds no rows, or an unknown kind of file.
    """
    path = Path(path_or_name)
    if path.suffix in (".json", ".jsonl"):
        if not path.is_file():
            raise FileNotFoundError(f"Data were expected at {path}: there is no such file.")
        return _open_json(path)
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(
            f"{path}: expected .json, .jsonl, .parquet, a folder or a dataset's name, got a {path.suffix!r} file."
        )
    return _open_dataset(str(path_or_name), path, split, streaming)


def _open_json(path: Path) -> Records:
    if path.suffix == ".jsonl":
        return JsonLines(path)
    with path.open("rb") as file:
        first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
    if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return JsonArray(path)
    # JSON lines under the wrong name are read; one object spread over many lines is not a list of rows.
    try:
        json.loads(first.decode("utf-8-sig"))
    except ValueError as problem:
        raise ValueError(f"{path}: expected a JSON list of rows, got a file that begins {first[:20]!r}.") from problem
    return JsonLines(path)


def _open_dataset(name: str, path: Path, split: str | None, streaming: bool) -> Records:
    import datasets

    if path.suffix == ".parquet":
        if not path.is_file():
            raise FileNotFoundError(f"Data were expected at {path}: there is no such file.")
        dataset = datasets.load_dataset("parquet", data_files=str(path), split=split or "train", streaming=streaming)
        name = path.name
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, datasets.DatasetDict):
            if (split or "train") not in dataset:
                raise ValueError(f"{path}: expected a split named {split or 'train'!r}, got {', '.join(dataset)}.")
            dataset = dataset[split or "train"]
        if streaming:
            dataset = dataset.to_iterable_dataset()
    else:
        dataset = datasets.load_dataset(name, split=split or "train", streaming=streaming)
    return DatasetRecords(dataset, name, path if path.is_dir() else path.parent)


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


def describe_bytes(value: Any) -> Any:
    """The same row as plain JSON: embedded pictures become `<123 bytes>`, for the quarantine file."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(name): describe_bytes(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [describe_bytes(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
