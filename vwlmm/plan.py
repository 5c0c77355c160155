"""What a recipe needs before it is run: parameters, tokens, steps, arithmetic, and memory by ZeRO level. No weight is loaded.

print(plan(read_recipe("train/visual_words/vicuna_7b/2_instruct.yaml"), num_gpus=8, gpu_memory=80))
"""

import itertools
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from vwlmm.config import ModelConfig, Recipe
from vwlmm.data.bad_row import BadRow
from vwlmm.data.encode import IGNORE, EncodedRow
from vwlmm.embedded import resolve
from vwlmm.flops import PEAK_FLOPS, StepFlops
from vwlmm.models import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration
from vwlmm.zero_config import share_batch

GIB = 2**30
USABLE = 0.92  # of a GPU: the rest is the driver's, the kernels' and what the allocator cannot use
STREAMED_ROWS = 128  # rows of logits that a streamed loss holds at once
MFU = 0.4  # share of the peak that such runs reach; for the time alone


@dataclass(frozen=True)
class Model:
    """Counts of a model that exists in shape only."""

    config: Any
    by_part: dict[str, int]  # parameters
    learned: int
    backward: bool  # gradients pass through the language model
    flops: StepFlops
    dtype_bytes: int


@dataclass(frozen=True)
class Data:
    """What a sample of the rows is like."""

    num_rows: int | None  # None: streamed
    sampled: int
    bad: int
    tokens: float  # a row, mean
    longest: int  # tokens
    images: float  # a row, mean
    most_images: int
    scored: float  # text tokens a row, mean


def plan(recipe: Recipe, *, num_gpus: int = 1, gpu_memory: float | None = None, sample: int = 200) -> str:
    """A recipe's needs in words and a table.

    Args:
        recipe: as `read_recipe` gives it. Its data are read (`sample` rows are encoded, no image is opened) and its
            configurations; no weights.
        num_gpus: ranks that share the batch and, under ZeRO, the states.
        gpu_memory: of one GPU, in GiB; without it nothing is said about fitting.

    Raises:
        FileNotFoundError, ValueError: data or model configurations that cannot be read.
    """
    if not isinstance(recipe.model, ModelConfig):
        raise ValueError(
            f"vwlmm plan counts models with an LLM; {recipe.objective['name']} trains small projectors between frozen towers, "
            "whose cached features the run itself sizes up (data.cache)."
        )
    model = describe_model(recipe)
    data = describe_data(recipe, sample)
    arguments = recipe.training | share_batch(recipe.training, processes=num_gpus)
    per_step = (
        int(arguments.get("per_device_train_batch_size", 8))
        * int(arguments.get("gradient_accumulation_steps", 1))
        * num_gpus
    )
    parts = [
        f"Plan of {recipe.source} on {num_gpus} GPU{'s' if num_gpus > 1 else ''}"
        + (f" of {gpu_memory:g} GiB" if gpu_memory else ""),
        _parameters(model),
        _data(data),
        _steps(model, data, arguments, per_step, num_gpus),
        _memory(model, data, arguments, num_gpus, gpu_memory),
    ]
    return "\n\n".join(parts)


def describe_model(recipe: Recipe) -> Model:
    """The recipe's model on the meta device, with who learns in it."""
    from vwlmm.trainable import add_lora, set_trainable

    config = _configuration(recipe.model)
    with torch.device("meta"):
        model: Any = VisualWordLlavaForConditionalGeneration(config)
    rates = {name: rate or 0.0 for name, rate in recipe.trainable.items()}
    if recipe.lora is not None:
        add_lora(model, recipe.lora, rates)  # adapters are put into the model itself
    else:
        set_trainable(model, rates)
    named = {
        "vision tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language model": model.model.language_model,
        "LM head": model.lm_head,
        "VM head": model.vm_head,
    }
    seen: set[int] = set()
    by_part = {}
    for name, module in named.items():
        own = [p for p in module.parameters() if id(p) not in seen]  # a tied head counts once
        seen |= {id(p) for p in own}
        by_part[name] = sum(p.numel() for p in own)
    learned = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    flops = StepFlops(model)
    before = any(
        p.requires_grad
        for module in (model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model)
        for p in module.parameters()
    )
    dtype_bytes = torch.empty(0, dtype=getattr(torch, recipe.model.dtype)).element_size()
    return Model(config, by_part, sum(learned.values()), before, flops, dtype_bytes)


