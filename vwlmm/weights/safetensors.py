"""A safetensors file by its header: eight bytes of length, JSON, then the tensors' bytes in one piece.

Read without the safetensors package where a file must be checked, or written while its tensors are still being made.
Format: https://github.com/huggingface/safetensors#format
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.weights.stored import Stored

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes, as in the package


class SafetensorsFile:
    """One file; the header is checked against the file's size when it is opened.

    Raises:
        ValueError: cut short, longer than it says, or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: dict[str, str] = {}
        header, start = _header(path)
        self.tensors: dict[str, Stored] = {}
        end = 0
        try:
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                first, last = entry["data_offsets"]
                stored = Stored(tuple(entry["shape"]), DTYPES[entry["dtype"]], start + first, last - first)
                expected = torch.Size(stored.shape).numel() * stored.dtype.itemsize
                if first != end or last - first != expected:
                    raise ValueError(f"{name} lies at {first} to {last}")
                self.tensors[name], end = stored, last
        except (KeyError, TypeError, ValueError, RuntimeError) as problem:
            raise ValueError(f"{path} is damaged: its header makes no sense ({problem}). Fetch it again.") from None
        size = path.stat().st_size
        if size < start + end:
            raise ValueError(
                f"{path} is cut short: {size} bytes of the {start + end} that its header tells. Fetch it again."
            )
        if size > start + end:
            raise ValueError(f"{path} is damaged: {size} bytes, but its header tells of {start + end}. Fetch it again.")

    def read(self, name: str) -> Tensor:
        stored = self.tensors[name]
        data = bytearray(stored.size)
        with self.path.open("rb") as file:
            file.seek(stored.offset)
            file.readinto(data)
        if not data:
            return torch.empty(stored.shape, dtype=stored.dtype)
        return torch.frombuffer(data, dtype=stored.dtype).reshape(stored.shape)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        size = path.stat().st_size
        if len(first) == 8 and length <= LARGEST_HEADER and 8 + length > size:
            raise ValueError(f"{path} is cut short: {size} bytes, in the middle of its header. Fetch it again.")
        if len(first) < 8 or not 2 <= length <= LARGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file, or its first bytes are damaged. Fetch it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError(f"{path} is damaged: its header is no JSON. Fetch it again.") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is damaged: its header is no JSON object. Fetch it again.")
    return header, 8 + length


def header_bytes(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """What a file begins with that holds these tensors in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
