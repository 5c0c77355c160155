"""Captions with their pictures, read shard by shard and never held whole: JSON, JSON lines, Parquet, webdataset tar."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vwlmm.data.bad_row import BadRow
from vwlmm.data.sources import open_records
from vwlmm.data.tar_files import TarRecords

KINDS = (".json", ".jsonl", ".parquet", ".tar")
ENDS = 1 << 16  # bytes at each end of a shard that go into its fingerprint


class BrokenShard(ValueError):
    """A shard that cannot be read to its end."""


@dataclass(frozen=True)
class Fields:
    """What the columns are called."""

    caption: str = "caption"
    image: str = "image"  # a path, a URL, or encoded bytes


@dataclass(frozen=True)
class Pair:
    """One row: its caption, and whatever else lies beside it."""

    source: str  # shard and row or key, for messages
    caption: str
    value: dict[str, Any] = field(repr=False)


def find_shards(paths: list[str | Path]) -> list[Path]:
    """The shard files: each path is a file or a folder of them; in the order given, a folder's by name.

    Raises:
        FileNotFoundError: no such path, or a folder without a shard.
        ValueError: a file of another kind, or the same file twice.
    """
    shards: list[Path] = []
    for path in map(Path, paths):
        found = sorted(p for p in path.iterdir() if p.suffix in KINDS) if path.is_dir() else [path]
        if not found or not all(p.is_file() for p in found):
            raise FileNotFoundError(f"{path}: expected a shard or a folder of shards ({', '.join(KINDS)}), found none.")
        shards += found
    for shard in shards:
        if shard.suffix not in KINDS:
            raise ValueError(f"{shard}: expected a shard that ends in {', '.join(KINDS)}.")
    resolved = [shard.resolve() for shard in shards]
    twice = next((shard for shard in shards if resolved.count(shard.resolve()) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: its captions would be chosen twice. Name each shard once.")
    return shards


def fingerprint(shard: Path) -> dict[str, Any]:
    """Size and a digest of both ends: enough to notice that a shard is another one than before, without reading it."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, size - ENDS))
        digest = hashlib.sha256(head + file.read(ENDS)).hexdigest()
    return {"name": shard.name, "bytes": size, "sha256_of_ends": digest}


def read_pairs(shard: Path, fields: Fields, *, captions_only: bool = False) -> Iterator[Pair | BadRow]:
    """Every row of a shard in order; a row without a caption in words is yielded as a BadRow.

    Args:
        shard: the file.
        fields: names of its columns.
        captions_only: leave the pictures and other columns of Parquet shards unread.

    Raises:
        BrokenShard: the file cannot be read to its end; rows before the break have been yielded.
    """
    reader = {".parquet": _read_parquet, ".tar": _read_tar}.get(shard.suffix, _read_json)
    number = 0
    try:
        for number, (source, value) in enumerate(reader(shard, fields, captions_only), start=1):
            yield value if isinstance(value, BadRow) else _pair(source, number - 1, value, fields)
    except (OSError, EOFError, ValueError) as problem:  # pyarrow's errors among them
        raise BrokenShard(
            f"{shard}: expected a whole {shard.suffix} shard, could read {number} rows of it: {problem}. "
            "Fetch it again, or go on without its rest with --on-bad quarantine."
        ) from problem


def _pair(source: str, index: int, value: Any, fields: Fields) -> Pair | BadRow:
    if not isinstance(value, dict):
        return BadRow(source, str(index), "row", "an object with a caption", type(value).__name__)
    row_id = str(value.get("id", value.get("__key__", index)))
    caption = value.get(fields.caption)
    if not isinstance(caption, str):
        has = (
            f"columns {', '.join(map(str, value))}" if caption is None else f"{type(caption).__name__} {caption!r:.60}"
        )
        return BadRow(source, row_id, fields.caption, "a caption in words", has)
    if not caption.strip():
        return BadRow(source, row_id, fields.caption, "a caption in words", "an empty caption")
    return Pair(source, caption, value)


def _read_json(shard: Path, fields: Fields, captions_only: bool) -> Iterator[tuple[str, Any]]:
    for record in open_records(shard):
        yield record.source, record.value


def _read_parquet(shard: Path, fields: Fields, captions_only: bool) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(shard) as file:
        columns = file.schema_arrow.names
        if fields.caption not in columns:
            raise ValueError(
                f"it has no column '{fields.caption}' but {', '.join(columns)}; name it with --caption-field"
            )
        wanted = [c for c in (fields.caption, "id") if c in columns] if captions_only else columns
        index = 0
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for value in batch.to_pylist():
                yield f"{shard.name} row {index}", value
                index += 1


def _read_tar(shard: Path, fields: Fields, captions_only: bool) -> Iterator[tuple[str, Any]]:
    for record in TarRecords([shard], fields.image, fields.caption):
        yield record.source, record.value
