"""Adapters into whole weights: those of a `lora` recipe through PEFT, those of LLaVA's LoRA script tensor by tensor.

merge("checkpoints/visual_words/4_lora", "checkpoints/visual_words/4_merged")    # or: vwlmm merge ADAPTER OUT
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vwlmm.config import DTYPES
from vwlmm.loading import load_model
from vwlmm.weights.convert import ConvertConfig, convert_parts
from vwlmm.weights.folder import finished_folder
from vwlmm.weights.llava_lora import NON_LORA_FILE, understand_lora
from vwlmm.weights.reading import open_file
from vwlmm.weights.sources import local_folder, read_json

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
OF_THE_RUN = ("recipe.yaml", "result.json", "trainer_state.json")


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: str = "auto",
    base: str | None = None,
    vision_tower: str | None = None,
) -> list[str]:
    """Writes the model that the adapters and the weights saved beside them make of their base.

    Args:
        adapter: folder or Hub id with an adapter_config.json.
        out: the folder to make; it appears when it is whole.
        dtype: of the weights; `auto` keeps the base model's.
        base: the model they were trained on, where its adapter_config.json no longer says so rightly.
        vision_tower: of LLaVA's LoRA folders, which hold none.

    Returns:
        What went in, as sentences.

    Raises:
        FileNotFoundError, FileExistsError, OSError: as `vwlmm.weights.convert.convert`.
        ValueError: no adapters, or ones that do not fit their base, with the list.
    """
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype is auto, {', '.join(DTYPES)}: got {dtype!r}.")
    folder = local_folder(adapter, "The adapters")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no {ADAPTER_CONFIG}, so there is nothing to merge: expected LoRA adapters.")
    config = read_json(folder / ADAPTER_CONFIG)
    if (folder / NON_LORA_FILE).is_file():
        parts = understand_lora(folder, config, base=base, vision_tower=vision_tower)
        report = convert_parts(parts, folder, out, ConvertConfig(dtype=None if dtype == "auto" else dtype))
        return str(report).splitlines()
    with tempfile.TemporaryDirectory() as scratch:
        source = folder if base is None else _with_base(folder, config, base, Path(scratch))
        model, processor = load_model(source, dtype=dtype, device="cpu", require_vm_head=False)
        with finished_folder(out, needed_bytes=sum(t.nbytes for t in model.state_dict().values())) as unfinished:
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
            for name in OF_THE_RUN:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, unfinished / name)
    return _told(folder)


def _with_base(folder: Path, config: dict[str, Any], base: str, scratch: Path) -> Path:
    """The same folder, by links, with another base in its adapter_config.json."""
    for file in folder.iterdir():
        if file.is_file() and file.name != ADAPTER_CONFIG:
            (scratch / file.name).symlink_to(file.resolve())
    (scratch / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return scratch


def _told(folder: Path) -> list[str]:
    names = list(open_file(folder / ADAPTER_FILE).tensors)
    pairs = sum(".lora_A." in name for name in names)
    whole = [name.removeprefix("base_model.model.") for name in names if ".lora_" not in name]
    lines = [f"{pairs} weights changed by their adapters"]
    return [*lines, f"{len(whole)} weights that learned in full: {', '.join(whole)}"] if whole else lines
