"""The streamed next-token loss and pseudo image features; no [rows, vocab] in any of the three; errors; a GPU."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from functional_twins import (
    HIDDEN,
    ROWS,
    VOCAB,
    WIDTH,
    assert_same,
    gradients,
    make,
    mixture_inputs,
    plain_mixture,
    plain_terms,
    scored_rows,
    two_heads,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vwlmm.functional import language_model_loss, pseudo_image_features, visual_word_loss
from vwlmm.functional.streaming import CHUNK_BYTES, choose_chunk_rows


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


# --- next-token loss


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
    # The scratch of one chunk is four blocks of [32, vocab]; all rows would be 16 of those.
    assert 32 * vocab <= largest.elements <= 4 * 32 * vocab
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
