"""The good rows of a file, written as they were; and files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vwlmm.data.json_files import JsonArray
from vwlmm.data.records import Record, Records
from vwlmm.data.sources import DatasetRecords


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's file is readable by its owner alone
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class _CleanJson:
    """Good rows of a JSON file, byte for byte: a list as a list, lines as lines."""

    def __init__(self, file: IO[bytes], is_array: bool) -> None:
        self.file = file
        self.is_array = is_array
        self.separator = b"[\n" if is_array else b""

    def add(self, record: Record) -> None:
        self.file.write(self.separator + record.raw)
        self.separator = b",\n" if self.is_array else b"\n"

    def close(self) -> None:
        if self.is_array:
            self.file.write(b"[]\n" if self.separator == b"[\n" else b"\n]\n")
        elif self.separator:
            self.file.write(b"\n")


class _CleanDataset:
    """Good rows of a dataset, as Parquet with the same columns."""

    def __init__(self, file: IO[bytes], dataset: Any) -> None:
        self.file = file
        self.dataset = dataset
        self.good: list[int] = []

    def add(self, record: Record) -> None:
        self.good.append(record.index)

    def close(self) -> None:
        self.dataset.select(self.good).to_parquet(self.file)


@contextmanager
def clean_writer(path: Path, records: Records) -> Iterator[_CleanJson | _CleanDataset]:
    if isinstance(records, DatasetRecords) and path.suffix != ".parquet":
        raise ValueError(
            f"{path}: good rows of a dataset are written as Parquet, expected a name that ends in .parquet."
        )
    if not isinstance(records, DatasetRecords) and path.suffix not in (".json", ".jsonl"):
        raise ValueError(
            f"{path}: good rows keep the format of their file, expected a name that ends in .json or .jsonl."
        )
    with atomic_file(path) as file:
        if isinstance(records, DatasetRecords):
            writer: _CleanJson | _CleanDataset = _CleanDataset(file, records.dataset)
        else:
            writer = _CleanJson(file, isinstance(records, JsonArray))
        yield writer
        writer.close()
