"""Checkpoints that are whole or not there: a list of their files is written last, and a resume trusts nothing without it.

checkpoint = last_whole_checkpoint(Path("checkpoints/my_run"))
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

MARKER = "checkpoint.json"


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end and still has every file at its full size."""
    folders = [p for p in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    newest_first = sorted(folders, key=lambda folder: -int(folder.name.rsplit("-", 1)[1]))
    return next((folder for folder in newest_first if is_whole(folder)), None)


def is_whole(folder: Path) -> bool:
    """True when every file that the marker lists is there in the size it was written with."""
    marker = read_marker(folder)
    if marker is None:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in marker["files"].items()
    )


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What `mark_whole` wrote, or None where it did not come to its end."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return marker if isinstance(marker, dict) and "files" in marker else None


def mark_whole(folder: Path, **facts: Any) -> None:
    """Says that the folder is whole: forces its files to the disk, then writes their names and sizes in one move.

    Args:
        folder: a checkpoint that every rank has finished writing.
        facts: of the run that a resume compares with its own (processes, sharding).
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            # A machine that loses power may otherwise keep the marker and lose what it speaks of.
            _to_disk(path)
            files[str(path.relative_to(folder))] = path.stat().st_size
    unfinished = folder / f".{MARKER}"
    unfinished.write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")
    _to_disk(unfinished)
    os.replace(unfinished, folder / MARKER)


def unmark(folder: Path) -> None:
    """Takes the marker away before a folder is written again: old and new files together are no checkpoint."""
    (folder / MARKER).unlink(missing_ok=True)


@contextlib.contextmanager
def disk_full_explained(folder: Path) -> Iterator[None]:
    """Turns what the writers of tensors raise on a full disk into one OSError that says what is safe and what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as problem:
        if not _disk_is_full(problem):
            raise
        whole = last_whole_checkpoint(folder.parent)
        safe = f"the last whole checkpoint is {whole}" if whole else "there is no earlier checkpoint"
        raise OSError(
            f"No space left while writing {folder}: {safe}, and this one is incomplete and can be deleted. Free some space (or "
            "set training.save_total_limit), then start the same command again: it goes on from there."
        ) from problem


def _disk_is_full(problem: Exception) -> bool:
    texts = " ".join(str(cause) for cause in (problem, problem.__cause__, problem.__context__) if cause is not None)
    if any(sign in texts for sign in ("No space left", "StorageFull", "os error 28", "Disk quota")):
        return True
    # torch's writer has no better words for a disk that takes no more.
    return isinstance(problem, RuntimeError) and ("iostream error" in texts or "unexpected pos" in texts)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
