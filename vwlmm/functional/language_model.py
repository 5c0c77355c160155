"""Next-token cross-entropy over scored rows, streamed: no `[rows, vocab]` tensor, gradients made in the forward.

The same head machinery as the visual-word loss, with labels in place of the second head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vwlmm.functional.streaming import (
    REDUCTIONS,
    StreamedHead,
    WeightGradient,
    check_choice,
    check_rows,
    choose_block_rows,
    choose_chunk_rows,
    finish,
    matmul_dtype,
    ranges,
    scale_in_place,
    statistics_dtype,
)

NOT_SCORED = -100


def language_model_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """Next-token cross-entropy of rows that are already shifted by one, in nats a scored row.

    Equal to `F.cross_entropy(F.linear(hidden, weight).float(), labels)`, without the logits. The matmuls run in the
    inputs' dtype (autocast's, where it is on), everything else in fp32; float64 stays float64. No scored row gives 0,
    with gradients of zero. Gradients are made as in `visual_word_loss`.

    Args:
        hidden: decoder states, `[rows, hidden]`: give only the rows that carry a label, each row costs a matmul.
        weight: the LM head, `[vocab, hidden]`.
        labels: the next token of each row, `[rows]`, integer; −100 is tolerated and not scored.
        reduction: "mean" (over scored rows), "sum" or "none" (0 where not scored).
        chunk_rows: rows that pass the head at once; None chooses by memory.

    Returns:
        A scalar, or `[rows]` for "none"; fp32, or float64 for float64 inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an unknown reduction.
        RuntimeError, IndexError: (from torch) a label that is no word of the vocabulary.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_rows("hidden", hidden, "weight", weight)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"labels holds one token for each row of hidden, shape ({len(hidden)},), got {tuple(labels.shape)}: "
            "select both by the same positions, labels one position later."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels holds token ids as integers, got {labels.dtype}.")
    dtype = matmul_dtype(hidden)
    chunk = choose_chunk_rows(chunk_rows, len(hidden), hidden.device, len(weight) * dtype.itemsize)
    loss = _NextToken.apply(hidden, weight, labels.long(), dtype, chunk, reduction == "none", torch.is_grad_enabled())
    if reduction == "mean":
        # A tensor, not a Python number: reading the count would make a GPU wait.
        loss = loss / (labels != NOT_SCORED).sum().clamp(min=1)
    return loss


class _NextToken(torch.autograd.Function):
    """The sum over rows (or each row's value) of the cross-entropy; gradients as in `_VisualWords`."""

    # torch 2.13 has F.linear_cross_entropy, whose chunked form (options=...) keeps no [rows, vocab] either, skips a
    # frozen side and is right in fp32. Not used, because there no scored row gives NaN, autocast is ignored (the
    # matmuls stay fp32), a bf16 input gives a loss rounded to bf16, and a second backward raises. On CPU in fp32 (1,152
    # rows, hidden 1024, vocab 32,000) it took 1.16 times the plain form and 146 MB, this one 0.85 times and 59 MB; in
    # bf16 (384 rows, hidden 512, vocab 16,000) 12 times the plain form, this one 1.06: bench/visual_word_loss.py.

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        chunk: int,
        is_per_row: bool,
        is_recorded: bool,
    ) -> Tensor:
        learning = ctx.needs_input_grad[:2] if is_recorded and not is_per_row else (False, False)
        loss, gradients = _stream(hidden, weight, labels, dtype, chunk, learning)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.dtype, ctx.chunk, ctx.is_per_row = dtype, chunk, is_per_row
        ctx.gradients = None if is_per_row else gradients
        return loss if is_per_row else loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            row_scale = loss_gradient if ctx.is_per_row else None
            hidden, weight, labels = ctx.saved_tensors
            gradients = _stream(hidden, weight, labels, ctx.dtype, ctx.chunk, ctx.needs_input_grad[:2], row_scale)[1]
        if not ctx.is_per_row:
            scale_in_place(gradients, loss_gradient)
        return *gradients, None, None, None, None, None


def _stream(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    chunk: int,
    learning: tuple[bool, bool],
    row_scale: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """All rows through the head: the loss of every row, `[rows]`, and the gradients by hidden and weight."""
    weight_sum = WeightGradient(weight) if learning[1] else None
    is_scored = labels != NOT_SCORED
    words = labels.masked_fill(~is_scored, 0)[:, None]
    with torch.autocast(hidden.device.type, enabled=False):
        head = StreamedHead(hidden, weight, dtype, chunk, learns_rows=learning[0], weight_gradient=weight_sum)
        statistics = statistics_dtype(dtype)
        block = choose_block_rows(chunk, len(weight), statistics, hidden.device)
        scratch = hidden.new_empty(block, len(weight), dtype=statistics)
        loss = hidden.new_empty(len(hidden), dtype=statistics)
        for start, stop in ranges(len(hidden), chunk):
            logits = head.logits(start, stop)
            for top, end in ranges(stop - start, block):
                here, word = logits[top:end], words[start + top : start + end]
                scored = is_scored[start + top : start + end, None]
                log_p = torch.log_softmax(here, -1, dtype=statistics, out=scratch[: end - top])
                loss[start + top : start + end] = -(log_p.gather(1, word) * scored)[:, 0]
                if head.learns:
                    p = torch.softmax(here, -1, dtype=statistics, out=log_p)
                    p.scatter_add_(1, word, p.new_full((), -1.0).expand_as(word))
                    torch.mul(p, scored, out=here)
            if head.learns:
                head.learn(start, stop, row_scale)
    return loss, (head.rows_gradient, finish(weight_sum))
