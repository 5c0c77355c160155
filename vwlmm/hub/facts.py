"""What a card can say of a model, from the files of its run and of the stages before it; nothing is made up."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vwlmm.embedded import EMBEDDED
from vwlmm.models.checksums import sha256
from vwlmm.weights.sources import read_json

# By the beginning of a Hub id, as the makers' pages say.
LICENCES = {
    "openai/clip-vit": "MIT (OpenAI's CLIP)",
    "lmsys/vicuna": "Llama 2 Community License",
    "meta-llama/Llama-2": "Llama 2 Community License",
    "mistralai/Mistral-7B": "Apache-2.0",
    "HuggingFaceTB/SmolLM2": "Apache-2.0",
    "liuhaotian/llava-v1.5": "Llama 2 Community License",
    "llava-hf/llava-1.5": "Llama 2 Community License",
    "google/siglip": "Apache-2.0",
    "facebook/dinov2": "Apache-2.0",
    "Qwen/Qwen2.5-0.5B": "Apache-2.0",
}
UNKNOWN_LICENCE = "not known to vwlmm: look at its page before you use this model"


@dataclass
class Stage:
    """One run: its recipe as published, its data and what it logged."""

    recipe: dict[str, Any]
    data: dict[str, str] = field(default_factory=dict)  # file name → SHA-256, or why there is none
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Facts:
    """Everything the card is written from.

    Attributes:
        stages: this run first, then the ones it went on from, as far as their folders are there.
        parts: vision tower, LLM or checkpoint that the first stage began with → licence.
        results: of benchmarks, as `vwlmm eval` and `vwlmm score` write them.
    """

    config: dict[str, Any]
    stages: list[Stage]
    parts: dict[str, str]
    results: list[dict[str, Any]]

    @property
    def hub_parts(self) -> list[str]:
        return [name for name in self.parts if is_hub_id(name)]


def gather(folder: Path, results: list[Path]) -> Facts:
    """Reads the run's files.

    Raises:
        FileNotFoundError: no such results.
        ValueError: results that are none.
    """
    stages: list[Stage] = []
    parts: dict[str, str] = {}
    current: Path | None = folder
    seen: set[Path] = set()
    while current is not None and current not in seen and (current / "recipe.yaml").is_file():
        seen.add(current)
        recipe = yaml.safe_load((current / "recipe.yaml").read_text(encoding="utf-8"))
        stages.append(_stage(current, recipe))
        model = recipe.get("model") or {}
        begun_with = [model[name] for name in ("vision_tower", "language_model") if model.get(name)]
        before = model.get("init_from")
        current = Path(before) if before and Path(before).is_dir() else None
        if before and not (current and (current / "recipe.yaml").is_file()):
            begun_with.append(before)
        parts |= {shown(part): licence_of(part) for part in begun_with}
    return Facts(read_json(folder / "config.json"), stages, parts, read_results(folder, results))


def _stage(folder: Path, recipe: dict[str, Any]) -> Stage:
    state, result = folder / "trainer_state.json", folder / "result.json"
    metrics = read_json(result) if result.is_file() else {}
    return Stage(
        recipe=published_recipe(recipe),
        data=_hashes(recipe.get("data") or {}),
        history=read_json(state).get("log_history", []) if state.is_file() else [],
        metrics={k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)},
    )


def _hashes(data: dict[str, Any]) -> dict[str, str]:
    hashes = {}
    for key in ("path", "validation_path"):
        if data.get(key):
            path = Path(str(data[key]))
            if path.is_file():
                hashes[path.name] = sha256(path)
            else:
                hashes[shown(data[key])] = "not hashed: a dataset by name, or not on this machine any more"
    return hashes


def published_recipe(recipe: Any) -> Any:
    """The recipe with the paths of this machine cut to their last part; Hub ids and relative paths stay."""
    if isinstance(recipe, dict):
        return {key: published_recipe(value) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [published_recipe(value) for value in recipe]
    return shown(recipe) if isinstance(recipe, str) else recipe


def shown(path: str) -> str:
    """A path as a card shows it: without the folders of this machine."""
    absolute = re.match(r"(/|~|[A-Za-z]:\\|\.\./)", path)
    return Path(path.replace("\\", "/")).name if absolute else path


def is_hub_id(name: str) -> bool:
    return (
        bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists() and not name.startswith("checkpoints/")
    )


def licence_of(part: str) -> str:
    """The licence of a tower, an LLM or a checkpoint: embedded part, known Hub id, or the card beside the folder."""
    name = Path(part).name
    if name in EMBEDDED:
        return EMBEDDED[name].licence
    for start, licence in LICENCES.items():
        if part.startswith(start):
            return licence
    card = Path(part) / "README.md"
    if card.is_file():
        told = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if told:
            return f"{told.group(1)} (by its own card)"
    return UNKNOWN_LICENCE


def read_results(folder: Path, given: list[Path]) -> list[dict[str, Any]]:
    """Benchmark results: those given, files or folders, and those below the model's `eval/`."""
    files: list[Path] = sorted((folder / "eval").rglob("result.json")) if (folder / "eval").is_dir() else []
    for path in given:
        if path.is_dir():
            files += sorted(path.rglob("result.json"))
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"Results were expected at {path}: there is no such file or folder.")
    results = []
    for file in dict.fromkeys(files):
        content = json.loads(file.read_text(encoding="utf-8"))
        metrics = content.get("metrics") if isinstance(content, dict) else None
        if not isinstance(metrics, dict) or not isinstance(content.get("benchmark"), str):
            raise ValueError(
                f"{file}: expected what vwlmm eval or vwlmm score writes (benchmark, metrics), found other JSON."
            )
        results.append(content)
    return results
