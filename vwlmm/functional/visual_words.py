"""The visual-word loss: an image's words by the VM head against the language model's prediction at that place.

Both heads are streamed and their gradients are made in the forward, so that no `[rows, vocab]` tensor ever exists.
Paper: VW-LMM, "Multi-modal Auto-regressive Modeling via Visual Words", arXiv 2403.07720.
"""

from typing import Any, NamedTuple

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

TARGETS = ("visual_words", "language_model")
DIVERGENCES = ("kl", "cross_entropy")


class VisualWordTerms(NamedTuple):
    """The visual-word loss and what to log beside it, all reduced alike.

    Attributes:
        loss: differentiable, in nats.
        kl: the divergence in the loss' direction, whichever divergence is trained; detached, in nats.
        entropy: H(q) of the visual words; detached, in nats. A collapse of the VM head shows here first: it falls to 0
            (one word everywhere) or rises to log(vocab) (no word at all).
    """

    loss: Tensor
    kl: Tensor
    entropy: Tensor


def visual_word_loss(
    hidden: Tensor,
    lm_weight: Tensor,
    features: Tensor,
    vm_weight: Tensor,
    *,
    target: str = "visual_words",
    detach_target: bool = True,
    divergence: str = "kl",
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """How far the language model's prediction is from the visual words, in nats a row.

    With q = softmax(features @ vm_weightᵀ), the visual words, and p = softmax(hidden @ lm_weightᵀ), the prediction:
    target "visual_words" is KL(q ‖ p) and trains the language model (the released code's stage 4); target
    "language_model" is KL(p ‖ q) and trains the VM head (its stage 3).

    The matmuls run in the inputs' dtype (autocast's, where it is on), everything else in fp32; float64 stays float64.
    No rows give 0, with gradients of zero. Gradients are made in the forward and only scaled in the backward, except
    with `reduction="none"` and in a second backward over a retained graph, where they are made anew.

    Args:
        hidden: decoder states that predict the visual words, `[rows, hidden]`; the shift by one is already done.
        lm_weight: the LM head, `[vocab, hidden]`.
        features: projected image features, in the same order, `[rows, width]`; usually width = hidden.
        vm_weight: the VM head, `[vocab, width]`. May be the very tensor given as `lm_weight`.
        target: whose distribution is the target, "visual_words" or "language_model".
        detach_target: give the target's rows and weight no gradient (None). False is the released code, gradient for
            gradient.
        divergence: "kl", or "cross_entropy" for CE(q, p) or CE(p, q): the same gradient while the target is detached.
            With a live target, cross-entropy rewards a sharper target and collapses it; KL does not.
        reduction: "mean" (over rows), "sum" or "none".
        chunk_rows: rows that pass the heads at once; None chooses by memory.

    Returns:
        A scalar, or `[rows]` for "none"; fp32, or float64 for float64 inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit, an unknown word, a number of rows or words that differs.

    Source: VW-LMM section 3; the gradients are elementary: ∂KL(q‖p)/∂z = p − q for the student's logits z, and
        q (log q − log p − KL) for the logits of a live target.
    """
    return visual_word_terms(
        hidden,
        lm_weight,
        features,
        vm_weight,
        target=target,
        detach_target=detach_target,
        divergence=divergence,
        reduction=reduction,
        chunk_rows=chunk_rows,
    ).loss


def visual_word_terms(
    hidden: Tensor,
    lm_weight: Tensor,
    features: Tensor,
    vm_weight: Tensor,
    *,
    target: str = "visual_words",
    detach_target: bool = True,
    divergence: str = "kl",
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> VisualWordTerms:
    """`visual_word_loss` with the values worth logging, from the same pass: loss, KL and the visual words' entropy.

    Arguments, errors and source: see `visual_word_loss`.
    """
    check_choice("target", target, TARGETS)
    check_choice("divergence", divergence, DIVERGENCES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_rows("hidden", hidden, "lm_weight", lm_weight)
    check_rows("features", features, "vm_weight", vm_weight)
    if len(hidden) != len(features):
        raise ValueError(
            f"Each row of hidden predicts one row of features, got {len(hidden)} and {len(features)} rows: "
            "select both by the same image positions, hidden one position earlier."
        )
    if hidden.device != features.device:
        raise ValueError(f"hidden is on {hidden.device} and features on {features.device}: move one to the other.")
    if len(lm_weight) != len(vm_weight):
        raise ValueError(
            f"Both heads speak of the same vocabulary, got {len(lm_weight)} words in lm_weight and {len(vm_weight)} in "
            "vm_weight: resize the VM head together with the LM head."
        )
    dtypes = matmul_dtype(hidden), matmul_dtype(features)
    chunk = choose_chunk_rows(
        chunk_rows, len(hidden), hidden.device, len(lm_weight) * sum(dtype.itemsize for dtype in dtypes)
    )
    plan = _Plan(target == "visual_words", bool(detach_target), divergence == "kl", dtypes, chunk)
    terms = _VisualWords.apply(
        hidden, lm_weight, features, vm_weight, plan, reduction == "none", torch.is_grad_enabled()
    )
    if reduction == "mean":
        terms = (term / max(len(hidden), 1) for term in terms)
    return VisualWordTerms(*terms)


class _Plan(NamedTuple):
    """What the two heads are compared by; numbers and words only, so that keeping it keeps no tensor."""

    visual_words_are_target: bool
    detach_target: bool
    is_kl: bool
    dtypes: tuple[torch.dtype, torch.dtype]  # of the matmuls of the LM head and of the VM head
    chunk: int  # rows

    def learning(self, needed: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which of (hidden, lm_weight, features, vm_weight) gets a gradient, of those that are needed."""
        if not self.detach_target:
            return needed
        hidden, lm_weight, features, vm_weight = needed
        if self.visual_words_are_target:
            return hidden, lm_weight, False, False
        return False, False, features, vm_weight


class _VisualWords(torch.autograd.Function):
    """The sum over rows (or each row's value) of the loss, of the KL and of the entropy.

    The forward makes the gradients of the sum, while the logits exist. The first backward scales them in place and
    hands them over, which costs no memory; should there be another one (retain_graph), it makes them anew from the
    saved inputs. The gradient of a *value per row* is not known in the forward, so "none" always makes it anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        lm_weight: Tensor,
        features: Tensor,
        vm_weight: Tensor,
        plan: _Plan,
        is_per_row: bool,
        is_recorded: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = hidden, lm_weight, features, vm_weight
        # needs_input_grad says True under no_grad as well, hence is_recorded.
        learning = plan.learning(ctx.needs_input_grad[:4]) if is_recorded else (False,) * 4
        terms, gradients = _stream(inputs, plan, (False,) * 4 if is_per_row else learning)
        # The inputs as they came: an alias (detach, .t(), a cast) would pin a weight that ZeRO-3 has gathered.
        ctx.save_for_backward(*inputs)
        ctx.plan, ctx.is_per_row = plan, is_per_row
        ctx.gradients = None if is_per_row else gradients
        loss, kl, entropy = terms if is_per_row else terms.sum(-1)
        loss, kl, entropy = loss.clone(), kl.clone(), entropy.clone()
        ctx.mark_non_differentiable(kl, entropy)
        return loss, kl, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            learning = ctx.plan.learning(ctx.needs_input_grad[:4])
            gradients = _stream(ctx.saved_tensors, ctx.plan, learning, loss_gradient if ctx.is_per_row else None)[1]
        if not ctx.is_per_row:
            scale_in_place(gradients, loss_gradient)
        return *gradients, None, None, None


def _stream(
    inputs: tuple[Tensor, ...], plan: _Plan, learning: tuple[bool, ...], row_scale: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """All rows through both heads.

    Args:
        inputs: hidden, lm_weight, features, vm_weight.
        plan: what is compared.
        learning: which of the inputs gets a gradient.
        row_scale: `[rows]`, a factor for each row's loss in the gradients; None is 1.

    Returns:
        loss, KL and entropy of every row, `[3, rows]`; and the four gradients (None where not `learning`).
    """
    hidden, lm_weight, features, vm_weight = inputs
    lm_sum = WeightGradient(lm_weight) if learning[1] else None
    # Tied heads add into one buffer, returned once: two of them would only be summed by autograd.
    is_shared = lm_weight is vm_weight and lm_sum is not None
    vm_sum = (lm_sum if is_shared else WeightGradient(vm_weight)) if learning[3] else None
    with torch.autocast(hidden.device.type, enabled=False):
        lm = StreamedHead(
            hidden, lm_weight, plan.dtypes[0], plan.chunk, learns_rows=learning[0], weight_gradient=lm_sum
        )
        vm = StreamedHead(
            features, vm_weight, plan.dtypes[1], plan.chunk, learns_rows=learning[2], weight_gradient=vm_sum
        )
        student, teacher = (lm, vm) if plan.visual_words_are_target else (vm, lm)
        dtype = statistics_dtype(*plan.dtypes)
        block = choose_block_rows(plan.chunk, len(lm_weight), dtype, hidden.device)
        scratch = hidden.new_empty(4, block, len(lm_weight), dtype=dtype)
        terms = hidden.new_empty(3, len(hidden), dtype=dtype)
        for start, stop in ranges(len(hidden), plan.chunk):
            student_logits, teacher_logits = student.logits(start, stop), teacher.logits(start, stop)
            for top, end in ranges(stop - start, block):
                _compare(
                    student_logits[top:end],
                    teacher_logits[top:end],
                    plan,
                    (student.learns, teacher.learns),
                    scratch[:, : end - top],
                    terms[:, start + top : start + end],
                )
            for head in (lm, vm):
                head.learn(start, stop, row_scale)
    vm_weight_gradient = None if is_shared else finish(vm_sum)
    return terms, (lm.rows_gradient, finish(lm_sum), vm.rows_gradient, vm_weight_gradient)


def _compare(
    student: Tensor,
    teacher: Tensor,
    plan: _Plan,
    learns: tuple[bool, bool],
    scratch: Tensor,
    terms: Tensor,
) -> None:
    """The terms of a block of rows, and the loss' gradients by its logits, which replace the logits.

    Args:
        student: logits of the side that is pulled to the target, `[block, vocab]`.
        teacher: logits of the target, `[block, vocab]`.
        plan: what is compared.
        learns: whether the student and whether the teacher gets a gradient.
        scratch: `[4, block, vocab]`, overwritten.
        terms: `[3, block]`, filled with loss, KL and entropy.
    """
    dtype = scratch.dtype

    def dot(a: Tensor, b: Tensor) -> Tensor:
        # Into scratch: a fresh product per call, megabytes at a time, fragments the heap by tens of megabytes.
        return torch.mul(a, b, out=scratch[3]).sum(-1)

    # s and t are the paper's p and q, in the roles that the direction gives them.
    log_s = torch.log_softmax(student, -1, dtype=dtype, out=scratch[0])
    log_t = torch.log_softmax(teacher, -1, dtype=dtype, out=scratch[1])
    t = torch.softmax(teacher, -1, dtype=dtype, out=scratch[2])
    entropy = -dot(t, log_t)
    # Either loss is the target's mean of one quantity x: log t − log s, or − log s.
    x = log_t.sub_(log_s) if plan.is_kl else torch.neg(log_s, out=log_t)
    loss = dot(t, x)
    kl = loss if plan.is_kl else loss - entropy
    if learns[1]:
        torch.mul(t, x.sub_(loss[:, None]), out=teacher)
    if learns[0] or not plan.visual_words_are_target:
        s = torch.softmax(student, -1, dtype=dtype, out=scratch[1])  # x is not needed any more
        if not plan.visual_words_are_target:
            entropy = -dot(s, log_s)
        if learns[0]:
            torch.sub(s, t, out=student)
    terms[0], terms[1], terms[2] = loss, kl, entropy
