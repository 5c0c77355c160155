"""Reading a model folder: our class with its VM head, its processor, and an error instead of a silently random tensor.

A folder of LoRA adapters is read on top of the model it was trained from, and merged into it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from vwlmm.embedded import resolve
from vwlmm.models import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration
from vwlmm.weights.check import check_folder
from vwlmm.weights.reading import open_file
from vwlmm.weights.sources import read_json

VM_HEAD = "vm_head.weight"


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    require_vm_head: bool = True,
    **overrides: Any,
) -> tuple[VisualWordLlavaForConditionalGeneration, Any]:
    """The model and processor of a folder or hub id, ready to use.

    Args:
        source: a folder that `save_pretrained` wrote, or a hub id; of a model, or of adapters from a `lora` recipe.
        dtype: of the weights; `auto` keeps what the folder holds.
        device: where to put the model; the GPU when there is one, else the CPU.
        require_vm_head: False also takes a plain LLaVA, whose VM head starts random.
        overrides: configuration fields to change, for instance `pseudo_image_features=True`.

    Raises:
        FileNotFoundError: no such folder, a shard is missing, or the folder that adapters were trained from is gone.
        ValueError: a weight file is cut short, damaged by as little as one byte, or holds code; tensors are missing,
            unexpected or of another size, with their list; or the folder is a plain LLaVA without a VM head.
    """
    source = str(resolve(source))
    if _looks_local(source) and not Path(source).is_dir():
        raise FileNotFoundError(
            f"A model folder was expected at {source}: there is none. Train one, or check the path."
        )
    adapter = find_adapter_config_file(source)
    if adapter is not None:
        return _load_adapter(source, Path(adapter), dtype, device, require_vm_head, overrides)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no config.json, so it is not a model folder.")
    if Path(source).is_dir():
        _check_kind(Path(source))
    damaged = check_folder(source) if Path(source).is_dir() else []
    loaded: Any = VisualWordLlavaForConditionalGeneration.from_pretrained(
        source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **overrides
    )
    model, report = loaded
    if not Path(source).is_dir():  # from the hub: its files are in the cache by now
        damaged = check_folder(Path(str(cached_file(source, "config.json"))).parent)
    also = "".join(f" {problem}" for problem in damaged)
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    if VM_HEAD in missing and require_vm_head:
        raise ValueError(
            f"{source} holds a plain LLaVA without a VM head (no tensor {VM_HEAD}), and visual words come from the VM head. "
            "Train one first: start a recipe from it with model.vm_head_init."
        )
    missing.discard(VM_HEAD)
    other_sizes = {f"{name} {tuple(there)}, not {tuple(here)}" for name, there, here in report["mismatched_keys"]}
    if other_sizes:
        raise ValueError(
            f"{source} holds tensors of another size than its config.json says: {_listed(other_sizes)}.{also}"
        )
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the tensors of this model. Missing: {_listed(missing)}. Unexpected: {_listed(unexpected)}."
            f"{also}"
        )
    if damaged:
        raise ValueError(also.strip())
    # ZeRO-3's loader keeps renamings that did not apply, and a save would undo them into names no other reader knows.
    model._weight_conversions = None
    processor = AutoProcessor.from_pretrained(source)
    return model.to(_device(device)), processor


def _check_kind(folder: Path) -> None:
    """Stops before a folder of another kind is taken for a LLaVA of LLaVA's default size, 7B."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("llava", "visual_word_llava"):
        raise ValueError(
            f"{folder} is a {kind!r} model: expected a LLaVA with or without a VM head (model_type llava)."
        )
    if "text_config" not in config and "hidden_size" in config:
        raise ValueError(
            f"{folder} is a checkpoint as LLaVA-1.5 or VW-LMM published it: `vwlmm convert {folder} OUT` makes a folder of it "
            "that every command reads."
        )


