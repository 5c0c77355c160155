"""Metrics of a ranked list of options: the right one's rank, and NDCG for graded relevance. A tie counts against the model."""

import math
from collections.abc import Sequence

import numpy as np


def pessimistic_ranks(scores: Sequence[float]) -> list[int]:
    """The rank of every option by its score, highest is 1; of options with equal scores each gets the last place."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")).tolist()


def ranks_as_permutation(scores: Sequence[float]) -> list[int]:
    """Ranks 1…n, each once, as submission files want them; options with equal scores in their own order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [0] * len(scores)
    for rank, option in enumerate(order, start=1):
        ranks[option] = rank
    return ranks


def ndcg(ranks: Sequence[float], relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain, truncated at the number of relevant options (Visual Dialog's rule).

    Args:
        ranks: of every option, the lowest first; of equal ones the least relevant is taken first.
        relevance: of every option, in the same order.

    Raises:
        ValueError: no option is relevant, for which it is not defined.
    """
    num_relevant = sum(value != 0 for value in relevance)
    if not num_relevant:
        raise ValueError("expected at least one relevant option, found relevance 0 for all")
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], relevance[i]))
    found = _gain([relevance[i] for i in order[:num_relevant]])
    return found / _gain(sorted(relevance, reverse=True)[:num_relevant])


def _gain(relevance: Sequence[float]) -> float:
    return sum(value / math.log2(place + 2) for place, value in enumerate(relevance))
