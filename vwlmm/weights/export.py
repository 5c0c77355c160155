"""A folder of ours as a plain LLaVA of transformers: the same tensors without the VM head, the same logits, nothing of ours.

export_llava("checkpoints/visual_words/4_final", "checkpoints/llava")    # or: vwlmm export MODEL OUT --to llava
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.models import VisualWordLlavaConfig
from vwlmm.weights.check import check_folder
from vwlmm.weights.convert import LM_HEAD, WORDS, check_tensors, expected_tensors
from vwlmm.weights.folder import finished_folder
from vwlmm.weights.layouts import comparable
from vwlmm.weights.parts import VM_HEAD, Parts, Wishes, understand
from vwlmm.weights.sources import local_folder, open_source
from vwlmm.weights.writing import MAX_SHARD_BYTES, Planned, write_shards

OUR_FIELDS = ("pseudo_image_features", "projector_type", "projector_patch_merge", "projector_norm")
LINEAR_2 = "multi_modal_projector.linear_2"
ROWS = 64  # tables grow to a multiple of it, as llava-hf's do: what GPUs and tensor-parallel servers like


def export_llava(
    model: str | Path, out: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES, progress: bool = False
) -> list[str]:
    """Writes a `LlavaForConditionalGeneration` folder with its processor and chat template.

    The logits are the model's own, bit for bit. A published checkpoint keeps `<image>` outside its tables; plain LLaVA
    looks every token up, so the tables get rows behind the last word, whose logits are those of `<unk>`.

    Returns:
        What was done beyond copying, as sentences.

    Raises:
        FileNotFoundError, FileExistsError, OSError: as `convert`.
        ValueError: plain LLaVA cannot give this model's logits; the message says why and what can be done.
    """
    folder = local_folder(model, "The model to export")
    damaged = check_folder(folder)
    if damaged:
        raise ValueError(" ".join(damaged))
    parts = understand(open_source(folder), Wishes())
    _check_exportable(parts.config, folder)
    check_tensors(parts, expected_tensors(parts.config), folder)
    planned, notes = _copied(parts), []
    if planned.pop(VM_HEAD, None) is not None:
        notes.append("the VM head is left out: plain LLaVA has no place for it, and answers do not need it")
    notes += _linear_projector(parts.config, planned) + _rows_for_image_token(parts, planned)
    config = _plain_config(parts.config)
    _check_plain(config, planned)
    with finished_folder(out, needed_bytes=sum(tensor.size for tensor in planned.values())) as unfinished:
        write_shards(unfinished, planned, max_shard_bytes=max_shard_bytes, progress=progress)
        config.save_pretrained(unfinished)
        parts.processor.save_pretrained(unfinished)
        for name in ("generation_config.json", "tokenizer.model"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, unfinished / name)
    return notes


def _check_exportable(config: VisualWordLlavaConfig, folder: Path) -> None:
    why = []
    if config.pseudo_image_features:
        why.append(
            "its LLM reads pseudo-image features, softmax(vm_head(features)) @ word embeddings, and a plain LLaVA has neither "
            "VM head nor that step"
        )
    if config.projector_patch_merge > 1:
        why.append(f"its projector merges {config.projector_patch_merge}×{config.projector_patch_merge} patches")
    if config.projector_norm:
        why.append("its projector standardises the vision features and normalises its output")
    if getattr(config.vision_config, "num_register_tokens", 0):
        why.append("its vision tower has register tokens, which a plain LLaVA would take for patches")
    if config.tie_word_embeddings and config.text_config.model_type == "opt":
        why.append("transformers' LLaVA does not find OPT's tied LM head")
    if why:
        trained = (
            "pseudo_image_features: false" if config.pseudo_image_features else "a projector and tower of LLaVA's kind"
        )
        raise ValueError(
            f"{folder} cannot be a plain LLaVA with the same logits: {'; '.join(why)}. What can be done: serve the folder as it "
            "is (`import vwlmm.models`, then AutoModelForImageTextToText.from_pretrained and pipelines read it), or train "
            f"with {trained} and export that."
        )


def _copied(parts: Parts) -> dict[str, Planned]:
    planned = {}
    for ours, (files, name) in parts.tensors.items():
        stored = files.tensors[name]
        planned[ours] = Planned(stored.dtype, stored.shape, partial(files.read, name))
    return planned


def _linear_projector(config: VisualWordLlavaConfig, planned: dict[str, Planned]) -> list[str]:
    """One linear layer as LLaVA's two: no activation between, and an identity, which changes no bit."""
    if config.projector_type != "linear":
        return []
    width, dtype = config.text_config.hidden_size, planned["multi_modal_projector.linear_1.weight"].dtype
    planned[f"{LINEAR_2}.weight"] = Planned(dtype, (width, width), partial(torch.eye, width, dtype=dtype))
    if config.multimodal_projector_bias:
        planned[f"{LINEAR_2}.bias"] = Planned(dtype, (width,), partial(torch.zeros, width, dtype=dtype))
    config.projector_hidden_act = "linear"
    return ["the linear projector is written as LLaVA's two layers, the second an identity"]


def _rows_for_image_token(parts: Parts, planned: dict[str, Planned]) -> list[str]:
    config, rows = parts.config, parts.config.text_config.vocab_size
    image = config.image_token_index
    if image < rows:
        return []
    longer = -(-(image + 1) // ROWS) * ROWS
    unknown = parts.processor.tokenizer.unk_token_id
    for name in (WORDS, LM_HEAD):
        if name in planned:
            table = planned[name]
            planned[name] = Planned(table.dtype, (longer, *table.shape[1:]), _with_rows(table.make, longer, unknown))
    config.text_config.vocab_size = longer
    like = "<unk>" if unknown is not None else "the mean of all"
    return [
        f"<image> is word {image} and the tables have {rows} rows: they get {longer}, the new ones like {like}; the logits of "
        f"the first {rows} words are unchanged"
    ]


def _with_rows(make: Callable[[], Tensor], rows: int, like: int | None) -> Callable[[], Tensor]:
    def longer() -> Tensor:
        table = make()
        # A word that no training text holds was only ever pushed down: its copies are never the likeliest.
        row = table[like] if like is not None else table.float().mean(0).to(table.dtype)
        return torch.cat([table, row.expand(rows - len(table), -1)])

    return longer


def _plain_config(config: VisualWordLlavaConfig) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    fields = {name: value for name, value in config.to_dict().items() if name not in OUR_FIELDS}
    fields |= {"model_type": LlavaConfig.model_type, "architectures": [LlavaForConditionalGeneration.__name__]}
    return LlavaConfig.from_dict(fields)


def _check_plain(config: Any, planned: dict[str, Planned]) -> None:
    """What is written is exactly what transformers' class will look for."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = {comparable(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop(LM_HEAD)
    written = {comparable(name): tensor.shape for name, tensor in planned.items()}
    if written != expected:
        different = sorted({name for name, _ in written.items() ^ expected.items()})
        raise ValueError(f"The tensors are not those of transformers' LLaVA: {', '.join(different)}.")
