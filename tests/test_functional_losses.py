"""The streamed losses: equal to the textbook form in value and gradient, in any chunking, and never a [rows, vocab]."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vwlmm.functional import (
    language_model_loss,
    pseudo_image_features,
    visual_word_loss,
    visual_word_terms,
)

TARGETS = ("visual_words", "language_model")
DIVERGENCES = ("kl", "cross_entropy")
ROWS, VOCAB, HIDDEN, WIDTH = 7, 11, 5, 4


def make(*shape: int, dtype: torch.dtype = torch.float64, learns: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 100 * shape[0])
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(learns)


def two_heads(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """hidden, lm_weight, features, vm_weight."""
    shapes = ((rows, HIDDEN), (VOCAB, HIDDEN), (rows, WIDTH), (VOCAB, WIDTH))
    return [make(*shape, dtype=dtype) for shape in shapes]


def plain_terms(
    hidden: Tensor,
    lm_weight: Tensor,
    features: Tensor,
    vm_weight: Tensor,
    target: str = "visual_words",
    detach_target: bool = True,
    divergence: str = "kl",
) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook form, a value per row: loss, KL, H(q)."""
    log_p, log_q = F.log_softmax(hidden @ lm_weight.T, -1), F.log_softmax(features @ vm_weight.T, -1)
    teacher, student = (log_q, log_p) if target == "visual_words" else (log_p, log_q)
    if detach_target:
        teacher = teacher.detach()
    cross_entropy = -(teacher.exp() * student).sum(-1)
    kl = cross_entropy + (teacher.exp() * teacher).sum(-1)
    return kl if divergence == "kl" else cross_entropy, kl, -(log_q.exp() * log_q).sum(-1)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [x for x in inputs if x.requires_grad], allow_unused=True))


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], **tolerance: float) -> None:
    """Equal gradients; None and zero are told apart."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **tolerance)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


# --- visual words


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


# --- next-token loss


def scored_rows(ignored: tuple[int, ...] = (2, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, labels."""
    labels = torch.arange(ROWS) * 3 % VOCAB
    labels[list(ignored)] = -100
    return make(ROWS, HIDDEN), make(VOCAB, HIDDEN), labels


