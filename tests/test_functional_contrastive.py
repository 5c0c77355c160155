"""The streamed contrastive loss against the textbook form."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from vwlmm.functional import contrastive_loss


def plain(images, texts, temperature):
    scores = images @ texts.T / temperature
    own = torch.arange(len(images))
    return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2


def pairs(count=7, dim=5, dtype=torch.float64):
    images, texts = (normalize(torch.randn(count, dim, dtype=dtype), dim=-1).requires_grad_() for _ in range(2))
    return images, texts, torch.tensor(0.07, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 7, 100])
def test_streamed_loss_and_gradients_equal_the_plain_form(chunk_rows):
    inputs = pairs()
    streamed = contrastive_loss(*inputs, chunk_rows=chunk_rows)
    expected = plain(*inputs)
    torch.testing.assert_close(streamed, expected)
    torch.testing.assert_close(torch.autograd.grad(streamed, inputs), torch.autograd.grad(expected, inputs))


def test_gradients_pass_gradcheck():
    inputs = pairs(4, 3)
    assert torch.autograd.gradcheck(lambda *given: contrastive_loss(*given, chunk_rows=3), inputs)


def test_the_sum_is_the_mean_times_the_pairs():
    inputs = pairs()
    torch.testing.assert_close(contrastive_loss(*inputs, reduction="sum"), 7 * contrastive_loss(*inputs))


@pytest.mark.parametrize("learner", [0, 1, 2])
def test_only_what_learns_gets_a_gradient(learner):
    inputs = [tensor.detach() for tensor in pairs()]
    inputs[learner].requires_grad_()
    contrastive_loss(*inputs).backward()
    assert [tensor.grad is not None for tensor in inputs] == [number == learner for number in range(3)]


def test_one_pair_has_nothing_to_be_confused_with():
    images, texts, temperature = pairs(1)
    loss = contrastive_loss(images, texts, temperature)
    loss.backward()
    assert loss == 0
    assert images.grad.abs().sum() == texts.grad.abs().sum() == temperature.grad == 0


def test_no_pairs_give_a_connected_zero():
    images, texts, temperature = pairs(0)
    loss = contrastive_loss(images, texts, temperature)
    loss.backward()
    assert loss == 0
    assert temperature.grad == 0


def test_a_bf16_batch_is_scored_in_fp32():
    images, texts, _ = pairs(16, 8, torch.bfloat16)
    loss = contrastive_loss(images, texts, torch.tensor(0.01))
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(images.float(), texts.float(), torch.tensor(0.01)))
    assert images.grad.dtype == torch.bfloat16


def test_a_kept_graph_gives_the_same_gradients_twice():
    images, texts, temperature = pairs()
    loss = 3 * contrastive_loss(images, texts, temperature)
    once = torch.autograd.grad(loss, images, retain_graph=True)
    torch.testing.assert_close(once, torch.autograd.grad(loss, images))
    torch.testing.assert_close(once[0], 3 * torch.autograd.grad(plain(images, texts, temperature), images)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": torch.zeros(6, 5)}, r"as many texts: got shapes \(7, 5\) and \(6, 5\)"),
        ({"temperature": torch.ones(2)}, "scalar tensor"),
        ({"reduction": "none"}, "reduction is one of"),
        ({"chunk_rows": 0}, "positive number of rows"),
    ],
)
def test_inputs_that_are_no_pairs_are_refused(change, message):
    given = {"images": torch.zeros(7, 5), "texts": torch.zeros(7, 5), "temperature": torch.ones(()), **change}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**given)
