"""Webdataset shards: files of a tar that share a name are one row, found by its place and read when it is asked for."""

import bisect
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vwlmm.data.bad_row import BadRow
from vwlmm.data.records import Record, Records

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
TEXTS = (".txt", ".caption")

Place = tuple[str, str, int, int]  # row's key, suffix, begin, length


class TarRecords(Records):
    """Rows of one or more tar shards: `{"__key__", image: bytes, caption: text}`, with the fields of a row's `.json` beside.

    Only headers are read at first; a row costs some hundred bytes of memory, a picture none until it is asked for.

    Raises:
        ValueError: a shard that cannot be read to its end, or that holds nothing.
    """

    def __init__(self, shards: list[Path], image_column: str, caption_column: str) -> None:
        self.shards = shards
        self.folder = shards[0].parent
        self.columns = image_column, caption_column
        self.rows: list[list[Place]] = []
        self.first: list[int] = []  # number of each shard's first row
        for shard in shards:
            self.first.append(len(self.rows))
            self.rows.extend(_scan(shard))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        shard = self.shards[bisect.bisect_right(self.first, index) - 1]
        places = self.rows[index]
        source, key = f"{shard.name} key {places[0][0]}", places[0][0]
        value: dict[str, Any] = {"__key__": key}
        with shard.open("rb") as file:
            for _, suffix, begin, length in places:
                file.seek(begin)
                data = file.read(length)
                try:
                    value |= self._column(suffix, data)
                except ValueError as problem:
                    return Record(source, index, BadRow(source, key, suffix, "UTF-8 text or JSON", str(problem)))
        return Record(source, index, value)

    def _column(self, suffix: str, data: bytes) -> dict[str, Any]:
        image, caption = self.columns
        if suffix in PICTURES:
            return {image: data}
        if suffix in TEXTS:
            return {caption: data.decode().strip()}
        if suffix == ".json":
            inner = json.loads(data)
            return inner if isinstance(inner, dict) else {"json": inner}
        return {}


def _scan(shard: Path) -> list[list[Place]]:
    """The rows of a shard as places of their files."""
    rows: list[list[Place]] = []
    end = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // 512) * 512
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not rows or rows[-1][0][0] != key:
                    rows.append([])
                rows[-1].append((key, f".{suffix.lower()}", member.offset_data, member.size))
    except (tarfile.TarError, EOFError, OSError) as problem:
        raise _broken(shard, len(rows), str(problem)) from problem
    # tarfile passes over a cut at the end without a word: neither the last file nor the end mark is looked at.
    if not rows or shard.stat().st_size < end + 1024:
        raise _broken(shard, len(rows), "it ends in the middle" if rows else "it holds no file")
    return rows


def _broken(shard: Path, rows: int, problem: str) -> ValueError:
    return ValueError(
        f"{shard}: expected a whole tar shard, could read {rows} rows of it: {problem}. Fetch it again, or leave it out of "
        "data.path; a run that was cut short goes on from its last checkpoint."
    )
