"""Words assigned to pictures and captions, and the swapped prediction between the two, a tile of the vocabulary at a time.

No `[rows, vocab]` matrix is needed: every assignment here is softmax(scores / ε + one number a word), so that a solution
is one vector over the words and one over the rows. Paper: VLAP, arXiv 2404.09632.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vwlmm.functional.streaming import check_choice, ranges

MODES = ("sinkhorn_prior", "sinkhorn_uniform", "released")

# Words of a tile. Fixed, and not chosen by rows: ranks of one run exchange a vector a tile and must agree on their number.
TILE_WORDS = 2048
# Cosines of all rows are kept where they take less than this, images and captions together; else every pass makes them
# again from the rows, which costs a matmul a pass and saves all of the memory.
KEPT_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
# The score of an id that is not a word: far below any cosine, yet finite, so that 0 times it is 0.
NOT_A_WORD = -1e4

OverRanks = Callable[[Tensor], Tensor]  # [words] of this rank -> logsumexp of it over all ranks, the same everywhere


@dataclass(frozen=True)
class Assignment:
    """How rows are assigned to words: the settings of `assignment_loss` and `assign_words`.

    Every mode gives each row a distribution over the words, q = softmax(cosine / ε + potential of the word):

    - `sinkhorn_prior`: entropic optimal transport. The words' potentials are such that over all rows (of the batch, its
      queue and all ranks) each word gets the mass that `prior` gives it.
    - `sinkhorn_uniform`: the same with equal mass for every word, as in SwAV.
    - `released`: what the published code computes, in closed form: its rounds multiply by the same prior each time and
      never sum over the batch, so that the potential is iterations · log softmax(prior / prior_temperature).

    Attributes:
        mode: one of the three.
        epsilon: weight of the entropy, in the unit of cosines; smaller is harder.
        iterations: Sinkhorn passes, each over the words first and the rows last: rows are exact, words in the limit.
        strength: above 0, at most 1. How firmly the words' masses are held: 1 is transport, less is the unbalanced
            problem (the potential of every pass is multiplied by it), towards 0 is a softmax of each row by itself.
        prior_temperature: of `released` only.
    """

    mode: str = "sinkhorn_prior"
    epsilon: float = 0.01
    iterations: int = 3
    strength: float = 1.0
    prior_temperature: float = 0.25

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        for name in ("epsilon", "prior_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is positive, got {getattr(self, name)}: 0.01 to 0.1 suits cosines.")
        if self.iterations < 1:
            raise ValueError(f"iterations is at least 1, got {self.iterations}.")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength lies above 0 and not above 1 (the exact marginals), got {self.strength}.")


@dataclass(frozen=True)
class AssignmentTerms:
    """Sums over the pairs: `image` learns, the rest is detached.

    Attributes:
        image: CE(caption's assignment, image's prediction), the half that trains the projector.
        text: CE(image's assignment, caption's prediction): a number without gradient, as caption and words are given.
        entropy: of the captions' assignments, in nats.
        agreement: pairs whose image predicts the word most assigned to its caption.
    """

    image: Tensor
    text: Tensor
    entropy: Tensor
    agreement: Tensor


def assignment_loss(
    image: Tensor,
    text: Tensor,
    words: Tensor,
    *,
    assignment: Assignment,
    temperature: float,
    prior: Tensor | None = None,
    is_word: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
    both_directions: bool = True,
    over_ranks: OverRanks | None = None,
) -> AssignmentTerms:
    """Swapped prediction: each side of a pair predicts the words that the other side is assigned.

    Args:
        image, text: row i of both is pair i, `[pairs, hidden]`; any length, cosines are taken. No pair gives 0.
        words: the LLM's word embeddings, `[vocab, hidden]`; they and the text are given and learn nothing.
        assignment: mode and settings.
        temperature: of the predicted word distribution, softmax(cosine / temperature).
        prior: mass of every word, `[vocab]`, at least 0; normalised here over the words. Not for `sinkhorn_uniform`.
        is_word: `[vocab]` bool, False for ids that are assigned to nothing and predicted by nothing; all words if None.
        past: images and captions of earlier batches, `[queued, hidden]` each, that share the words out with these.
        both_directions: False leaves out the half without gradient, and with it half the work; `text` is then 0.
        over_ranks: sums the words' masses over ranks; None is one process.

    Raises:
        ValueError: shapes that do not fit, a bad prior, a temperature that is not positive, or one single pair to share
            the words out over.

    Source: VLAP (arXiv 2404.09632); swapped prediction from SwAV (arXiv 2006.09882).
    """
    _check(image, text, words, temperature)
    _check_batch_of_one(len(image) + (0 if past is None else len(past[0])), image.device, assignment, over_ranks)
    log_prior = _log_prior(words, assignment, prior, is_word)
    sums = _SwappedPrediction.apply(
        image, text.detach(), words, log_prior, is_word, past, assignment, temperature, both_directions, over_ranks
    )
    return AssignmentTerms(*sums)


@torch.no_grad()
def assign_words(
    rows: Tensor,
    words: Tensor,
    *,
    assignment: Assignment,
    prior: Tensor | None = None,
    is_word: Tensor | None = None,
    over_ranks: OverRanks | None = None,
) -> Tensor:
    """The assignments themselves, `[rows, vocab]`, each row a distribution: for looking at, and for small cases."""
    _check(rows, rows, words, 1.0)
    _check_batch_of_one(len(rows), rows.device, assignment, over_ranks)
    scores = _WordScores(rows, words, is_word, keep=False)
    log_prior = _log_prior(words, assignment, prior, is_word)
    by_word, by_row, _ = _solve(scores, log_prior, assignment, over_ranks)
    tiles = [(scores(a, b) / assignment.epsilon + by_row[:, None] + by_word[a:b]).exp() for a, b in scores.tiles()]
    return torch.cat(tiles, 1)


def logsumexp_over_ranks(values: Tensor) -> Tensor:
    """log Σ exp of each entry over the ranks of the default process group; `values` itself where there is one process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    highest = values.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    # A rank without pairs brings −∞; if all do, the difference would be NaN.
    base = highest.masked_fill(highest.isneginf(), 0.0)
    total = (values - base).exp()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return base + total.log()


