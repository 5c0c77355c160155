"""What a checkpoint to convert is: its layout, configuration and parts, found by its files and never by its name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vwlmm.embedded import resolve
from vwlmm.weights.reading import WeightFiles, open_weights

PROJECTOR_FILE = "mm_projector.bin"


@dataclass
class Source:
    """A checkpoint, opened by its headers.

    Attributes:
        layout: `flat` (released VW-LMM, original LLaVA), `nested` (llava-hf, ours) or `projector` (stage 1 of LLaVA).
        folder: where its other files are.
        config: its config.json; empty for a lone projector file without one.
    """

    layout: str
    folder: Path
    config: dict[str, Any]
    weights: WeightFiles


def open_source(source: str | Path) -> Source:
    """Opens a folder, a Hub id or a projector file.

    Raises:
        FileNotFoundError: nothing there, or not a model folder.
        ValueError: an unknown layout, or damaged files.
    """
    path = Path(source)
    if path.is_file():
        beside = path.parent / "config.json"
        return Source("projector", path.parent, read_json(beside) if beside.is_file() else {}, open_weights(path))
    path = local_folder(source, "The checkpoint to convert")
    if (path / "adapter_config.json").is_file():
        raise ValueError(f"{path} holds LoRA adapters, no whole model: `vwlmm merge {path} OUT` makes one of them.")
    if not (path / "config.json").is_file() and not (path / PROJECTOR_FILE).is_file():
        raise FileNotFoundError(f"{path} holds no config.json, so it is not a model folder.")
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    has_weights = any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*.bin*"))
    if not has_weights and (path / PROJECTOR_FILE).is_file():
        return Source("projector", path, config, open_weights(path / PROJECTOR_FILE))
    return Source(_layout(path, config), path, config, open_weights(path))


def _layout(path: Path, config: dict[str, Any]) -> str:
    if "text_config" in config or config.get("model_type") == "visual_word_llava":
        return "nested"
    if str(config.get("model_type", "")).startswith("llava") and config.get("hidden_size") is not None:
        return "flat"
    raise ValueError(
        f"{path} is a {config.get('model_type')!r} model: expected a released VW-LMM, an original LLaVA-1.5, a llava-hf folder "
        "(model_type llava), or LLaVA's mm_projector.bin."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is not readable JSON: {problem}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}.")
    return content


def local_folder(source: str | Path, what: str) -> Path:
    """The folder itself, or the snapshot of a Hub id, without any code of it.

    Raises:
        FileNotFoundError: no such folder, and the Hub has none or is out of reach.
    """
    source = resolve(source)
    path = Path(source)
    if path.is_dir():
        return path
    looks_local = str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local:
        raise FileNotFoundError(f"{what} was expected in {path}: there is no such folder.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as problem:
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise FileNotFoundError(f"{what}, {source}, is no folder here, and the Hub did not give it: {reason}") from None
