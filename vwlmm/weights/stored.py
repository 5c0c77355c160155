"""What is known of a tensor before it is read."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stored:
    """Shape, dtype and place of a tensor in its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # bytes from the start of the file
    size: int  # bytes to read there; of a `.bin` the whole storage that the tensor looks into
    stride: tuple[int, ...] | None = None  # of a `.bin`, in elements
    start: int = 0  # of a `.bin`: the first element in the storage
