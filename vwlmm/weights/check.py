"""The check of a model folder's files that every command makes before it loads them: whole, unchanged, no code."""

import re
from pathlib import Path

from vwlmm.models.checksums import CHECKSUMS_FILE, sha256, weight_files, written_sums
from vwlmm.weights.reading import open_file, read_index


def check_folder(folder: str | Path) -> list[str]:
    """Checks the weight files of a folder, by structure and, where a sum is known, byte by byte.

    Every shard that an index names must be there, every header must fit its file, a `.bin` may hold tensors only. Bytes
    are compared with `checksums.json`, which vwlmm writes beside the weights, or with the SHA-256 that names the blob
    in a Hub cache; a `.bin` carries sums of its own. A file of another size than `checksums.json` says was written
    again by another program: the sum is not about it.

    Returns:
        The files whose bytes are not those that were written, as sentences; the caller says so after what it finds out
        about the tensors themselves.

    Raises:
        FileNotFoundError: an index names a missing shard.
        ValueError: a file is cut short, damaged or holds code.
    """
    folder = Path(folder)
    safe = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.safetensors")]
    # Beside safetensors nobody reads the pickles.
    suffix = ".safetensors" if safe else ".bin"
    for index in sorted(folder.glob(f"*{suffix}.index.json")):
        read_index(index)
    files = [path for path in weight_files(folder) if path.suffix == suffix]
    for path in files:
        opened = open_file(path)
        if suffix == ".bin":  # its sums are compared as it is read
            for name in opened.tensors:
                opened.read(name)
    return [problem for path in files if (problem := _changed(path))]


def refuse_damage(source: str | Path) -> None:
    """`check_folder` before a model is read; a hub id, which is no folder, is checked by the Hub's own client.

    Raises:
        FileNotFoundError: an index names a missing shard.
        ValueError: a file is cut short, holds code, or differs from what was written by as little as one byte.
    """
    damaged = check_folder(source) if Path(source).is_dir() else []
    if damaged:
        raise ValueError(" ".join(damaged))


def _changed(path: Path) -> str | None:
    written = written_sums(path.parent).get(path.name)
    if written is not None:
        if written["size"] != path.stat().st_size or written["sha256"] == sha256(path):
            return None
        return (
            f"{path} is damaged: its bytes are not those that were written ({CHECKSUMS_FILE} beside it tells). Fetch or save "
            f"it again; if it was changed on purpose, delete {CHECKSUMS_FILE}."
        )
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob) and sha256(path) != blob:
        return (
            f"{path} is damaged: its bytes are not those of the Hub. Delete it from the cache, and it is fetched again."
        )
    return None