class _WordScores:
    """Cosines of rows to words, a tile of words at a time: `scores(start, stop)` is `[rows, stop − start]`.

    Args:
        keep: make all of them once; else each call multiplies again.
    """

    def __init__(self, rows: Tensor, words: Tensor, is_word: Tensor | None, *, keep: bool) -> None:
        self.dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        self.rows = F.normalize(rows.to(self.dtype), dim=-1)
        self.words, self.is_word, self.kept = words, is_word, None
        # One length a word, so that the table itself is never copied.
        lengths = [words[a:b].to(self.dtype).norm(dim=1) for a, b in self.tiles()]
        self.inverse_length = torch.cat(lengths).clamp(min=1e-12).reciprocal()
        if keep:
            kept = rows.new_empty(len(rows), len(words), dtype=self.dtype)
            for start, stop in self.tiles():
                kept[:, start:stop] = self(start, stop)
            self.kept = kept

    def tiles(self) -> Iterator[tuple[int, int]]:
        return ranges(len(self.words), TILE_WORDS)

    def __call__(self, start: int, stop: int, first: int | None = None) -> Tensor:
        """Of the `first` rows, or of all."""
        if self.kept is not None:
            return self.kept[:first, start:stop]
        scores = self.rows[:first] @ self.words[start:stop].to(self.dtype).t()
        scores *= self.inverse_length[start:stop]
        if self.is_word is not None:
            scores.masked_fill_(~self.is_word[start:stop], NOT_A_WORD)
        return scores

    def directions(self, start: int, stop: int) -> Tensor:
        """The words of a tile as unit vectors, `[stop − start, hidden]`."""
        return self.words[start:stop].to(self.dtype) * self.inverse_length[start:stop, None]