@pytest.mark.parametrize("chunk_rows", [None, 1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_next_token_loss_equals_cross_entropy(reduction, chunk_rows):
    hidden, weight, labels = scored_rows()
    ours = language_model_loss(hidden, weight, labels, reduction=reduction, chunk_rows=chunk_rows)
    theirs = F.cross_entropy(F.linear(hidden, weight), labels, reduction=reduction)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    factor = make(ROWS, learns=False) if reduction == "none" else 1.7
    inputs = [hidden, weight]
    assert_same(gradients((ours * factor).sum(), inputs), gradients((theirs * factor).sum(), inputs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_of_the_next_token_loss(reduction):
    hidden, weight, labels = scored_rows()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return language_model_loss(hidden, weight, labels, reduction=reduction, chunk_rows=3)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_next_token_loss_leaves_a_frozen_side_alone(frozen):
    hidden, weight, labels = scored_rows()
    inputs = [x.detach().requires_grad_(name != frozen) for name, x in (("hidden", hidden), ("weight", weight))]
    ours, theirs = language_model_loss(*inputs, labels), F.cross_entropy(F.linear(*inputs), labels)
    assert_same(gradients(ours, inputs), gradients(theirs, inputs))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 3])
def test_next_token_loss_without_a_scored_row_is_a_connected_zero(rows, reduction):
    hidden, weight = make(ROWS, HIDDEN)[:rows].detach().requires_grad_(), make(VOCAB, HIDDEN)
    loss = language_model_loss(hidden, weight, torch.full((rows,), -100), reduction=reduction)
    assert (loss == 0).all()
    loss.sum().backward()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_next_token_loss_twice_over_a_retained_graph():
    hidden, weight, labels = scored_rows()
    loss = language_model_loss(hidden, weight, labels) * 3
    once = [gradient.clone() for gradient in torch.autograd.grad(loss, (hidden, weight), retain_graph=True)]
    assert_same(list(torch.autograd.grad(loss, (hidden, weight))), once)


def test_next_token_loss_under_autocast_and_in_bf16_is_fp32():
    hidden, weight, labels = scored_rows()
    exact = F.cross_entropy(F.linear(hidden, weight), labels).float()
    single = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = language_model_loss(*single, labels)
    in_bf16 = language_model_loss(hidden.bfloat16(), weight.bfloat16(), labels)
    for loss in (under_autocast, in_bf16):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, atol=2e-2, rtol=1e-2)
    assert [g.dtype for g in gradients(under_autocast, single)] == [torch.float32] * 2


def test_a_label_outside_the_vocabulary_is_an_error_and_not_another_word():
    hidden, weight, labels = scored_rows()
    for wrong in (VOCAB, -1):
        labels[0] = wrong
        with pytest.raises((RuntimeError, IndexError)):
            language_model_loss(hidden, weight, labels)


# --- pseudo image features


def mixture_inputs(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """features, vm_weight, word_embeddings."""
    return [make(rows, WIDTH, dtype=dtype), make(VOCAB, WIDTH, dtype=dtype), make(VOCAB, HIDDEN, dtype=dtype)]


def plain_mixture(features: Tensor, vm_weight: Tensor, word_embeddings: Tensor) -> Tensor:
    return torch.softmax(features @ vm_weight.T, -1) @ word_embeddings


@pytest.mark.parametrize("chunk_rows", [None, 1, 3])
@pytest.mark.parametrize("learning", list(itertools.product([False, True], repeat=3)))
def test_pseudo_features_are_the_mean_word_embedding(learning, chunk_rows):
    inputs = [x.detach().requires_grad_(learns) for x, learns in zip(mixture_inputs(), learning, strict=True)]
    ours, theirs = pseudo_image_features(*inputs, chunk_rows=chunk_rows), plain_mixture(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert ours.requires_grad == any(learning)
    if any(learning):
        by_output = make(ROWS, HIDDEN, learns=False)
        assert_same(gradients((ours * by_output).sum(), inputs), gradients((theirs * by_output).sum(), inputs))


def test_gradcheck_of_pseudo_features():
    assert torch.autograd.gradcheck(lambda *x: pseudo_image_features(*x, chunk_rows=3), mixture_inputs())


def test_pseudo_feature_of_a_certain_patch_is_that_words_embedding():
    words = make(VOCAB, HIDDEN, learns=False)
    features = torch.eye(VOCAB, dtype=torch.float64) * 1000
    torch.testing.assert_close(pseudo_image_features(features, torch.eye(VOCAB).double(), words), words)


def test_pseudo_features_of_a_head_tied_to_the_table():
    features, table = make(ROWS, HIDDEN), make(VOCAB, HIDDEN)
    ours = gradients(pseudo_image_features(features, table, table, chunk_rows=2).pow(2).sum(), [features, table])
    assert_same(ours, gradients(plain_mixture(features, table, table).pow(2).sum(), [features, table]))


def test_no_pseudo_features_stay_connected():
    inputs = mixture_inputs(rows=0)
    ours = pseudo_image_features(*inputs)
    assert ours.shape == (0, HIDDEN)
    ours.sum().backward()
    assert all((x.grad == 0).all() for x in inputs)


def test_pseudo_features_in_bf16_and_under_autocast_stay_near_fp32():
    exact = mixture_inputs(dtype=torch.float32)
    theirs = plain_mixture(*exact)
    by_theirs = gradients(theirs.pow(2).sum(), exact)
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = pseudo_image_features(*exact)
    for ours, inputs in ((pseudo_image_features(*low), low), (under_autocast, exact)):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, atol=3e-2, rtol=3e-2)
        for one, other, x in zip(gradients(ours.float().pow(2).sum(), inputs), by_theirs, inputs, strict=True):
            assert one.dtype == x.dtype
            assert (one.float() - other).norm() < 0.05 * other.norm()


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_gpu_gives_the_values_and_gradients_of_the_cpu(dtype, tolerance):
    shapes = ((300, 32), (500, 32), (300, 16), (500, 16), (500, 32))
    labels = torch.arange(300)
    results = []
    for device in ("cpu", "cuda"):
        h, lm, f, vm, words = inputs = [make(*s, dtype=dtype).detach().to(device).requires_grad_() for s in shapes]
        loss = visual_word_loss(h, lm, f, vm, detach_target=False)
        loss = loss + language_model_loss(h, lm, labels.to(device))
        loss = loss + pseudo_image_features(f, vm, words).float().square().mean()
        results.append([x.float().cpu() for x in (loss.detach(), *gradients(loss, inputs))])
    for cpu, cuda in zip(*results, strict=True):
        assert (cpu - cuda).norm() <= tolerance * cpu.norm()


# --- memory and errors


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_rows_by_vocab_ever_exists(dtype, per_row):
    rows, vocab, hidden = 512, 1000, 8
    h, f = make(rows, hidden, dtype=dtype), make(rows, hidden, dtype=dtype)
    lm, vm, words = (make(vocab, hidden, dtype=dtype) for _ in range(3))
    labels, reduction = torch.arange(rows), "none" if per_row else "mean"
    with LargestTensor() as largest:
        how = {"detach_target": False, "reduction": reduction, "chunk_rows": 32}
        (visual_word_loss(h, lm, f, vm, **how).sum()).backward()
        language_model_loss(h, lm, labels, reduction=reduction, chunk_rows=32).sum().backward()
        pseudo_image_features(f, vm, words, chunk_rows=32).sum().backward()
    # The scratch of one chunk is three blocks of [32, vocab]; all rows would be 16 of those.
    assert 32 * vocab <= largest.elements <= 3 * 32 * vocab
    with LargestTensor() as plain:
        plain_terms(h, lm, f, vm)
    assert plain.elements >= rows * vocab


def test_nothing_but_the_inputs_is_kept_for_the_backward():
    inputs = two_heads()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        visual_word_loss(*inputs, reduction="none")
        pseudo_image_features(*inputs[2:], inputs[1])
    # The very storages: a cast or a transposed copy would pin a weight that ZeRO-3 wants to release.
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in inputs}


def test_default_chunks_stay_within_their_memory_and_have_no_short_last_one():
    from vwlmm.functional.streaming import CHUNK_BYTES, choose_chunk_rows

    cpu = torch.device("cpu")
    for rows, vocab in ((1152, 32_000), (2304, 49_152), (9216, 151_936), (5, 32_000), (0, 32_000)):
        chunk = choose_chunk_rows(None, rows, cpu, 2 * 4 * vocab)
        assert 1 <= chunk <= 1024
        assert chunk <= 32 or chunk * 2 * 4 * vocab <= CHUNK_BYTES["cpu"]
        assert rows == 0 or -(-rows // chunk) * chunk - rows < max(chunk, 16)
    assert choose_chunk_rows(None, 100_000, cpu, 2 * 4 * 100) == 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "vm"}, "target is one of 'visual_words', 'language_model', got 'vm'"),
        ({"divergence": "js"}, "divergence is one of"),
        ({"reduction": "batchmean"}, "reduction is one of"),
        ({"chunk_rows": 0}, "chunk_rows is a positive number"),
        ({"chunk_rows": 2.5}, "chunk_rows is a positive number"),
        ({"features": torch.zeros(ROWS + 1, WIDTH).double()}, "got 7 and 8 rows"),
        ({"vm_weight": torch.zeros(VOCAB + 1, WIDTH).double()}, "got 11 words in lm_weight and 12 in vm_weight"),
        ({"vm_weight": torch.zeros(VOCAB, WIDTH + 1).double()}, "features has width 4 and vm_weight has width 5"),
        ({"vm_weight": torch.zeros(0, WIDTH).double()}, "vm_weight has no rows"),
        ({"hidden": torch.zeros(1, ROWS, HIDDEN).double()}, r"hidden is a matrix \[rows, hidden\], got shape \(1, 7"),
        ({"hidden": torch.zeros(ROWS, HIDDEN)}, "hidden is torch.float32 and lm_weight is torch.float64"),
        ({"hidden": torch.zeros(ROWS, HIDDEN).long()}, "hidden holds floating-point numbers"),
    ],
)
def test_wrong_arguments_say_what_was_expected_and_what_came(change, message):
    arguments = dict(zip(("hidden", "lm_weight", "features", "vm_weight"), two_heads(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        visual_word_loss(**arguments)


def test_wrong_labels_and_tables_are_refused():
    hidden, weight, labels = scored_rows()
    with pytest.raises(ValueError, match="one token for each row"):
        language_model_loss(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="token ids as integers"):
        language_model_loss(hidden, weight, labels.double())
    features, vm_weight, table = mixture_inputs()
    with pytest.raises(ValueError, match="one row for each of vm_weight's 11 words"):
        pseudo_image_features(features, vm_weight, table[1:])
    with pytest.raises(ValueError, match="cast or move"):
        pseudo_image_features(features, vm_weight, table.float())
