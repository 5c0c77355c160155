"""Published checkpoints become our folders, one tensor at a time, with a report of every key.

report = convert("checkpoints/vw-lmm-vicuna-7b", "checkpoints/vw-lmm")    # or: vwlmm convert SRC OUT
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vwlmm.assembly import VM_HEAD_STARTS
from vwlmm.config import DTYPES
from vwlmm.models import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration
from vwlmm.weights.folder import finished_folder
from vwlmm.weights.generation import save_generation_config
from vwlmm.weights.layouts import comparable
from vwlmm.weights.parts import VM_HEAD, Parts, Wishes, understand
from vwlmm.weights.report import Report
from vwlmm.weights.sources import open_source
from vwlmm.weights.writing import MAX_SHARD_BYTES, Planned, write_shards

LM_HEAD = "language_model.lm_head.weight"
WORDS = "language_model.model.embed_tokens.weight"


@dataclass
class ConvertConfig:
    """How the tensors are written, and what a checkpoint without a VM head gets."""

    vm_head_init: str = "random"  # or lm_head, word_embeddings: copies of those tables
    dtype: str | None = None  # of the weights; None: the LLM's own
    seed: int = 0  # of a random VM head
    max_shard_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.vm_head_init not in VM_HEAD_STARTS:
            raise ValueError(f"vm_head_init is one of {', '.join(VM_HEAD_STARTS)}: got {self.vm_head_init!r}.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}: got {self.dtype!r}.")
        if self.max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is at least 1, got {self.max_shard_bytes}.")


def convert(
    source: str | Path,
    out: str | Path,
    *,
    wishes: Wishes | None = None,
    config: ConvertConfig | None = None,
    progress: bool = False,
) -> Report:
    """Converts a released VW-LMM, an original LLaVA-1.5, a llava-hf folder or LLaVA's stage-1 projector.

    Args:
        source: a folder, a Hub id, or a projector file.
        out: the folder to make; it appears when it is whole.
        wishes: parts and settings that the checkpoint does not hold.
        config: how it is written.
        progress: show a bar.

    Returns:
        The report, which is also saved in the folder as `conversion.json`.

    Raises:
        FileNotFoundError, FileExistsError, OSError: files that are missing, in the way, or find no room.
        ValueError: damaged files, a pickle with code, or tensors that do not fit the configuration, with their list.
    """
    parts = understand(open_source(source), wishes or Wishes())
    return convert_parts(parts, source, out, config or ConvertConfig(), progress=progress)


def convert_parts(
    parts: Parts, source: str | Path, out: str | Path, config: ConvertConfig, *, progress: bool = False
) -> Report:
    """Writes a checkpoint that has been understood; arguments, result and errors as `convert`'s."""
    expected = expected_tensors(parts.config)
    check_tensors(parts, expected, source)
    planned = _planned(parts, config, expected)
    with finished_folder(out, needed_bytes=sum(tensor.size for tensor in planned.values())) as folder:
        write_shards(folder, planned, max_shard_bytes=config.max_shard_bytes, progress=progress)
        parts.config.architectures = [VisualWordLlavaForConditionalGeneration.__name__]
        parts.config.dtype = planned[WORDS].dtype
        parts.config.save_pretrained(folder)
        parts.processor.save_pretrained(folder)
        if (parts.folder / "tokenizer.model").is_file():
            shutil.copyfile(parts.folder / "tokenizer.model", folder / "tokenizer.model")
        parts.report.notes += save_generation_config(parts.folder, parts.config.text_config, folder)
        parts.report.write(folder)
    return parts.report


def expected_tensors(config: VisualWordLlavaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's tensors by comparable name; a tied LM head is none of its own."""
    with torch.device("meta"):
        model = VisualWordLlavaForConditionalGeneration(config)
    shapes = {comparable(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(LM_HEAD)
    return shapes


def check_tensors(parts: Parts, expected: dict[str, tuple[int, ...]], source: str | Path) -> None:
    """Compares names and shapes with those that the configuration asks for; only the VM head may be missing.

    Raises:
        ValueError: with the list of missing, unexpected and differently shaped tensors.
    """
    if LM_HEAD not in expected and LM_HEAD in parts.tensors:
        _, name = parts.tensors.pop(LM_HEAD)
        parts.report.mapped.pop(name)
        parts.report.ignored[name] = "tied to the word embeddings"
    have = {comparable(name): name for name in parts.tensors}
    missing = sorted(set(expected) - set(have) - {VM_HEAD})
    unexpected = sorted([*parts.unknown, *(parts.tensors[have[name]][1] for name in set(have) - set(expected))])
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the tensors that its config.json tells of. Missing: {', '.join(missing) or 'none'}. "
            f"Unexpected: {', '.join(unexpected) or 'none'}."
        )
    wrong = []
    for name, ours in have.items():
        weights, theirs = parts.tensors[ours]
        if weights.tensors[theirs].shape != expected[name]:
            wrong.append(f"{theirs} is {weights.tensors[theirs].shape}, not {expected[name]}")
    if wrong:
        vocabulary = any("embed_tokens" in line or "_head" in line for line in wrong)
        hint = f" (vocab_size there is {parts.config.text_config.vocab_size})" if vocabulary else ""
        raise ValueError(f"{source} holds tensors of another size than its config.json says{hint}: {'; '.join(wrong)}.")


def _planned(parts: Parts, config: ConvertConfig, expected: dict[str, tuple[int, ...]]) -> dict[str, Planned]:
    weights, words = parts.tensors[WORDS]
    dtype = getattr(torch, config.dtype) if config.dtype else weights.tensors[words].dtype
    planned, cast = {}, 0
    for ours, (files, name) in parts.tensors.items():
        stored = files.tensors[name]
        becomes = dtype if stored.dtype.is_floating_point else stored.dtype
        cast += becomes != stored.dtype
        planned[ours] = Planned(becomes, stored.shape, partial(files.read, name))
    if cast:
        parts.report.notes.append(f"{cast} tensors become {str(dtype).removeprefix('torch.')}")
    if VM_HEAD not in planned:
        planned[VM_HEAD] = Planned(dtype, expected[VM_HEAD], _vm_head(parts, planned, config))
        how = {"random": f"random, normal with the LLM's initializer_range, seed {config.seed}"}
        parts.report.created[VM_HEAD] = how.get(config.vm_head_init, f"a copy of the {config.vm_head_init} table")
    return planned


def _vm_head(parts: Parts, planned: dict[str, Planned], config: ConvertConfig) -> Callable[[], Tensor]:
    if config.vm_head_init != "random":
        table = LM_HEAD if config.vm_head_init == "lm_head" and LM_HEAD in planned else WORDS
        return planned[table].make
    text = parts.config.text_config

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(config.seed)
        return torch.randn(text.vocab_size, text.hidden_size, generator=generator) * text.initializer_range

    return draw