def describe_data(recipe: Recipe, sample: int) -> Data:
    """Lengths and images of rows spread evenly over the training data (the first ones of a stream)."""
    from vwlmm.data.dataset import load_datasets
    from vwlmm.training import build_processor

    processor = build_processor(recipe.model)
    rows, _ = load_datasets(recipe.data, processor, seed=int(recipe.training.get("seed", 42)))
    encoded: list[EncodedRow] = []
    bad = 0
    num_rows = None if recipe.data.streaming else len(rows)  # type: ignore[arg-type]
    if num_rows is None:
        encoded += itertools.islice(rows.encoded_rows(), sample)  # type: ignore[union-attr]
    else:
        for index in range(0, num_rows, math.ceil(num_rows / sample)):
            try:
                encoded.append(rows.encoded(index))  # type: ignore[union-attr]
            except BadRow:
                bad += 1
    if not encoded:
        raise ValueError(f"{recipe.data.path}: none of {bad} rows looked at can be learned from; see vwlmm data check.")
    lengths, images = [len(row.input_ids) for row in encoded], [len(row.images) for row in encoded]
    scored = sum(label != IGNORE for row in encoded for label in row.labels)
    return Data(
        num_rows=num_rows,
        sampled=len(encoded),
        bad=bad,
        tokens=sum(lengths) / len(encoded),
        longest=max(lengths),
        images=sum(images) / len(encoded),
        most_images=max(images),
        scored=scored / len(encoded),
    )


def _configuration(config: ModelConfig) -> VisualWordLlavaConfig:
    if config.init_from is None:
        from vwlmm.assembly import configure

        return configure(**config.new_model())[0]
    changes: dict[str, Any] = (
        {} if config.pseudo_image_features is None else {"pseudo_image_features": config.pseudo_image_features}
    )
    return VisualWordLlavaConfig.from_pretrained(str(resolve(config.init_from)), **changes)


def _parameters(model: Model) -> str:
    total = sum(model.by_part.values())
    parts = "  ".join(f"{name} {_count(count)}" for name, count in model.by_part.items())
    return f"Parameters: {_count(total)}, of which {_count(model.learned)} learn.\n  {parts}"


def _data(data: Data) -> str:
    rows = "a stream of rows" if data.num_rows is None else f"{data.num_rows:,} rows"
    text = (
        f"Data: {rows}; {data.sampled} of them encoded: {data.tokens:.0f} tokens a row (longest {data.longest:,}), "
        f"{data.images:.2f} images (most {data.most_images}), {data.scored:.0f} scored text tokens."
    )
    return text + (f"\n  {data.bad} rows looked at cannot be learned from: run vwlmm data check." if data.bad else "")


def _steps(model: Model, data: Data, arguments: dict[str, Any], per_step: int, num_gpus: int) -> str:
    steps = int(arguments.get("max_steps", -1))
    epochs = float(arguments.get("num_train_epochs", 3))
    if steps <= 0:
        if data.num_rows is None:
            raise ValueError("training.max_steps: a stream has no known end, so give the number of steps.")
        steps = math.ceil(math.ceil(data.num_rows / per_step) * epochs)
    visual = data.images * model.config.image_seq_length
    operations = model.flops(
        tokens=round(data.tokens * per_step),
        rows=per_step,
        images=round(data.images * per_step),
        num_items={"lm": round(data.scored * per_step), "vm": round(visual * per_step)},
    )
    peak = PEAK_FLOPS["H100"]
    seconds = round(steps * operations / (MFU * peak * num_gpus))
    return (
        f"Steps: {steps:,} of {per_step:,} rows, {data.tokens * per_step:,.0f} tokens and {operations / 1e12:,.1f} TFLOP each; "
        f"{_count(round(steps * per_step * data.tokens))} tokens in all.\n"
        f"  At {MFU:.0%} of an H100's dense bf16 peak that is {timedelta(seconds=seconds)} (h:mm:ss) on {num_gpus}; other GPUs "
        "by their peak."
    )


