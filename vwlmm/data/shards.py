"""Web-scale image–caption pairs: webdataset tar shards and sets of Parquet files, read as a stream.

A shard or a pair that cannot be read is a bad row like any other: reported, counted, and by default left out.
Layouts: webdataset and img2dataset (`KEY.jpg` with `KEY.txt` or `KEY.json`; Parquet with `image` or `jpg`, and `caption`).
"""

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vwlmm.data.bad_row import BadRow
from vwlmm.data.records import Record, Records

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
IMAGE_COLUMNS, CAPTION_COLUMNS = ("image", "jpg", "png"), ("caption", "text", "TEXT")
SHARDS = (".tar", ".parquet")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_sharded(path: str | Path) -> bool:
    """True for what this file reads: a .tar, or a pattern (`{00000..00331}.tar`, `part-*.parquet`) of either kind."""
    text = str(path)
    return text.endswith(".tar") or (text.endswith(".parquet") and bool(_RANGE.search(text) or set("*?[") & set(text)))


def expand(pattern: str | Path) -> list[Path]:
    """The shards of a pattern: `{000..331}` counts, `*`, `?` and `[…]` match what is there.

    Raises:
        FileNotFoundError: a pattern that matches nothing, or not one shard that is there.
        ValueError: a range that counts down.
    """
    texts = [str(pattern)]
    while any(_RANGE.search(text) for text in texts):
        texts = [filled for text in texts for filled in _fill(text)]
    found = [Path(name) for text in texts for name in (sorted(glob.glob(text)) if set("*?[") & set(text) else [text])]
    if not any(path.is_file() for path in found):
        raise FileNotFoundError(f"Shards were expected at {pattern}: none of the {len(texts)} is there.")
    return found


def _fill(text: str) -> list[str]:
    match = _RANGE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    if int(last) < int(first):
        raise ValueError(f"{text}: a range of shards counts up, got {match.group()}.")
    return [
        text[: match.start()] + str(number).zfill(len(first)) + text[match.end() :]
        for number in range(int(first), int(last) + 1)
    ]


class ShardedPairs(Records):
    """The pairs of many shards, one shard after the other; only the pair at hand is in memory.

    A shard that is missing, broken or cut off is one bad row, and the pairs before the damage are read.
    """

    def __init__(self, pattern: str | Path) -> None:
        self.pattern = str(pattern)
        self.shards = expand(pattern)
        self.folder = self.shards[0].parent

    def __len__(self) -> int:
        raise ValueError(f"{self.pattern}: shards are read as a stream and have no length: set data.streaming: true.")

    def __getitem__(self, index: int) -> Record:
        raise ValueError(f"{self.pattern}: shards are read as a stream: set data.streaming: true.")

    def __iter__(self) -> Iterator[Record]:
        index = itertools.count()
        for shard in self.shards:
            number = 0
            read = _tar_pairs if shard.suffix == ".tar" else _parquet_pairs
            try:
                for key, value in read(shard):
                    number += 1
                    yield Record(f"{shard.name} pair {key}", next(index), _checked(shard, key, value))
            # zlib and pyarrow have errors of their own for damage; ArrowInvalid is a ValueError, BadGzipFile an OSError.
            except (OSError, EOFError, ValueError, tarfile.TarError) as problem:
                expected = "a shard that can be read to its end"
                found = f"{type(problem).__name__}: {problem} (after {number} pairs)"
                yield Record(str(shard), next(index), BadRow(str(shard), shard.name, "shard", expected, found))


def _tar_pairs(shard: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Groups of members with one key, as webdataset has it: what stands before the first dot of the name."""
    with tarfile.open(shard, "r|*") as archive:
        key, value = None, {}  # type: ignore[var-annotated]
        for member in archive:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            here = f"{folder}/{stem}" if folder else stem
            if here != key:
                if key is not None:
                    yield key, value
                key, value = here, {}
            content = archive.extractfile(member)
            assert content is not None  # a file, as was asked
            value["." + suffix.lower()] = content.read()
        if key is not None:
            yield key, value
    # A tar that is cut between two members reads as if it ended there, but for the zeros that close it.
    if shard.stat().st_size % tarfile.BLOCKSIZE and _is_plain_tar(shard):
        raise tarfile.ReadError("the archive ends in the middle of a block")


def _is_plain_tar(shard: Path) -> bool:
    with shard.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def _parquet_pairs(shard: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(shard) as file:
        rows = (row for batch in file.iter_batches(batch_size=64) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield str(number), row


def _checked(shard: Path, key: str, value: dict[str, Any]) -> dict[str, Any] | BadRow:
    """A pair as `parse_record` reads it, or what is missing of it."""
    source = f"{shard.name} pair {key}"
    try:
        image, caption = _tar_parts(value) if shard.suffix == ".tar" else _parquet_parts(value)
    except (ValueError, UnicodeDecodeError) as problem:
        return BadRow(source, key, "caption", "text in UTF-8, or JSON with `caption`", str(problem))
    found = ", ".join(value) or "nothing"
    if image is None:
        return BadRow(source, key, "image", f"a picture ({', '.join(PICTURES)}; column image or jpg)", found)
    if caption is None:
        return BadRow(source, key, "caption", "a caption (.txt or .json; column caption or text)", found)
    if not caption.strip():
        return BadRow(source, key, "caption", "some text", "an empty caption")
    return {"id": key, "image": image, "caption": caption.strip()}


def _tar_parts(value: dict[str, Any]) -> tuple[Any, str | None]:
    image = next((value[name] for name in PICTURES if name in value), None)
    if ".txt" in value:
        return image, value[".txt"].decode("utf-8")
    if ".json" in value:
        caption = json.loads(value[".json"]).get("caption")
        return image, caption if caption is None else str(caption)
    return image, None


def _parquet_parts(value: dict[str, Any]) -> tuple[Any, str | None]:
    image = next((value[name] for name in IMAGE_COLUMNS if value.get(name) is not None), None)
    caption = next((value[name] for name in CAPTION_COLUMNS if value.get(name) is not None), None)
    return image, caption if caption is None else str(caption)
