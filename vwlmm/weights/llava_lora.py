"""The folders of LLaVA's LoRA script: adapters on a bare LLM or a LLaVA, and `non_lora_trainables.bin` with the projector."""

from pathlib import Path
from typing import Any

from torch import Tensor

from vwlmm.weights import layouts
from vwlmm.weights.parts import VM_HEAD, Parts, Wishes, join
from vwlmm.weights.reading import WeightFiles, open_file, open_weights
from vwlmm.weights.report import Report
from vwlmm.weights.sources import local_folder, read_json

NON_LORA_FILE = "non_lora_trainables.bin"
PREFIX = "base_model.model."


class AdaptedWeights(WeightFiles):
    """The base model's weights, with `B A · scale` added where there is a pair of adapters."""

    def __init__(self, base: WeightFiles, adapters: WeightFiles, scale: float) -> None:
        super().__init__(base.files)
        self.adapters, self.scale = adapters, scale

    def read(self, name: str) -> Tensor:
        weight = super().read(name)
        stem = PREFIX + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" not in self.adapters.tensors:
            return weight
        a, b = (self.adapters.read(f"{stem}.lora_{letter}.weight").float() for letter in "AB")
        # In fp32: LLaVA merges in half precision, which loses the small changes that adapters make.
        return (weight.float() + (b @ a) * self.scale).to(weight.dtype)


def understand_lora(folder: Path, config: dict[str, Any], *, base: str | None, vision_tower: str | None) -> Parts:
    """Parts of the merged model.

    Raises:
        ValueError: adapters of another kind, or without a weight to go to.
    """
    for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise ValueError(f"{folder}: adapters with {name} are not what LLaVA's script makes: merge them with PEFT.")
    named = base or config.get("base_model_name_or_path")
    llm = local_folder(str(named), "The model that the adapters were trained on")
    adapters = _adapters(folder)
    weights = AdaptedWeights(open_weights(llm), adapters, _scale(config))
    stray = sorted(
        name
        for name in adapters.tensors
        if name.removeprefix(PREFIX).replace(".lora_A", "").replace(".lora_B", "") not in weights.tensors
    )
    if stray:
        raise ValueError(f"{folder} holds adapters to weights that {llm} does not have: {', '.join(stray[:8])}.")
    parts = Parts(Report("LLaVA's LoRA"), folder=llm)
    parts.add(weights, layouts.FLAT)
    parts.add(_without_prefix(open_file(folder / NON_LORA_FILE)), layouts.FLAT)
    pairs = sum(".lora_A." in name for name in adapters.tensors)
    parts.report.notes.append(f"{pairs} weights changed by their adapters, the rest of {NON_LORA_FILE} taken whole")
    if VM_HEAD in parts.tensors:
        parts.report.layout = "VW-LMM's LoRA"
    released = (
        read_json(folder / "config.json") if (folder / "config.json").is_file() else read_json(llm / "config.json")
    )
    return join(parts, released, read_json(llm / "config.json"), folder, Wishes(vision_tower=vision_tower))


def _adapters(folder: Path) -> WeightFiles:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return WeightFiles([open_file(folder / name)])
    raise FileNotFoundError(
        f"{folder} holds an adapter_config.json and no adapter_model.safetensors or .bin beside it."
    )


def _scale(config: dict[str, Any]) -> float:
    rank = float(config["r"])
    return float(config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank))


def _without_prefix(file: Any) -> WeightFiles:
    """PEFT's `base_model.model.` is put before the names of what was trained in full."""
    return _Renamed([file])


class _Renamed(WeightFiles):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.tensors = {name.removeprefix(PREFIX): stored for name, stored in self.tensors.items()}
        self._original = {name.removeprefix(PREFIX): name for name in self._file}

    def read(self, name: str) -> Tensor:
        return super().read(self._original[name])
