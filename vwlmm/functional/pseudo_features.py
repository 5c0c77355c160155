"""Pseudo image features: each patch replaced by the mean word embedding under its visual word, streamed.

The decoder then reads nothing but mixtures of its own word embeddings. Paper: VW-LMM, arXiv 2403.07720.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vwlmm.functional.streaming import (
    StreamedHead,
    WeightGradient,
    check_rows,
    choose_block_rows,
    choose_chunk_rows,
    finish,
    matmul_dtype,
    ranges,
    statistics_dtype,
)


def pseudo_image_features(
    features: Tensor,
    vm_weight: Tensor,
    word_embeddings: Tensor,
    *,
    chunk_rows: int | None = None,
) -> Tensor:
    """softmax(features @ vm_weightᵀ) @ word_embeddings: what the visual words mean to the language model.

    The visual words are made a chunk of rows at a time, in the forward and again in the backward, so that no
    `[rows, vocab]` tensor ever exists. Matmuls run in the inputs' dtype (autocast's, where it is on), the softmax in
    fp32; float64 stays float64. No rows give an empty, connected result.

    Args:
        features: projected image features, `[rows, width]`.
        vm_weight: the VM head, `[vocab, width]`.
        word_embeddings: the language model's table, `[vocab, hidden]`. May be the very tensor given as `vm_weight`.
        chunk_rows: rows that pass the head at once; None chooses by memory.

    Returns:
        `[rows, hidden]`, in the matmuls' dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Source: VW-LMM, pseudo image features ("PIF"), the product of visual words and word embeddings. Unlike a call of
        the embedding module on every word, a padding row of the table gets its gradient here.
    """
    check_rows("features", features, "vm_weight", vm_weight)
    if word_embeddings.dim() != 2 or len(word_embeddings) != len(vm_weight):
        raise ValueError(
            f"word_embeddings is a matrix with one row for each of vm_weight's {len(vm_weight)} words, "
            f"got shape {tuple(word_embeddings.shape)}: resize the VM head together with the embeddings."
        )
    if word_embeddings.device != features.device or matmul_dtype(word_embeddings) != matmul_dtype(features):
        raise ValueError(
            f"features are {features.dtype} on {features.device} and word_embeddings {word_embeddings.dtype} on "
            f"{word_embeddings.device}: cast or move one to the other."
        )
    dtype = matmul_dtype(features)
    # Two buffers: the backward holds the words and their gradient at once.
    chunk = choose_chunk_rows(chunk_rows, len(features), features.device, 2 * len(vm_weight) * dtype.itemsize)
    return _PseudoFeatures.apply(features, vm_weight, word_embeddings, dtype, chunk)


class _PseudoFeatures(torch.autograd.Function):
    """Attention of the features over the words, with the words made anew in the backward."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, vm_weight: Tensor, word_embeddings: Tensor, dtype: torch.dtype, chunk: int
    ) -> Tensor:
        # As they came: an alias would pin a weight that ZeRO-3 has gathered.
        ctx.save_for_backward(features, vm_weight, word_embeddings)
        ctx.dtype, ctx.chunk = dtype, chunk
        with torch.autocast(features.device.type, enabled=False):
            head = StreamedHead(features, vm_weight, dtype, chunk)
            table = word_embeddings.to(dtype)
            mixed = table.new_empty(len(features), table.shape[1])
            for start, stop in ranges(len(features), chunk):
                torch.mm(_visual_words(head, start, stop), table, out=mixed[start:stop])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mixed_gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, vm_weight, word_embeddings = ctx.saved_tensors
        needs_features, needs_head, needs_table = ctx.needs_input_grad[:3]
        head_sum = WeightGradient(vm_weight) if needs_head else None
        # A head tied to the table adds into one buffer, returned once.
        is_shared = vm_weight is word_embeddings and head_sum is not None
        table_sum = (head_sum if is_shared else WeightGradient(word_embeddings)) if needs_table else None
        with torch.autocast(features.device.type, enabled=False):
            head = StreamedHead(
                features, vm_weight, ctx.dtype, ctx.chunk, learns_rows=needs_features, weight_gradient=head_sum
            )
            # [rows, hidden] gradients pass the table like rows pass a head: gradient @ tableᵀ is [chunk, vocab].
            table = StreamedHead(
                mixed_gradient, word_embeddings, ctx.dtype, ctx.chunk if head.learns else 0, weight_gradient=table_sum
            )
            for start, stop in ranges(len(features), ctx.chunk):
                words = _visual_words(head, start, stop)
                if table_sum is not None:
                    table_sum.add(words, mixed_gradient[start:stop].to(ctx.dtype))
                if head.learns:
                    _through_softmax(words, table.logits(start, stop))
                    head.learn(start, stop)
        return head.rows_gradient, finish(head_sum), None if is_shared else finish(table_sum), None, None


def _scratch(words: Tensor, blocks: int) -> Tensor:
    """Room for the statistics of a block of rows, `[blocks, block, vocab]`."""
    (chunk, vocab), dtype = words.shape, statistics_dtype(words.dtype)
    return words.new_empty(blocks, choose_block_rows(chunk, vocab, dtype, words.device), vocab, dtype=dtype)


def _visual_words(head: StreamedHead, start: int, stop: int) -> Tensor:
    """softmax of a chunk's logits, in place, `[chunk, vocab]`."""
    logits = head.logits(start, stop)
    scratch = _scratch(logits, 1)[0]
    for top, end in ranges(len(logits), len(scratch)):
        logits[top:end] = torch.softmax(logits[top:end], -1, dtype=scratch.dtype, out=scratch[: end - top])
    return logits


def _through_softmax(words: Tensor, words_gradient: Tensor) -> None:
    """From the gradient by the visual words to that by their logits, which replaces `words`; both `[chunk, vocab]`."""
    scratch = _scratch(words, 3)
    for top, end in ranges(len(words), scratch.shape[1]):
        q, gradient = scratch[0, : end - top].copy_(words[top:end]), scratch[1, : end - top]
        gradient.copy_(words_gradient[top:end])
        mean = torch.mul(q, gradient, out=scratch[2, : end - top]).sum(-1, keepdim=True)
        torch.mul(q, gradient.sub_(mean), out=words[top:end])
