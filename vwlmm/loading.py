"""Reading a model folder: our class with its VM head, its processor, and an error instead of a silently random tensor."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor
from transformers.utils import cached_file

from vwlmm.embedded import resolve
from vwlmm.models import VisualWordLlavaForConditionalGeneration

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
        source: a folder that `save_pretrained` wrote, or a hub id.
        dtype: of the weights; `auto` keeps what the folder holds.
        device: where to put the model; the GPU when there is one, else the CPU.
        require_vm_head: False also takes a plain LLaVA, whose VM head starts random.
        overrides: configuration fields to change, for instance `pseudo_image_features=True`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: tensors are missing or unexpected, with their list; or the folder is a plain LLaVA without a VM head.
    """
    source = str(resolve(source))
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local and not Path(source).is_dir():
        raise FileNotFoundError(f"A model folder was expected at {source}: there is none. Train one, or check the path.")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no config.json, so it is not a model folder.")
    model, report = VisualWordLlavaForConditionalGeneration.from_pretrained(
        source, dtype=dtype, output_loading_info=True, **overrides
    )
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    if VM_HEAD in missing and require_vm_head:
        raise ValueError(
            f"{source} holds a plain LLaVA without a VM head (no tensor {VM_HEAD}), and visual words come from the VM head. "
            "Train one first: start a recipe from it with model.vm_head_init."
        )
    missing.discard(VM_HEAD)
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the tensors of this model. Missing: {_listed(missing)}. Unexpected: {_listed(unexpected)}."
        )
    processor = AutoProcessor.from_pretrained(source)
    return model.to(_device(device)), processor


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(f"A device of this machine was expected (cpu, cuda, cuda:0), got {name!r}: {str(problem).splitlines()[0]}") from None


def has_vm_head(source: str | Path) -> bool:
    """True when a folder or hub id holds a VM head; reads names, no tensors."""
    import json

    from safetensors import safe_open

    index = cached_file(str(source), "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return VM_HEAD in json.loads(Path(index).read_text())["weight_map"]
    weights = cached_file(str(source), "model.safetensors")
    with safe_open(weights, framework="pt") as tensors:
        return VM_HEAD in tensors.keys()  # noqa: SIM118 — not a dictionary


def _listed(keys: set[str], most: int = 8) -> str:
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
