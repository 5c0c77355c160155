"""Captions whose embedding is known, and the choice over a whole matrix: what the tests of curation share."""

import torch

CONCEPTS, DIM = 6, 8


def vectors(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embed(captions: list[str], offset: float = 0.5) -> torch.Tensor:
    """`caption 17` → a vector that depends on 17 alone; not of length 1, as no encoder promises it."""
    numbers = torch.tensor([int(caption.split()[-1]) for caption in captions], dtype=torch.float64)
    waves = torch.arange(1, DIM + 1, dtype=torch.float64)
    return (torch.sin(numbers[:, None] * waves * 12.9898 + waves) + offset).float()


def brute_force(scores, per_concept, depth, order="mean"):
    """The choice in float64 over the whole matrix `[concepts, rows]`: (concept order, [(row, concept)] as taken)."""
    top = scores.sort(dim=1, descending=True).values[:, :depth]
    common = top.mean(1) if order == "mean" else top[:, -1]
    ranking = sorted(range(len(scores)), key=lambda concept: (float(common[concept]), concept))
    taken, chosen = set(), []
    for concept in ranking:
        best = sorted(
            (row for row in range(scores.shape[1]) if row not in taken),
            key=lambda row: (-float(scores[concept, row]), row),
        )
        chosen += [(row, concept) for row in best[:per_concept]]
        taken |= set(best[:per_concept])
    return ranking, chosen
