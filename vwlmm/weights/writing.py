"""Writing safetensors shards tensor by tensor: no more than one tensor is in memory, and the sums are made on the way.

write_shards(folder, {"vm_head.weight": Planned(torch.bfloat16, (32000, 4096), lambda: tensor)})
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vwlmm.models.checksums import write_checksums
from vwlmm.weights.safetensors import header_bytes

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Planned:
    """A tensor to be written, made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(
    folder: Path,
    tensors: dict[str, Planned],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Writes `model.safetensors`, or shards and their index, and `checksums.json`."""
    from tqdm import tqdm

    shards = list(_shards(tensors, max_shard_bytes))
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    total = sum(planned.size for planned in tensors.values())
    sums = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=not progress) as bar:
        for name, shard in zip(names, shards, strict=True):
            sums[name] = _write_file(folder / name, shard, bar.update)
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_checksums(folder, sums)


def _shards(tensors: dict[str, Planned], max_shard_bytes: int) -> Iterator[dict[str, Planned]]:
    shard: dict[str, Planned] = {}
    for name, planned in tensors.items():
        if shard and sum(other.size for other in shard.values()) + planned.size > max_shard_bytes:
            yield shard
            shard = {}
        shard[name] = planned
    yield shard


def _write_file(path: Path, shard: dict[str, Planned], written: Callable[[int], object]) -> str:
    """Writes one file; returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = header_bytes({name: (planned.dtype, planned.shape) for name, planned in shard.items()})
        file.write(header)
        digest.update(header)
        for name, planned in shard.items():
            tensor = planned.make()
            if tuple(tensor.shape) != planned.shape:
                raise AssertionError(f"{name}: planned {planned.shape}, made {tuple(tensor.shape)}")
            tensor = tensor.detach().to(planned.dtype).contiguous()
            data = memoryview(cast(Any, tensor.reshape(-1).view(torch.uint8).numpy()))
            file.write(data)
            digest.update(data)
            written(len(data))
    return digest.hexdigest()
