"""A folder that appears under its name only when it is whole."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished_folder(target: str | Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """An empty folder to fill, which gets the name `target` when the block ends well and vanishes when it does not.

    Args:
        target: must not exist, or be empty.
        needed_bytes: what will be written; compared with the room on the disk before anything is.

    Raises:
        FileExistsError: there is something at `target`.
        OSError: no room on the disk, or it cannot be written to.
    """
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: name a new folder, or delete it first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise OSError(
            f"No room for {target}: it takes {_gigabytes(needed_bytes)}, and its disk has {_gigabytes(free)} free. "
            "Nothing was written."
        )
    # Beside the target: a rename within one file system is all or nothing.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp's folders are for their owner alone
        unfinished.rename(target)
    except Exception as problem:
        if _is_full(problem):
            raise OSError(
                f"The disk is full: {target} could not be written and does not exist. Make room, or name a folder on another "
                "disk."
            ) from None
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_full(problem: BaseException) -> bool:
    """True for no space, quota and file-size limits, also as the safetensors package reports them."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(problem, OSError):
        return problem.errno in numbers
    text = str(problem)
    return type(problem).__name__ == "SafetensorError" and any(f"os error {number}" in text for number in numbers)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
