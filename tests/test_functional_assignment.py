"""Streamed assignments equal the textbook plan, SwAV and the released code's closed form, and the loss its plain form."""

import pytest
import torch
import torch.nn.functional as F
from forked_ranks import on_ranks

from vwlmm.functional import Assignment, assign_words, assignment, assignment_loss, logsumexp_over_ranks, sinkhorn

PAIRS, HIDDEN, VOCAB = 6, 12, 61
MODES = ("sinkhorn_prior", "sinkhorn_uniform", "released")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WORDS = random(VOCAB, HIDDEN, seed=1)
PRIOR = random(VOCAB, seed=2).exp()
IS_WORD = torch.arange(VOCAB) % 7 != 3


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(assignment, "TILE_WORDS", 16)  # four tiles, the last one short


def cosines(rows, words=WORDS):
    return F.normalize(rows, dim=-1) @ F.normalize(words, dim=-1).T


def released(scores, prior, epsilon, iterations=3, temperature=0.25):
    """The branch of the published code that runs: rounds of the same prior, never a sum over the batch."""
    q = (scores / epsilon).exp().T
    for _ in range(iterations):
        q = q * (prior / prior.sum() / temperature).softmax(0)[:, None]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def swav(scores, epsilon, iterations=3):
    """SwAV's distributed_sinkhorn on one process."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def test_the_plan_meets_both_marginals_and_equals_the_textbook_solver():
    rows = random(PAIRS, HIDDEN)
    setting = Assignment("sinkhorn_prior", epsilon=0.1, iterations=2000)
    ours = assign_words(rows, WORDS, assignment=setting, prior=PRIOR)
    plan = sinkhorn(cosines(rows), epsilon=0.1, iterations=2000, col_marginal=PRIOR / PRIOR.sum())
    torch.testing.assert_close(ours, PAIRS * plan, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(ours.sum(1), torch.ones(PAIRS).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.mean(0), PRIOR / PRIOR.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("iterations", [1, 3])
def test_uniform_equals_swav(iterations):
    rows = random(PAIRS, HIDDEN)
    ours = assign_words(rows, WORDS, assignment=Assignment("sinkhorn_uniform", 0.05, iterations))
    torch.testing.assert_close(ours, swav(cosines(rows), 0.05, iterations))


@pytest.mark.parametrize("iterations", [1, 3])
def test_released_equals_the_published_loop_and_its_closed_form(iterations):
    rows = random(PAIRS, HIDDEN)
    ours = assign_words(rows, WORDS, assignment=Assignment("released", 0.02, iterations), prior=PRIOR)
    torch.testing.assert_close(ours, released(cosines(rows), PRIOR, 0.02, iterations))
    log_p = (PRIOR / PRIOR.sum() / 0.25).log_softmax(0)
    torch.testing.assert_close(ours, (cosines(rows) / 0.02 + iterations * log_p).softmax(1))


def test_a_released_assignment_does_not_depend_on_the_batch_and_a_transported_one_does():
    rows = random(PAIRS, HIDDEN)
    for mode, same in (("released", True), ("sinkhorn_prior", False)):
        whole, part = (assign_words(x, WORDS, assignment=Assignment(mode, 0.05), prior=PRIOR) for x in (rows, rows[:3]))
        assert torch.allclose(whole[:3], part) is same


@pytest.mark.parametrize("mode", MODES)
def test_ids_that_are_no_words_get_nothing(mode):
    ours = assign_words(random(PAIRS, HIDDEN), WORDS, assignment=Assignment(mode, 0.05), prior=PRIOR, is_word=IS_WORD)
    assert (ours[:, ~IS_WORD] == 0).all()
    torch.testing.assert_close(ours.sum(1), torch.ones(PAIRS).double())


def test_half_the_strength_lies_between_transport_and_a_softmax_of_each_row():
    rows = random(PAIRS, HIDDEN)

    def distance(strength):
        setting = Assignment("sinkhorn_prior", 0.05, 50, strength)
        mean = assign_words(rows, WORDS, assignment=setting, prior=PRIOR).mean(0)
        return (mean - PRIOR / PRIOR.sum()).abs().sum()

    assert distance(1.0) < distance(0.5) < distance(0.01)
    loose = assign_words(rows, WORDS, assignment=Assignment("sinkhorn_prior", 0.05, 3, 1e-9), prior=PRIOR)
    torch.testing.assert_close(loose, (cosines(rows) / 0.05).softmax(1), atol=1e-6, rtol=1e-5)


def plain_loss(image, text, mode, temperature, is_word, past, epsilon=0.05):
    """Every [pairs, vocab] matrix in full, words that are none cut out of the table."""
    words, prior = WORDS[is_word], PRIOR[is_word]

    def assigned(rows, before):
        scores = cosines(torch.cat([rows, before]).detach(), words)
        if mode == "released":
            return released(scores, prior, epsilon)[: len(rows)]
        column = None if mode == "sinkhorn_uniform" else prior / prior.sum()
        plan = sinkhorn(scores, epsilon=epsilon, iterations=3, col_marginal=column)
        return (len(scores) * plan)[: len(rows)]

    targets = assigned(image, past[0]), assigned(text, past[1])
    predicted = [(cosines(rows, words) / temperature).log_softmax(1) for rows in (image, text)]
    return -(targets[1] * predicted[0]).sum(), -(targets[0] * predicted[1]).sum(), torch.special.entr(targets[1]).sum()


@pytest.mark.parametrize("kept", [0, 2**20], ids=["recomputed", "kept"])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_equals_its_plain_form_value_and_gradient(mode, kept, monkeypatch):
    monkeypatch.setitem(assignment.KEPT_BYTES, "cpu", kept)
    image, text = random(PAIRS, HIDDEN, seed=3).requires_grad_(), random(PAIRS, HIDDEN, seed=4).requires_grad_()
    past = (random(4, HIDDEN, seed=5), random(4, HIDDEN, seed=6)) if mode != "released" else (image[:0], text[:0])
    ours = assignment_loss(
        image,
        text,
        WORDS,
        assignment=Assignment(mode, 0.05),
        temperature=0.07,
        prior=PRIOR,
        is_word=IS_WORD,
        past=past,
    )
    theirs = plain_loss(image, text, mode, 0.07, IS_WORD, past)
    for mine, plain in zip((ours.image, ours.text, ours.entropy), theirs, strict=True):
        torch.testing.assert_close(mine, plain.detach())
    (gradient,) = torch.autograd.grad(3 * ours.image, image)
    (expected,) = torch.autograd.grad(3 * theirs[0], image)
    torch.testing.assert_close(gradient, expected)


def test_the_half_that_predicts_from_captions_gives_no_gradient():
    image, text = random(PAIRS, HIDDEN, seed=3).requires_grad_(), random(PAIRS, HIDDEN, seed=4).requires_grad_()
    terms = assignment_loss(image, text, WORDS, assignment=Assignment("sinkhorn_uniform"), temperature=0.01)
    assert not terms.text.requires_grad
    assert terms.text > 0
    gradients = torch.autograd.grad(terms.image, (image, text), allow_unused=True)
    assert gradients[1] is None
    without = assignment_loss(
        image, text, WORDS, assignment=Assignment("sinkhorn_uniform"), temperature=0.01, both_directions=False
    )
    torch.testing.assert_close(torch.autograd.grad(without.image, image)[0], gradients[0])
    assert without.text == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_cosine_of_1_over_a_hundredth_does_not_overflow(mode):
    words = WORDS.float()
    rows = words[:PAIRS].clone().requires_grad_()  # exp(1 / 0.01) is infinite in fp32
    terms = assignment_loss(
        rows, words[:PAIRS], words, assignment=Assignment(mode), temperature=0.01, prior=PRIOR.float(), is_word=IS_WORD
    )
    (gradient,) = torch.autograd.grad(terms.image, rows)
    assert all(value.isfinite() for value in (terms.image, terms.text, terms.entropy))
    assert gradient.isfinite().all()


def test_a_word_without_mass_is_never_a_target():
    prior = PRIOR.clone()
    prior[5] = 0
    image, text = random(PAIRS, HIDDEN, seed=3), random(PAIRS, HIDDEN, seed=4)
    assert (assign_words(text, WORDS, assignment=Assignment(epsilon=0.05), prior=prior)[:, 5] == 0).all()
    terms = assignment_loss(image, text, WORDS, assignment=Assignment(), temperature=0.01, prior=prior)
    assert terms.image.isfinite()


def test_no_pair_gives_a_connected_zero():
    image = torch.zeros(0, HIDDEN, requires_grad=True)
    terms = assignment_loss(image, image, WORDS.float(), assignment=Assignment("sinkhorn_uniform"), temperature=0.01)
    terms.image.backward()
    assert terms.image == 0
    assert image.grad.shape == (0, HIDDEN)


def test_past_pairs_change_the_assignments_and_have_no_loss_of_their_own():
    image, text = random(PAIRS, HIDDEN, seed=3), random(PAIRS, HIDDEN, seed=4)
    past = (random(20, HIDDEN, seed=5), random(20, HIDDEN, seed=6))
    setting = {"assignment": Assignment("sinkhorn_uniform", 0.05), "temperature": 0.05}
    alone, with_past = (assignment_loss(image, text, WORDS, past=p, **setting).image for p in (None, past))
    assert not torch.allclose(alone, with_past)
    assert abs(with_past - alone) < 0.5 * alone


def _share(rank, sizes, mode):
    start = sum(sizes[:rank])
    image, text = (random(sum(sizes), HIDDEN, seed=s)[start : start + sizes[rank]] for s in (3, 4))
    image.requires_grad_()
    assignment.TILE_WORDS = 16
    terms = assignment_loss(
        image,
        text,
        WORDS,
        assignment=Assignment(mode, 0.05),
        temperature=0.05,
        prior=PRIOR,
        over_ranks=logsumexp_over_ranks,
    )
    terms.image.backward()
    return terms.image.item(), terms.text.item(), image.grad.tolist()


@pytest.mark.parametrize(("sizes", "mode"), [((4, 2), "sinkhorn_prior"), ((5, 0), "sinkhorn_uniform")])
def test_two_ranks_equal_one_process_on_the_joined_batch(sizes, mode):
    found = on_ranks(2, _share, sizes, mode)
    image, text = (random(sum(sizes), HIDDEN, seed=s) for s in (3, 4))
    image.requires_grad_()
    setting = {"assignment": Assignment(mode, 0.05), "temperature": 0.05, "prior": PRIOR}
    whole = assignment_loss(image, text, WORDS, **setting)
    whole.image.backward()
    assert sum(rank[0] for rank in found) == pytest.approx(whole.image.item(), rel=1e-9)
    assert sum(rank[1] for rank in found) == pytest.approx(whole.text.item(), rel=1e-9)
    gradient = torch.tensor([row for rank in found for row in rank[2]], dtype=torch.float64)
    torch.testing.assert_close(gradient, image.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "sinkhorn"}, "mode is one of .sinkhorn_prior., .sinkhorn_uniform., .released."),
        ({"epsilon": 0.0}, "epsilon is positive, got 0.0"),
        ({"iterations": 0}, "iterations is at least 1"),
        ({"strength": 0.0}, "strength lies above 0"),
        ({"prior_temperature": -1.0}, "prior_temperature is positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Assignment(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": PRIOR[:-1]}, "counted with another tokenizer"),
        ({"prior": None}, "need a prior"),
        ({"prior": PRIOR - 10}, "no negative mass"),
        ({"temperature": 0.0}, "temperature is positive"),
        ({"text": random(3, HIDDEN)}, "got 6 and 3 rows"),
        ({"image": random(PAIRS, 5)}, "as wide as the words"),
        ({"is_word": IS_WORD[1:]}, "one entry for each of the 61 words"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    rows = random(PAIRS, HIDDEN)
    fields = {"image": rows, "text": rows, "assignment": Assignment(), "temperature": 0.01, "prior": PRIOR} | change
    with pytest.raises(ValueError, match=message):
        assignment_loss(words=WORDS, **fields)


def test_a_batch_of_one_is_refused_where_it_would_return_the_prior():
    row = random(1, HIDDEN)
    with pytest.raises(ValueError, match=r"of one single pair it would give the prior back.*dataloader_drop_last"):
        assignment_loss(row, row, WORDS, assignment=Assignment(), temperature=0.01, prior=PRIOR)
    one = assign_words(torch.cat([row, row]), WORDS, assignment=Assignment(epsilon=0.05, iterations=50), prior=PRIOR)
    torch.testing.assert_close(one[0], PRIOR / PRIOR.sum())  # two equal rows: the prior, whatever they are
    terms = assignment_loss(row, row, WORDS, assignment=Assignment("released"), temperature=0.01, prior=PRIOR)
    assert terms.image.isfinite()
    past = (random(3, HIDDEN), random(3, HIDDEN))
    assignment_loss(row, row, WORDS, assignment=Assignment(), temperature=0.01, prior=PRIOR, past=past)
