"""One row as it lies in its source, and the interface of a source of rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One row as it lies in the file.

    `value` is what was read, or the BadRow that says why it could not be; `raw` the row's own bytes in a JSON file,
    so that a clean file can repeat it unchanged, and empty for other sources.
    """

    source: str
    index: int
    value: Any
    raw: bytes = b""


class Records(ABC):
    """Rows of one source, in order. `len()` and `[i]` build an index on first use; iterating needs none."""

    folder: Path  # where relative image paths start when no image folder is given

    @abstractmethod
    def __iter__(self) -> Iterator[Record]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...


def describe_bytes(value: Any) -> Any:
    """The same row as plain JSON: embedded pictures become `<123 bytes>`, for the quarantine file."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(name): describe_bytes(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [describe_bytes(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
