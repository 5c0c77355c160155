"""What a figure depends on: model, data, prompts, precision, versions; kept beside the answers.

A run goes on only with the settings that it began with.
"""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vwlmm.benchmarks import Files
from vwlmm.options import DTYPES

SETTINGS_FILE = "settings.json"
# Files of a model folder that change its answers; logs and recipes of its training do not.
_MODEL_FILES = (".safetensors", ".jinja", ".model", ".json", ".txt")
_NOT_MODEL = ("trainer_state.json", "result.json")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a benchmark is asked."""

    batch_size: int = 1  # questions at once; the papers' protocol is 1
    dtype: str = "auto"  # of the weights; auto: as saved
    limit: int | None = None  # only this many questions, drawn from the whole file
    max_new_tokens: int | None = None  # None: the benchmark's own
    num_loaders: int = 4  # threads that decode pictures

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is at least 1: got {self.batch_size}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is at least 1 question: got {self.limit}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens is at least 1: got {self.max_new_tokens}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype is one of {', '.join(DTYPES)}: got {self.dtype!r}.")


@dataclass
class ValidationConfig:
    """A recipe's `evaluation` section: benchmarks that are asked while the model trains."""

    benchmark: list[str] | str  # names as for `vwlmm eval --benchmark`, options behind a colon
    every: int  # steps; asked after the last one too
    data: str | None = None  # folder with the official files; embedded benchmarks need none
    limit: int | None = None  # only this many questions of each, drawn from the whole file
    batch_size: int = 16  # questions at once, a process
    max_new_tokens: int | None = None  # None: the benchmark's own
    num_loaders: int = 2  # threads that decode pictures, a process

    def __post_init__(self) -> None:
        for name in ("every", "limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluation.{name} is at least 1: got {value}.")
        if not self.names:
            raise ValueError("evaluation.benchmark: expected the name of a benchmark, or a list of names; got none.")

    @property
    def names(self) -> list[str]:
        """The benchmarks as a list."""
        return [self.benchmark] if isinstance(self.benchmark, str) else list(self.benchmark)


def versions() -> dict[str, str]:
    """Versions of what computes the answers."""
    found = {"python": platform.python_version()}
    for package in ("vwlmm", "torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow", "flash-attn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # flash-attn and accelerate need not be there; what is not named was not used
    from vwlmm import __version__

    return {**found, "vwlmm": __version__}


def model_settings(source: str | Path, model: Any) -> dict[str, Any]:
    """Name, revision or content hash, and precision of a loaded model."""
    revision = getattr(model.config, "_commit_hash", None)
    settings: dict[str, Any] = {"model": str(source)}
    settings["model_hash"] = folder_hash(Path(source)) if Path(source).is_dir() else None
    settings["model_revision"] = revision
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    settings["attention"] = getattr(model.config, "_attn_implementation", None)
    settings["device"] = _device_name(model.device)
    return settings


def folder_hash(folder: Path) -> str:
    """A hash over weights, configuration, tokenizer and templates of a model folder, and of the base of LoRA adapters."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in _MODEL_FILES and file.name not in _NOT_MODEL:
            digest.update(f"{file.name} {file_hash(file)}\n".encode())
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = Path(str(json.loads(adapter.read_text()).get("base_model_name_or_path")))
        if base.is_dir():
            digest.update(folder_hash(base).encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_settings(files: Files) -> dict[str, str]:
    """The official files by name, each with its hash."""
    return {path.name: file_hash(path) for path in (*files.questions, *files.annotations)}


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, or compares them with those of the run to be continued.

    Raises:
        ValueError: the folder's answers were made with other settings; with each that differs.
    """
    target = folder / SETTINGS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(settings))
    if not target.exists():
        unfinished = folder / f".settings.{os.getpid()}.json"
        unfinished.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            os.link(unfinished, target)  # fails where another shard was first, whose settings then count
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
    try:
        saved = json.loads(target.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{target} is not readable JSON ({problem}): delete {folder} to begin anew.") from None
    # The same weights may lie elsewhere, and a cluster gives another GPU; the first run's stand in the result.
    free = {"device"} | ({"model"} if wanted.get("model_hash") else set())
    different = [
        f"{name}: {saved.get(name)!r} there, {wanted.get(name)!r} here"
        for name in [*saved, *(name for name in wanted if name not in saved)]
        if saved.get(name) != wanted.get(name) and name not in free
    ]
    if different:
        raise ValueError(
            f"{folder} holds answers made with other settings ({'; '.join(different)}), and one score is made with one: "
            "choose another --out, or delete that folder."
        )


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return str(device.type)
