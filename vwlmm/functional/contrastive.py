"""The symmetric contrastive loss over pairs, streamed: no `[pairs, pairs]` matrix, and optionally the pairs of all ranks.

Paper: freeze-align (arXiv 2409.19425), the loss of CLIP (arXiv 2103.00020) with the temperature as a divisor.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vwlmm.functional.streaming import check_choice, ranges, scale_in_place, statistics_dtype

# Similarities kept at once, in bytes. On CPU 8 MiB is 256 rows against 8,192 columns in fp32.
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
MIN_CHUNK_ROWS = 64


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    temperature: Tensor,
    *,
    gather: bool = False,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """How well every image finds its own text among all texts, and every text its own image.

    `S = images textsᵀ / temperature`, and the loss of a pair is half its cross-entropy along its row of S plus half along
    its column.

    Args:
        images: `[pairs, dim]`, of length 1 for cosines.
        texts: `[pairs, dim]`, row i belongs to image i.
        temperature: the divisor, a scalar tensor.
        gather: compare with the pairs of all ranks. Gradients go back to the rank a pair came from, so that the ranks'
            losses add up to the loss of the joined batch, and so do their gradients.
        reduction: `sum` over this rank's pairs, or `mean`: that sum over the number of pairs compared with (of all ranks
            with `gather`).
        chunk_rows: rows of S at once; None chooses by memory. The result is the same.

    Returns:
        A scalar in fp32 (float64 where an input is), with gradients for images, texts and temperature. No pairs give a
        connected 0.

    Raises:
        ValueError: not two matrices of one shape, a temperature that is not one number, an unknown reduction.
    """
    _check(images, texts, temperature)
    check_choice("reduction", reduction, ("mean", "sum"))
    all_images, all_texts, first = None, None, 0
    if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        pairs, first = gather_rows(torch.cat([images, texts], dim=1))  # one collective for both
        all_images, all_texts = pairs.split(images.shape[1], dim=1)
    columns = len(images if all_images is None else all_images)
    rows = _chunk_rows(chunk_rows, columns, images.device)
    total = _Contrastive.apply(first, rows, images, texts, temperature, all_images, all_texts)
    return total / max(columns, 1) if reduction == "mean" else total


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks in their order, `[all rows, dim]`, and where this rank's begin; ranks may hold different numbers.

    In the backward every rank's gradient of a row is added and goes to the rank the row came from.
    """
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    lengths = [int(count) for count in counts]
    return _GatherRows.apply(rows, lengths), sum(lengths[: dist.get_rank()])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int]) -> Tensor:
        ctx.first, ctx.length = sum(lengths[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(lengths), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.length], None


class _Contrastive(torch.autograd.Function):
    """Sum over own pairs. The gradients are made in the forward, while a chunk of similarities is there, and scaled later.

    `given`: images and texts of this rank, the temperature, and images and texts of all ranks, or None for the same.
    """

    @staticmethod
    def forward(ctx: Any, first: int, chunk_rows: int, *given: Tensor | None) -> Tensor:
        total, ctx.gradients = _both_ways(given, first, chunk_rows, ctx.needs_input_grad[2:])
        ctx.save_for_backward(*given)
        ctx.first, ctx.chunk_rows = first, chunk_rows
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # handed over: there is one copy of them
        if gradients is None:  # a graph that was kept is walked a second time
            gradients = _both_ways(ctx.saved_tensors, ctx.first, ctx.chunk_rows, ctx.needs_input_grad[2:])[1]
        scale_in_place(gradients, scale)
        return None, None, *gradients


def _both_ways(
    given: tuple[Any, ...], first: int, chunk_rows: int, needed: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The sum over own pairs, and its gradients by the five tensors `given` where they are `needed`, else None."""
    images, texts, temperature, all_images, all_texts = given
    dtype = statistics_dtype(images.dtype, texts.dtype, temperature.dtype)
    # fp32: cosines over a temperature of 0.01 lose the loss' digits in bf16.
    image_rows, text_rows, heat = images.to(dtype), texts.to(dtype), temperature.to(dtype)
    image_columns = image_rows if all_images is None else all_images.to(dtype)
    text_columns = text_rows if all_texts is None else all_texts.to(dtype)
    own = [torch.zeros_like(image_rows), torch.zeros_like(text_rows)] if any(needed) else None
    others = own
    if own is not None and all_images is not None:
        others = [torch.zeros_like(image_columns), torch.zeros_like(text_columns)]
    total, by_heat = image_rows.new_zeros(()), image_rows.new_zeros(())
    for rows, columns, here in ((image_rows, text_columns, 0), (text_rows, image_columns, 1)):
        gradients = None if own is None or others is None else (own[here], others[1 - here])
        part, part_by_heat = _one_way(rows, columns, heat, first, chunk_rows, gradients)
        total, by_heat = total + part / 2, by_heat + part_by_heat / 2
    if own is None or others is None:
        return total, (None,) * 5
    made = [*own, by_heat.reshape(temperature.shape), *([None, None] if all_images is None else others)]
    return total, tuple(
        None if gradient is None or tensor is None or not wanted else gradient.to(tensor.dtype)
        for gradient, wanted, tensor in zip(made, needed, given, strict=True)
    )


def _one_way(
    rows: Tensor,
    columns: Tensor,
    temperature: Tensor,
    first: int,
    chunk_rows: int,
    gradients: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every row against its own column, row i's being `first + i`, summed; and its slope by temperature.

    `gradients`, of rows and of columns, are added to in place, at half weight as in the symmetric loss.
    """
    total, by_heat = rows.new_zeros(()), rows.new_zeros(())
    for start, stop in ranges(len(rows), chunk_rows):
        chunk = rows[start:stop]
        logits = (chunk @ columns.T).div_(temperature)  # [chunk, columns]
        own = torch.arange(start + first, stop + first, device=rows.device).unsqueeze(1)
        of_own = logits.gather(1, own)
        largest = logits.amax(1, keepdim=True)
        slopes = logits.sub_(largest).exp_()  # in place all along: torch's logsumexp makes two more such matrices
        normaliser = slopes.sum(1, keepdim=True)
        total = total + (normaliser.log() + largest - of_own).sum()
        if gradients is None:
            continue
        slopes.div_(normaliser).scatter_add_(1, own, slopes.new_full(own.shape, -1.0))
        by_rows = (slopes @ columns).div_(temperature)  # [chunk, dim]
        # The logits are rows · columns / temperature: their slope by the temperature follows from the one by the rows.
        by_heat = by_heat - (by_rows * chunk).sum() / temperature
        gradients[0][start:stop].add_(by_rows, alpha=0.5)
        gradients[1].addmm_(slopes.T, chunk.div(2 * temperature))
    return total, by_heat


def _chunk_rows(chunk_rows: int | None, columns: int, device: torch.device) -> int:
    if chunk_rows is not None and (isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(f"chunk_rows is a positive number of rows or None (choose by memory), got {chunk_rows!r}.")
    most = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * max(columns, 1))
    return chunk_rows or max(most, MIN_CHUNK_ROWS)


def _check(images: Tensor, texts: Tensor, temperature: Tensor) -> None:
    if images.dim() != 2 or images.shape != texts.shape:
        raise ValueError(
            "A contrastive loss takes pairs, images [pairs, dim] and as many texts: got shapes "
            f"{tuple(images.shape)} and {tuple(texts.shape)}."
        )
    if temperature.numel() != 1 or not temperature.is_floating_point():
        raise ValueError(f"temperature is a scalar tensor, the divisor of the cosines: got {temperature!r}.")
