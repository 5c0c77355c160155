"""What a weight file was when it was written: sizes and SHA-256 in `checksums.json`, so that one flipped byte is found.

`save_pretrained` writes the file; `vwlmm.weights.check_folder` reads it before a model is loaded.
"""

import hashlib
import json
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin")
# Pickles of Trainer that are no weights and are never read by us.
NOT_WEIGHTS = ("training_args.bin", "scheduler.bin", "optimizer.bin")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, not of the folders in it."""
    files = (path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.name not in NOT_WEIGHTS)
    return sorted(path for path in files if path.is_file())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: str | Path, known: dict[str, str] | None = None) -> None:
    """Writes `checksums.json` for the safetensors files of a folder; `known` holds sums by name that need no reading."""
    known = known or {}
    files = {
        path.name: {"size": path.stat().st_size, "sha256": known.get(path.name) or sha256(path)}
        for path in weight_files(Path(folder))
        if path.suffix == ".safetensors"
    }
    Path(folder, CHECKSUMS_FILE).write_text(json.dumps({"files": files}, indent=2) + "\n")


def written_sums(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size and SHA-256 by file name, as `checksums.json` has them; empty where there is none.

    Raises:
        ValueError: the file is not what `write_checksums` writes.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text())["files"]
        return {str(name): {"size": int(file["size"]), "sha256": str(file["sha256"])} for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is damaged: expected sizes and SHA-256 by file name. Fetch the folder again, or delete this file to "
            "load without the check."
        ) from None