def _memory(model: Model, data: Data, arguments: dict[str, Any], num_gpus: int, gpu_memory: float | None) -> str:
    weights = sum(model.by_part.values()) * model.dtype_bytes
    gradients = model.learned * model.dtype_bytes
    # Adam's two moments; beside half-precision weights DeepSpeed keeps fp32 moments and an fp32 copy.
    plain_states, zero_states = 2 * gradients, model.learned * (8 if model.dtype_bytes == 4 else 12)
    activations = activation_bytes(model, data, arguments)
    gathered = _gathered_bytes(model)
    levels = {
        "no ZeRO": (weights, gradients, plain_states, activations),
        "ZeRO-1": (weights, gradients, zero_states / num_gpus, activations),
        "ZeRO-2": (weights, gradients / num_gpus, zero_states / num_gpus, activations),
        "ZeRO-3": (weights / num_gpus + gathered, gradients / num_gpus, zero_states / num_gpus, activations),
        "ZeRO-3, offload": (gathered, gradients / num_gpus, 0.0, activations),
    }
    lines = [
        "Memory of one GPU at the longest rows, in GiB (an estimate: `vwlmm train RECIPE training.max_steps=2` measures):",
        f"  {'':16}{'weights':>10}{'gradients':>11}{'optimiser':>11}{'activations':>13}{'total':>9}",
    ]
    for name, level in levels.items():
        cells = "".join(f"{value / GIB:>{width}.2f}" for value, width in zip(level, (10, 11, 11, 13), strict=True))
        total = sum(level) / GIB
        fits = "" if gpu_memory is None else "   fits" if total <= USABLE * gpu_memory else "   does not fit"
        lines.append(f"  {name:16}{cells}{total:>9.2f}{fits}")
    chosen = arguments.get("deepspeed")
    lines.append(f"  The recipe uses {chosen or 'no ZeRO'}. Offload keeps weights and states in the host's memory.")
    return "\n".join(lines)


def activation_bytes(model: Model, data: Data, arguments: dict[str, Any]) -> float:
    """What is kept for the backward pass of one micro-batch of the longest rows seen, streamed losses included, in bytes.

    A decoder layer keeps about 8 rows of its width and 4 of its inner width for each token (attention through sdpa keeps
    no scores); with gradient checkpointing one row a layer, and one whole layer at a time. A frozen vision tower keeps one
    layer while it runs.
    """
    batch = int(arguments.get("per_device_train_batch_size", 8))
    half = arguments.get("bf16") or arguments.get("fp16") or model.dtype_bytes == 2
    size = 2 if half else 4
    text, vision = model.config.text_config, model.config.vision_config
    tokens = batch * data.longest
    layer = tokens * size * (8 * text.hidden_size + 4 * _inner(text))
    layers = text.num_hidden_layers if model.backward else 1
    if arguments.get("gradient_checkpointing") and model.backward:
        llm = layer + layers * tokens * size * text.hidden_size
    else:
        llm = layer * layers
    merge = model.config.projector_patch_merge
    patches = batch * data.most_images * model.config.image_seq_length * merge**2
    tower = patches * size * (8 * vision.hidden_size + 4 * _inner(vision))
    tower *= vision.num_hidden_layers if model.flops.learns_tower else 1
    loss = 2 * STREAMED_ROWS * text.vocab_size * 4
    return llm + tower + loss


def _gathered_bytes(model: Model) -> float:
    """The largest piece that ZeRO-3 gathers: a vocabulary table, or two decoder layers."""
    text = model.config.text_config
    table = text.vocab_size * text.hidden_size
    layer = (model.by_part["language model"] - table) / text.num_hidden_layers
    return model.dtype_bytes * max(table, 2 * layer)


def _inner(config: Any) -> int:
    return int(getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"