def _load_adapter(
    source: str,
    adapter: Path,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    require_vm_head: bool,
    overrides: dict[str, Any],
) -> tuple[VisualWordLlavaForConditionalGeneration, Any]:
    """The base model with the adapters merged into its weights, and the modules that learned in full in place of its own."""
    damaged = check_folder(adapter.parent)
    if damaged:
        raise ValueError(" ".join(damaged))
    base, saved = _base_and_modules(adapter)
    run_config = adapter.with_name("config.json")
    if run_config.is_file():  # what the run changed of the base's configuration
        overrides = {"config": VisualWordLlavaConfig.from_pretrained(run_config.parent), **overrides}
    try:
        model, _ = load_model(
            base, dtype=dtype, device="cpu", require_vm_head=require_vm_head and "vm_head" not in saved, **overrides
        )
    except FileNotFoundError as problem:
        raise FileNotFoundError(
            f"{source} holds LoRA adapters to the model in {base}, and they are nothing without it: put it back, or name its "
            f"new place as base_model_name_or_path in {adapter}. ({problem})"
        ) from None
    return _merged(model, source).to(_device(device)), AutoProcessor.from_pretrained(source)


def _merged(model: VisualWordLlavaForConditionalGeneration, source: str) -> Any:
    """The model with the adapters in its weights; every tensor of theirs has its place, and every place its tensor."""
    import peft

    file = cached_file(source, "adapter_model.safetensors", _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise FileNotFoundError(f"{source} holds an adapter_config.json and no adapter_model.safetensors beside it.")
    wrapped: Any = peft.PeftModel(model, peft.PeftConfig.from_pretrained(source))
    places = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in places.items()}
    have = {name: stored.shape for name, stored in open_file(Path(file)).tensors.items()}
    missing, unexpected = set(expected) - set(have), set(have) - set(expected)
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the adapters that its adapter_config.json tells of, to this base model. Missing: "
            f"{_listed(missing)}. Unexpected: {_listed(unexpected)}."
        )
    sizes = {f"{name} {have[name]}, not {shape}" for name, shape in expected.items() if have[name] != shape}
    if sizes:
        raise ValueError(f"{source} holds adapters of another size than its base model asks for: {_listed(sizes)}.")
    wrapped.load_adapter(source, "default")
    return wrapped.merge_and_unload()


def is_adapter(source: str | Path) -> bool:
    """True for a folder or hub id of LoRA adapters."""
    source = str(resolve(source))
    is_absent = _looks_local(source) and not Path(source).is_dir()  # load_model says so
    return not is_absent and find_adapter_config_file(source) is not None


def _looks_local(source: str) -> bool:
    """True for what can only be a folder: a hub id has one slash and does not begin like a path."""
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _base_and_modules(adapter: Path) -> tuple[str, list[str]]:
    """The model that adapters belong to, and the names of the modules that were trained in full and saved with them."""
    config = json.loads(adapter.read_text())
    modules = [name.rsplit(".", 1)[-1] for name in config.get("modules_to_save") or []]
    return str(config.get("base_model_name_or_path")), modules


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(
            f"A device of this machine was expected (cpu, cuda, cuda:0), got {name!r}: {str(problem).splitlines()[0]}"
        ) from None


def has_vm_head(source: str | Path) -> bool:
    """True when a folder or hub id holds a VM head, or adapters to one that does; reads names, no tensors."""
    from safetensors import safe_open

    adapter = find_adapter_config_file(str(source))
    if adapter is not None:
        base, saved = _base_and_modules(Path(adapter))
        return "vm_head" in saved or has_vm_head(base)
    index = cached_file(str(source), "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return VM_HEAD in json.loads(Path(index).read_text())["weight_map"]
    weights = cached_file(str(source), "model.safetensors")
    with safe_open(weights, framework="pt") as tensors:
        return VM_HEAD in tensors.keys()  # noqa: SIM118 — not a dictionary


def _listed(keys: set[str], most: int = 8) -> str:
    names = sorted(keys)
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
    )
