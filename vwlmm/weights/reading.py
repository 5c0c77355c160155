"""Reading weight files tensor by tensor: safetensors, and `.bin` without ever running what a pickle says.

weights = open_weights("checkpoints/vw-lmm-vicuna-7b"); weights.read("vm_head.weight")
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from vwlmm.weights.pickled import PickledFile
from vwlmm.weights.safetensors import SafetensorsFile
from vwlmm.weights.stored import Stored

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


class WeightFile(Protocol):
    """One file of named tensors, its header read and checked."""

    path: Path
    tensors: dict[str, Stored]
    ignored: dict[str, str]

    def read(self, name: str) -> Tensor: ...


@dataclass
class WeightFiles:
    """All tensors of a checkpoint by name; opened by header, read one at a time.

    Attributes:
        tensors: shape and dtype by name.
        ignored: entries of a `.bin` that are no tensors, with the reason.
    """

    files: list[WeightFile]
    tensors: dict[str, Stored] = field(init=False)
    ignored: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._file = {name: file for file in self.files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._file.items()}
        self.ignored = {name: reason for file in self.files for name, reason in file.ignored.items()}

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            ValueError: its bytes are not those that were written, as far as the file lets one know.
        """
        return self._file[name].read(name)


def open_weights(source: str | Path) -> WeightFiles:
    """Opens the weights of a folder, or one weight file, by their headers.

    Raises:
        FileNotFoundError: no weights there, or the index names a shard that is not there.
        ValueError: a file is cut short or damaged, a pickle holds code, or the index names tensors that no shard holds.
    """
    source = Path(source)
    if source.is_file():
        return WeightFiles([open_file(source)])
    for single in SINGLE_FILES:
        index = source / f"{single}.index.json"
        if index.is_file():
            return _open_shards(index)
        if (source / single).is_file():
            return WeightFiles([open_file(source / single)])
    raise FileNotFoundError(
        f"{source} holds no weights: expected model.safetensors, pytorch_model.bin, or one of their index files with its shards."
    )


def open_file(path: Path) -> WeightFile:
    """One file, told by its suffix."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return PickledFile(path)
    raise ValueError(f"{path} is no weight file: expected .safetensors or .bin.")


def read_index(index: Path) -> dict[str, str]:
    """The file of each tensor, from an index file.

    Raises:
        FileNotFoundError: a shard that the index names is not there.
        ValueError: the index is not readable.
    """
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = {str(name): str(shard) for name, shard in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged: expected JSON with a weight_map from tensors to shards.") from None
    absent = sorted({shard for shard in shards.values() if not (index.parent / shard).is_file()})
    if absent:
        raise FileNotFoundError(
            f"{index} names {len(absent)} of {len(set(shards.values()))} shards that are not there: {', '.join(absent)}. "
            "Download the missing files."
        )
    return shards


def _open_shards(index: Path) -> WeightFiles:
    places = read_index(index)
    weights = WeightFiles([open_file(index.parent / shard) for shard in sorted(set(places.values()))])
    lost = sorted(name for name in places if name not in weights.tensors)
    if lost:
        raise ValueError(
            f"{index} names {len(lost)} tensors that its shards do not hold: {', '.join(lost[:8])}. Download the shards again."
        )
    return weights
