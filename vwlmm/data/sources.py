"""Finds the reader for a source of rows: a JSON list, JSON lines, Parquet, or anything that `datasets` reads."""

import codecs
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vwlmm.data.json_files import JsonArray, JsonLines
from vwlmm.data.records import Record, Records
from vwlmm.data.shards import ShardedPairs, is_sharded


def open_records(path_or_name: str | Path, *, split: str | None = None, streaming: bool = False) -> Records:
    """Finds the reader for a source: by content for .json and .jsonl, else through `datasets`.

    Args:
        path_or_name: a .json, .jsonl or .parquet file, a folder (saved dataset or data files), a dataset's name, or a
            pattern of tar or Parquet shards, which are read as a stream.
        split: of a dataset; `train` where a source has several and none is named.
        streaming: for `datasets` sources, rows are read as they come and the source has no length.

    Raises:
        FileNotFoundError: a data file that is not there.
        ValueError: a JSON file that holds no rows, or an unknown kind of file.
    """
    path = Path(path_or_name)
    if is_sharded(path_or_name):
        if not streaming:
            raise ValueError(
                f"{path_or_name}: shards are read as a stream, so train on them with data.streaming: true, which lists and "
                "counts bad shards and pairs as it goes; nothing else reads them by number."
            )
        return ShardedPairs(path_or_name)
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
