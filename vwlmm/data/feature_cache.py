"""Features of frozen towers on disk: made once, memory-mapped ever after, and refused where they belong to something else.

A folder holds `key.json` (what the features are of), `features.bin`, and `rows.npy` (each row's place and checksum).
"""

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# How bytes on disk are seen by numpy, which has no bfloat16.
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


@dataclass(frozen=True)
class CacheKey:
    """What features are of. Two caches with equal keys hold equal features."""

    tower: str  # hub id or folder
    revision: str | None
    fingerprint: str | None  # of the tower's weights
    reading: str  # which layer, which tokens
    preprocessing: str  # digest of image processor or tokenizer with its length
    dtype: str
    pairs: str  # digest of the rows, in order


class FeatureCache:
    """Features by row number, `[tokens, width]`, read from the disk when asked for.

    Raises:
        FileNotFoundError: no cache there.
        ValueError: it holds features of something else, with the field; or it is damaged.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        if not (folder / "key.json").is_file():
            raise FileNotFoundError(f"Features were expected in {folder}: there are none.")
        saved = json.loads((folder / "key.json").read_text())
        for name, wanted in asdict(key).items():
            if saved["key"].get(name) != wanted:
                raise ValueError(
                    f"The feature cache {folder} is of another {_MEANING[name]}: {saved['key'].get(name)!r} there, {wanted!r} "
                    "here. Give data.cache another folder, or delete this one to have it made again."
                )
        self.folder, self.dtype, self.width = folder, key.dtype, int(saved["width"])
        self.rows = np.load(folder / "rows.npy")  # [rows, 3]: first token, tokens, checksum
        size = int(self.rows[:, 1].sum()) * self.width * np.dtype(STORED[key.dtype]).itemsize
        found = (folder / "features.bin").stat().st_size
        if found != size:
            raise ValueError(
                f"The feature cache {folder} is damaged: features.bin has {found:,} bytes, expected {size:,}. Delete the folder "
                "to have it made again."
            )
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """One row's features, `[tokens, width]`; no tokens for a row that could not be read when the cache was made.

        Raises:
            ValueError: the bytes are not those that were written.
        """
        first, tokens, checksum = self.rows[index].tolist()
        if not tokens:
            return torch.empty(0, self.width, dtype=getattr(torch, self.dtype))
        if self._map is None:  # opened in the worker that reads
            self._map = np.memmap(self.folder / "features.bin", STORED[self.dtype], "r").reshape(-1, self.width)
        values = np.array(self._map[first : first + tokens])
        if zlib.crc32(values.data) != checksum:
            raise ValueError(
                f"The feature cache {self.folder} is damaged: row {index} is not what was written. Delete the folder to have it "
                "made again."
            )
        stored = torch.from_numpy(values)
        return stored.view(torch.bfloat16) if self.dtype == "bfloat16" else stored

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}


def make_cache(folder: Path, key: CacheKey, tokens: np.ndarray, width: int, features: Iterable[Tensor]) -> None:
    """Writes a cache; the folder appears when it is whole.

    Args:
        folder: where to; must not exist.
        key: what the features are of.
        tokens: how many tokens each row will have at most, `[rows]`: the size is said, and looked for, before anything is
            written.
        width: of a token.
        features: each row's, `[tokens, width]`, in order; none (`[0, width]`) for a row that cannot be read.

    Raises:
        OSError: the disk has not that much room.
        ValueError: the features are not as many as was said.
    """
    size = int(tokens.sum()) * width * np.dtype(STORED[key.dtype]).itemsize
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    logger.warning(
        "feature cache %s: %s rows, %s tokens of %d × %s: %.1f MB (free: %.0f MB)",
        folder, f"{len(tokens):,}", f"{int(tokens.sum()):,}", width, key.dtype, size / 1e6, free / 1e6,
    )  # fmt: skip
    if size > free:
        raise OSError(
            f"The feature cache would take {size / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB left: give "
            "data.cache a folder elsewhere, a smaller data.cache_dtype, or leave it out."
        )
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / folder.name
        unfinished.mkdir()
        rows = _write_features(unfinished / "features.bin", key.dtype, width, features)
        if len(rows) != len(tokens):
            raise ValueError(f"The feature cache {folder} was to have {len(tokens)} rows, got {len(rows)}.")
        np.save(unfinished / "rows.npy", rows)
        (unfinished / "key.json").write_text(json.dumps({"key": asdict(key), "width": width}, indent=1))
        os.replace(unfinished, folder)


def _write_features(path: Path, dtype: str, width: int, features: Iterable[Tensor]) -> np.ndarray:
    rows, first = [], 0
    with path.open("wb") as file:
        for row in features:
            if row.shape[1] != width:
                raise ValueError(f"A row's features are {row.shape[1]} wide, expected {width}.")
            stored = row.detach().to("cpu", getattr(torch, dtype)).contiguous()
            values = (stored.view(torch.uint16) if dtype == "bfloat16" else stored).numpy()
            rows.append((first, len(values), zlib.crc32(values.data)))
            first += len(values)
            file.write(values.data)
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


_MEANING = {
    "tower": "tower",
    "revision": "revision of the tower",
    "fingerprint": "tower, by its weights",
    "reading": "layer or choice of tokens",
    "preprocessing": "preprocessing",
    "dtype": "dtype",
    "pairs": "set of pairs",
}
