"""A `.bin` file (a PyTorch zip archive) by its pickle, which is read with `weights_only=True`: names and places, no code.

The tensors' bytes are then read one storage at a time and compared with the archive's own CRC-32.
"""

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.weights.stored import Stored

AGAIN = "Fetch it again."


class PickledFile:
    """One file; its table of contents is read when it is opened.

    A file of PyTorch before 1.6 is no archive: it is read whole, and cannot be checked byte by byte.

    Raises:
        ValueError: cut short, damaged, holds code, or is no table of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored: dict[str, str] = {}
        self.tensors: dict[str, Stored] = {}
        self._whole: dict[str, Tensor] = {}
        self._crcs: dict[int, tuple[int, int]] = {}
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
        if is_archive:
            self._crcs = _record_crcs(path)
        table = _unpickled(path, fake=is_archive)
        if not isinstance(table, dict):
            raise ValueError(f"{path} holds a {type(table).__name__}: expected a table of named tensors.")
        for name, tensor in table.items():
            if not isinstance(tensor, Tensor):
                self.ignored[str(name)] = f"no tensor but a {type(tensor).__name__}"
            elif is_archive:
                self.tensors[str(name)] = _stored(tensor)
            else:
                self.tensors[str(name)] = Stored(tuple(tensor.shape), tensor.dtype, 0, tensor.nbytes)
                self._whole[str(name)] = tensor.detach()
        if not self.tensors:
            raise ValueError(f"{path} holds no tensors at its top level, but: {', '.join(list(self.ignored)[:8])}.")

    def read(self, name: str) -> Tensor:
        if name in self._whole:
            return self._whole[name]
        stored = self.tensors[name]
        data = bytearray(stored.size)
        with self.path.open("rb") as file:
            file.seek(stored.offset)
            got = file.readinto(data)
        crc, size = self._crcs.get(stored.offset, (0, stored.size))
        # 0: PyTorch was told to leave the sums out when the file was saved.
        if got < stored.size or (crc and size == stored.size and zlib.crc32(data) != crc):
            raise ValueError(f"{self.path} is damaged: the bytes of {name} are not those that were written. {AGAIN}")
        if not data:
            return torch.empty(stored.shape, dtype=stored.dtype)
        flat = torch.frombuffer(data, dtype=stored.dtype)
        return flat.as_strided(stored.shape, stored.stride or (), stored.start)


def _record_crcs(path: Path) -> dict[int, tuple[int, int]]:
    """CRC-32 and size of every record of the archive, by where its bytes begin; the pickle's own is compared here."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {}
            for record in archive.infolist():
                file.seek(record.header_offset + 26)
                lengths = file.read(4)
                names = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                records[record.header_offset + 30 + names] = (record.CRC, record.file_size)
                if record.filename.endswith("data.pkl") and record.CRC:
                    archive.read(record)
            return records
    except (zipfile.BadZipFile, OSError, EOFError) as problem:
        kind = "cut short" if "not a zip file" in str(problem) else "damaged"
        raise ValueError(f"{path} is {kind}: {problem}. {AGAIN}") from None


def _unpickled(path: Path, *, fake: bool) -> Any:
    """The pickled table, without running code; `fake` reads shapes and places but no tensor's bytes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        if fake:
            with FakeTensorMode():
                return torch.load(path, weights_only=True)
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as problem:
        code = re.search(r"GLOBAL (\S+)", str(problem))
        if code:
            raise ValueError(
                f"{path} is a pickle that would run {code.group(1)}: it was not run and nothing was read. Only tensors are "
                "taken from a .bin; get the weights as safetensors from a source you trust."
            ) from None
        raise ValueError(f"{path} is damaged, or holds more than tensors: {_first_line(problem)}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as problem:
        raise ValueError(f"{path} is damaged: {_first_line(problem)} {AGAIN}") from None


def _first_line(problem: Exception) -> str:
    return str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__


def _stored(tensor: Tensor) -> Stored:
    storage: Any = tensor.untyped_storage()
    return Stored(
        tuple(tensor.shape),
        tensor.dtype,
        storage._checkpoint_offset,
        storage.nbytes(),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
    )
