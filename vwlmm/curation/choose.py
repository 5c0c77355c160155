"""The choice of captions: concepts from rare to common, for each its best ones that no rarer concept has taken.

Reads one concept's scores at a time, so memory grows with one byte a caption and not with the concepts.
Paper: arXiv 2409.19425, section on data and appendix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vwlmm.curation.scale import Scale
from vwlmm.curation.store import Block, ScoreStore

ORDERS = ("mean", "rank")


@dataclass
class Choice:
    """Which rows were chosen for which concept, in the order in which they were taken."""

    order: np.ndarray  # [concepts], rarest first
    commonality: np.ndarray  # [concepts], float64, by concept
    rows: np.ndarray  # [chosen], int64, counted over all shards
    concepts: np.ndarray  # [chosen]
    codes: np.ndarray  # [chosen], scores as stored


def choose(
    store: ScoreStore,
    num_concepts: int,
    *,
    per_concept: int = 2000,
    depth: int = 25_000,
    order: str = "mean",
    progress: Callable[[int], None] = lambda concepts: None,
) -> Choice:
    """Chooses at most `per_concept` rows for each concept; equal scores go to the earlier row, so the result is one.

    Args:
        store: every shard scored.
        num_concepts: rows of its blocks.
        per_concept: how many captions a concept gets.
        depth: how many of a concept's best captions say how common it is; all of them where there are fewer.
        order: `mean` over these scores, as the paper says; `rank` takes the last of them, the published default.
        progress: called with 1 for each concept measured and each concept served.

    Raises:
        ValueError: an unknown order, a number that is not positive, or a store that is not finished.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {' or '.join(ORDERS)}, got {order!r}.")
    if per_concept < 1 or depth < 1:
        raise ValueError(f"per_concept and depth are at least 1, got {per_concept} and {depth}.")
    blocks = list(store.blocks())
    num_rows = sum(block.rows for block in blocks)
    commonality = np.empty(num_concepts)
    for concept in range(num_concepts):
        commonality[concept] = measure_commonality(blocks, concept, depth, order, store.scale)
        progress(1)
    ranking = np.argsort(commonality, kind="stable")
    taken = np.zeros(num_rows, dtype=bool)
    picked: list[tuple[np.ndarray, np.ndarray]] = []
    for concept in ranking.tolist():
        codes, rows = best_rows(blocks, concept, per_concept, store.scale.no_score, taken)
        taken[rows] = True
        picked.append((codes, rows))
        progress(1)
    return Choice(
        order=ranking,
        commonality=commonality,
        rows=np.concatenate([rows for _, rows in picked]),
        concepts=np.repeat(ranking, [len(rows) for _, rows in picked]),
        codes=np.concatenate([codes for codes, _ in picked]),
    )


def measure_commonality(blocks: list[Block], concept: int, depth: int, order: str, scale: Scale) -> float:
    """Mean score of a concept's best `depth` captions, or the score of the last of them; −∞ without captions."""
    best = np.empty(0, dtype=scale.dtype)
    for block in blocks:
        column = block.codes()[concept]
        best = np.concatenate([best, column[column > scale.no_score]])
        if len(best) > depth:
            best = np.partition(best, len(best) - depth)[-depth:]
    if not len(best):
        return -np.inf
    # Sorted, so that the sum does not depend on how the rows were cut into blocks.
    return float(scale.decode(best.min()) if order == "rank" else scale.decode(np.sort(best)).mean())


def best_rows(
    blocks: list[Block], concept: int, count: int, no_score: float, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and rows of a concept's best `count` rows not yet taken, best first, the earlier of two equals first."""
    codes, rows = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    for block in blocks:
        column = block.codes()[concept]
        # Later rows lose against equal ones, so a full list is entered only from above its worst.
        worst = codes[-1] if len(codes) == count else no_score
        found = np.flatnonzero((column > worst) & ~taken[block.start : block.start + block.rows])
        if len(found):
            codes = np.concatenate([codes, column[found].astype(np.float32)])  # fp32 holds every int8 code exactly
            rows = np.concatenate([rows, found + block.start])
            # lexsort is stable over its last key first: by falling score, then by row.
            keep = np.lexsort((rows, -codes))[:count]
            codes, rows = codes[keep], rows[keep]
    return codes, rows


def nearest_concepts(blocks: list[Block], num_concepts: int, no_score: float, rows: np.ndarray) -> np.ndarray:
    """How many captions are nearest to each concept, among all rows and among the chosen, `[2, concepts]`."""
    counts = np.zeros((2, num_concepts), dtype=np.int64)
    chosen = np.sort(rows)
    for block in blocks:
        codes = block.codes()
        nearest = np.argmax(codes, axis=0)
        scored = codes.max(axis=0) > no_score
        counts[0] += np.bincount(nearest[scored], minlength=num_concepts)
        inside = chosen[np.searchsorted(chosen, block.start) : np.searchsorted(chosen, block.start + block.rows)]
        counts[1] += np.bincount(nearest[inside - block.start], minlength=num_concepts)
    return counts