def _solve(
    scores: _WordScores,
    log_prior: Tensor,
    assignment: Assignment,
    over_ranks: OverRanks | None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Potentials `[vocab]` and `[rows]` with q = exp(score / ε + both), and logsumexp(score / temperature) `[rows]`."""
    rows, closed = scores.rows, assignment.mode == "released"
    by_row, nothing = rows.new_zeros(len(rows)), rows.new_full((len(rows),), -torch.inf)
    # In the published code every round multiplies by the prior once more.
    by_word = assignment.iterations * log_prior if closed else torch.empty_like(log_prior)
    normaliser = nothing
    for iteration in range(1 if closed else assignment.iterations):
        total = nothing
        for start, stop in scores.tiles():
            tile = scores(start, stop)
            kernel = tile / assignment.epsilon
            if not closed:
                mass = torch.logsumexp(kernel + by_row[:, None], 0)  # [tile], logarithms
                mass = mass if over_ranks is None else over_ranks(mass)
                mass = mass.masked_fill(mass.isneginf(), 0.0)  # no pair on any rank: any number will do
                by_word[start:stop] = assignment.strength * (log_prior[start:stop] - mass)
            total = torch.logaddexp(total, torch.logsumexp(kernel + by_word[start:stop], 1))
            if iteration == 0:
                normaliser = torch.logaddexp(normaliser, torch.logsumexp(tile / temperature, 1))
        by_row = -total
    return by_word, by_row, normaliser


class _SwappedPrediction(torch.autograd.Function):
    """Sums over the pairs; the gradient by the images is made in the forward, while the tiles are there."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, words: Tensor, *settings: Any) -> tuple[Tensor, ...]:
        with torch.autocast(image.device.type, enabled=False):
            sums, gradient = _swapped_prediction(image, text, words, *settings)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, image_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * image_gradient.to(ctx.gradient), *[None] * 9


def _swapped_prediction(
    image: Tensor,
    text: Tensor,
    words: Tensor,
    log_prior: Tensor,
    is_word: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
    assignment: Assignment,
    temperature: float,
    both_directions: bool,
    over_ranks: OverRanks | None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The four sums of `AssignmentTerms`, and the gradient of the first by `image`."""
    pairs = len(image)
    earlier = (image[:0], text[:0]) if past is None else past
    # Past images matter to the assignments of images alone.
    image_rows = torch.cat([image, earlier[0].to(image)]) if both_directions else image
    text_rows = torch.cat([text, earlier[1].to(text)])
    budget = KEPT_BYTES.get(image.device.type, KEPT_BYTES["cuda"])
    keep = (len(image_rows) + len(text_rows)) * len(words) * 4 <= budget
    image_scores, text_scores = (_WordScores(rows, words, is_word, keep=keep) for rows in (image_rows, text_rows))
    text_solution = _solve(text_scores, log_prior, assignment, over_ranks, temperature)
    if both_directions:
        image_solution = _solve(image_scores, log_prior, assignment, over_ranks, temperature)
    else:  # its prediction needs the normaliser, which costs no exchange
        image_solution = _solve(image_scores, log_prior, _ONLY_NORMALISE, None, temperature)

    unit = image_scores.rows[:pairs]
    sums = [unit.new_zeros(()) for _ in range(3)]
    gradient = torch.zeros_like(unit)
    best = _Best(unit), _Best(unit)
    for start, stop in image_scores.tiles():
        image_tile, text_tile = image_scores(start, stop, pairs), text_scores(start, stop, pairs)
        target = _target(text_tile, text_solution, assignment, start, stop)
        log_p = image_tile / temperature - image_solution[2][:pairs, None]
        sums[0] -= (target * log_p).sum()
        sums[2] += torch.special.entr(target).sum()
        best[0].see(log_p, start)
        best[1].see(target, start)
        gradient += (log_p.exp() - target) @ image_scores.directions(start, stop)
        if both_directions:
            target = _target(image_tile, image_solution, assignment, start, stop)
            sums[1] -= (target * (text_tile / temperature - text_solution[2][:pairs, None])).sum()
    gradient /= temperature
    # Back through the division by the row's length.
    length = image.to(unit).norm(dim=-1, keepdim=True).clamp(min=1e-12)
    gradient = (gradient - (gradient * unit).sum(-1, keepdim=True) * unit) / length
    agreement = (best[0].word == best[1].word).sum().to(unit)
    return (*sums, agreement), gradient.to(image.dtype)


_ONLY_NORMALISE = Assignment(mode="released", iterations=1)


def _target(
    scores: Tensor, solution: tuple[Tensor, Tensor, Tensor], assignment: Assignment, start: int, stop: int
) -> Tensor:
    """The assignments of the first rows to the words of a tile, as many as there are scores."""
    by_word, by_row, _ = solution
    return (scores / assignment.epsilon + by_row[: len(scores), None] + by_word[start:stop]).exp()


class _Best:
    """The likeliest word of each row over all tiles."""

    def __init__(self, rows: Tensor) -> None:
        self.value = rows.new_full((len(rows),), -torch.inf)
        self.word = torch.zeros(len(rows), dtype=torch.long, device=rows.device)

    def see(self, values: Tensor, start: int) -> None:
        value, word = values.max(1)
        self.word = torch.where(value > self.value, word + start, self.word)
        self.value = torch.maximum(value, self.value)


def _log_prior(words: Tensor, assignment: Assignment, prior: Tensor | None, is_word: Tensor | None) -> Tensor:
    """The logarithm of every word's mass, −∞ for ids that are not words; `[vocab]`."""
    dtype = torch.float64 if words.dtype == torch.float64 else torch.float32
    if is_word is not None and is_word.shape != words.shape[:1]:
        raise ValueError(f"is_word has one entry for each of the {len(words)} words, got shape {tuple(is_word.shape)}.")
    if assignment.mode == "sinkhorn_uniform":
        prior = torch.ones(len(words), dtype=dtype, device=words.device)
    elif prior is None:
        raise ValueError(
            f"Assignments of mode {assignment.mode!r} need a prior: count one with `vwlmm data word-prior`."
        )
    if prior.shape != words.shape[:1]:
        raise ValueError(
            f"The prior has {tuple(prior.shape)} masses and the LLM {len(words)} words: it was counted with another "
            "tokenizer. Count it again: vwlmm data word-prior."
        )
    prior = prior.to(words.device, dtype)
    if is_word is not None:
        prior = prior * is_word
    total = prior.sum()
    if not (float(prior.min()) >= 0 and 0 < float(total) < torch.inf):
        raise ValueError(
            f"The prior is a distribution over words: no negative mass, a sum above 0; got {float(total)}."
        )
    prior = prior / total
    if assignment.mode != "released":
        return prior.log()
    released = prior / assignment.prior_temperature
    return (released if is_word is None else released.masked_fill(~is_word, -torch.inf)).log_softmax(0)


def _check(image: Tensor, text: Tensor, words: Tensor, temperature: float) -> None:
    for name, rows in (("image", image), ("text", text)):
        if rows.dim() != 2 or words.dim() != 2 or rows.shape[1] != words.shape[1]:
            raise ValueError(
                f"{name} is a matrix [pairs, hidden] as wide as the words {tuple(words.shape)}, got {tuple(rows.shape)}."
            )
    if len(image) != len(text):
        raise ValueError(f"image and text hold the two sides of the same pairs, got {len(image)} and {len(text)} rows.")
    if not temperature > 0:
        raise ValueError(f"temperature is positive, got {temperature}: 0.01 is the published one.")


def _check_batch_of_one(rows: int, device: torch.device, assignment: Assignment, over_ranks: OverRanks | None) -> None:
    if assignment.mode == "released":
        return
    if over_ranks is not None:
        rows = round(float(over_ranks(torch.tensor([float(rows)], device=device).log()).exp()))
    if rows == 1:
        raise ValueError(
            f"{assignment.mode} shares the words out over the pairs of a batch, and of one single pair it would give the "
            "prior back, whatever the picture: raise the batch size (and drop a last batch of one: "
            "training.dataloader_drop_last), give a queue, or take mode: released."
        )
