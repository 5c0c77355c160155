"""The streamed visual-word loss: the textbook form in value and gradient, in any chunking, dtype and direction."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from functional_twins import (
    DIVERGENCES,
    HIDDEN,
    ROWS,
    TARGETS,
    VOCAB,
    assert_same,
    gradients,
    make,
    plain_terms,
    two_heads,
)
from torch import Tensor

from vwlmm.functional import visual_word_loss, visual_word_terms


@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("target", TARGETS)
def test_streamed_loss_equals_the_textbook_form(target, divergence, detach_target, reduction, chunk_rows):
    inputs = two_heads()
    how = {"target": target, "divergence": divergence, "detach_target": detach_target}
    ours = visual_word_terms(*inputs, **how, reduction=reduction, chunk_rows=chunk_rows)
    theirs = [v if reduction == "none" else getattr(v, reduction)() for v in plain_terms(*inputs, **how)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    weight = make(ROWS, learns=False) if reduction == "none" else torch.tensor(1.7, dtype=torch.float64)
    assert_same(gradients((ours.loss * weight).sum(), inputs), gradients((theirs[0] * weight).sum(), inputs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("target", "divergence"), itertools.product(TARGETS, DIVERGENCES))
def test_gradcheck_of_the_visual_word_loss_with_a_live_target(target, divergence, reduction):
    inputs = two_heads(rows=3)
    how = {"target": target, "divergence": divergence, "detach_target": False, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda *x: visual_word_loss(*x, **how, chunk_rows=2), inputs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("target", "divergence"), itertools.product(TARGETS, DIVERGENCES))
def test_gradcheck_of_the_visual_word_loss_with_a_detached_target(target, divergence, reduction):
    inputs = two_heads(rows=3)
    student = slice(0, 2) if target == "visual_words" else slice(2, 4)
    frozen = [x.detach() for x in inputs]

    def loss(rows: Tensor, weight: Tensor) -> Tensor:
        tensors = list(frozen)
        tensors[student] = rows, weight
        return visual_word_loss(*tensors, target=target, divergence=divergence, reduction=reduction, chunk_rows=2)

    assert torch.autograd.gradcheck(loss, inputs[student])


@pytest.mark.parametrize("target", TARGETS)
def test_a_detached_target_gets_no_gradient_at_all(target):
    inputs = two_heads()
    got = gradients(visual_word_loss(*inputs, target=target), inputs)
    learns = [gradient is not None for gradient in got]
    assert learns == ([True, True, False, False] if target == "visual_words" else [False, False, True, True])


def test_stage_4_gradients_are_the_formulas_of_the_paper_note():
    hidden, lm_weight, features, vm_weight = inputs = two_heads()
    p, q = torch.softmax(hidden @ lm_weight.T, -1).detach(), torch.softmax(features @ vm_weight.T, -1).detach()
    kl = (q * (q.log() - p.log())).sum(-1, keepdim=True)
    by_z, by_v = p - q, q * (q.log() - p.log() - kl)
    got = gradients(visual_word_loss(*inputs, detach_target=False, reduction="sum"), inputs)
    assert_same(got, [by_z @ lm_weight, by_z.T @ hidden, by_v @ vm_weight, by_v.T @ features])


def test_stage_3_gradients_are_the_formulas_of_the_paper_note():
    hidden, lm_weight, features, vm_weight = inputs = two_heads()
    p, q = torch.softmax(hidden @ lm_weight.T, -1).detach(), torch.softmax(features @ vm_weight.T, -1).detach()
    kl = (p * (p.log() - q.log())).sum(-1, keepdim=True)
    by_z, by_v = p * (p.log() - q.log() - kl), q - p
    how = {"target": "language_model", "detach_target": False, "reduction": "sum"}
    got = gradients(visual_word_loss(*inputs, **how), inputs)
    assert_same(got, [by_z @ lm_weight, by_z.T @ hidden, by_v @ vm_weight, by_v.T @ features])


def test_loss_is_torchs_kl_div_in_the_released_codes_batchmean():
    hidden, lm_weight, features, vm_weight = inputs = two_heads()
    log_p, q = F.log_softmax(hidden @ lm_weight.T, -1), F.softmax(features @ vm_weight.T, -1)
    torch.testing.assert_close(visual_word_loss(*inputs), F.kl_div(log_p, q, reduction="batchmean"))


@pytest.mark.parametrize("learning", list(itertools.product([False, True], repeat=4)))
def test_any_of_the_four_inputs_may_be_frozen(learning):
    inputs = [x.detach().requires_grad_(learns) for x, learns in zip(two_heads(), learning, strict=True)]
    ours = visual_word_loss(*inputs, detach_target=False, chunk_rows=3)
    theirs = plain_terms(*inputs, detach_target=False)[0].mean()
    assert ours.requires_grad == any(learning)
    if any(learning):
        assert_same(gradients(ours, inputs), gradients(theirs, inputs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_both_heads_may_be_one_tensor(target, detach_target, reduction):
    hidden, weight, features = make(ROWS, HIDDEN), make(VOCAB, HIDDEN), make(ROWS + 1, HIDDEN)[1:]
    inputs = [hidden, weight, features.detach().requires_grad_()]
    how = {"target": target, "detach_target": detach_target}
    ours = visual_word_loss(hidden, weight, inputs[2], weight, **how, reduction=reduction, chunk_rows=3)
    theirs = plain_terms(hidden, weight, inputs[2], weight, **how)[0]
    theirs = theirs.mean() if reduction == "mean" else theirs
    factor = make(ROWS, learns=False) if reduction == "none" else 2.0
    assert_same(gradients((ours * factor).sum(), inputs), gradients((theirs * factor).sum(), inputs))


def test_hidden_and_features_may_share_a_graph():
    base, *_ = two_heads()
    lm_weight, vm_weight = make(VOCAB, HIDDEN), make(VOCAB + 1, HIDDEN)[1:].detach().requires_grad_()

    def rows() -> tuple[Tensor, Tensor]:
        features = torch.tanh(base)
        return features * features, features

    for compute in (visual_word_loss, lambda *x, **how: plain_terms(*x, **how)[0].mean()):
        hidden, features = rows()
        loss = compute(hidden, lm_weight, features, vm_weight, detach_target=False)
        loss.backward()
        if compute is visual_word_loss:
            ours, base.grad = base.grad, None
    torch.testing.assert_close(ours, base.grad)


def test_terms_are_logged_without_a_graph_and_kl_does_not_depend_on_what_is_trained():
    inputs = two_heads()
    kl, cross_entropy = (visual_word_terms(*inputs, divergence=d) for d in DIVERGENCES)
    assert not kl.kl.requires_grad
    assert not kl.entropy.requires_grad
    torch.testing.assert_close(kl.kl, cross_entropy.kl)
    torch.testing.assert_close(kl.entropy, cross_entropy.entropy)
    torch.testing.assert_close(cross_entropy.loss, kl.loss + kl.entropy)


def test_equal_heads_on_equal_rows_have_no_divergence_and_no_gradient():
    hidden, weight = make(ROWS, HIDDEN), make(VOCAB, HIDDEN)
    loss = visual_word_loss(hidden, weight, hidden.detach(), weight.detach(), detach_target=False)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    for gradient in gradients(loss, [hidden, weight]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_second_backward_over_a_retained_graph_gives_the_same_gradients(reduction):
    inputs = two_heads()
    loss = visual_word_loss(*inputs, detach_target=False, reduction=reduction, chunk_rows=3)
    loss = (loss * 3.0).sum()
    once = [gradient.clone() for gradient in torch.autograd.grad(loss, inputs, retain_graph=True)]
    for _ in range(2):
        assert_same(list(torch.autograd.grad(loss, inputs, retain_graph=True)), once)


def test_gradients_accumulate_over_several_losses_like_any_other():
    inputs = two_heads()
    for _ in range(2):
        (visual_word_loss(*inputs, detach_target=False) * 0.5).backward()
    assert_same([x.grad for x in inputs], gradients(plain_terms(*inputs, detach_target=False)[0].mean(), inputs))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_give_a_connected_zero(reduction):
    inputs = two_heads(rows=0)
    terms = visual_word_terms(*inputs, detach_target=False, reduction=reduction)
    assert all(term.shape == ((0,) if reduction == "none" else ()) and (term == 0).all() for term in terms)
    terms.loss.sum().backward()
    for x in inputs:
        assert x.grad is not None
        assert (x.grad == 0).all()


def test_nothing_is_recorded_without_gradients():
    inputs = two_heads()
    with torch.no_grad():
        loss = visual_word_loss(*inputs)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_terms(*inputs)[0].mean())


@pytest.mark.parametrize("detach_target", [True, False])
def test_bf16_inputs_have_fp32_statistics(detach_target):
    shapes = ((40, 32), (500, 32), (40, 16), (500, 16))
    inputs = [make(*shape, dtype=torch.bfloat16) for shape in shapes]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    ours = visual_word_terms(*inputs, detach_target=detach_target, chunk_rows=16)
    theirs = [value.mean() for value in plain_terms(*wide, detach_target=detach_target)]
    assert {value.dtype for value in ours} == {torch.float32}
    # bf16 logits have 8 bits: values agree to about 1 % of a nat, far from bf16 statistics over 500 words.
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=5e-3)
    for one, other in zip(gradients(ours.loss, inputs), gradients(theirs[0], wide), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == torch.bfloat16
            assert (one.float() - other).norm() < 0.02 * other.norm()


def test_autocast_multiplies_in_bf16_and_leaves_fp32_gradients():
    shapes = ((40, 32), (5000, 32), (40, 16), (5000, 16))  # more words than one tile of a weight gradient
    inputs = [make(*shape, dtype=torch.float32) for shape in shapes]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = visual_word_loss(*inputs, detach_target=False, chunk_rows=16)
    rounded = [x.detach().bfloat16().float().requires_grad_() for x in inputs]
    theirs = plain_terms(*rounded, detach_target=False)[0].mean()
    assert ours.dtype == torch.float32
    assert ours.item() != visual_word_loss(*rounded, detach_target=False).item()
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=5e-3)
    for one, other in zip(gradients(ours, inputs), gradients(theirs, rounded), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_autocast_leaves_float64_alone():
    inputs = two_heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = visual_word_loss(*inputs)
    torch.testing.assert_close(ours, plain_terms(*inputs)[0].mean(), atol=1e-12, rtol=1e-12)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    inputs = [(x.detach().float() * 100).requires_grad_() for x in two_heads()]
    loss = visual_word_loss(*inputs, detach_target=False)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, inputs))
