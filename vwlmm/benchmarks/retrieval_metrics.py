"""Recall at K of image-text retrieval from similarities, in both directions; a tie counts against the model.

So a collapsed encoder, to which everything looks alike, scores 0 and not 100.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)


def text_ranks(similarity: Tensor, text_to_image: Tensor) -> list[list[int]]:
    """For every image the ranks of its own captions among all captions, best is 1, its other captions left out.

    Args:
        similarity: `[images, texts]`.
        text_to_image: number of the image that each caption belongs to, `[texts]`.
    """
    ranks = []
    for image, row in enumerate(similarity):
        own = text_to_image == image
        foreign = row[~own].sort().values
        # How many captions of other images score as well or better.
        better = len(foreign) - torch.searchsorted(foreign, row[own].contiguous(), right=False)
        ranks.append((better + 1).tolist())
    return ranks


def image_ranks(similarity: Tensor, text_to_image: Tensor) -> list[list[int]]:
    """For every image its rank among all images for each of its captions, best is 1.

    Args:
        similarity: `[images, texts]`.
        text_to_image: number of the image that each caption belongs to, `[texts]`.
    """
    own = similarity.gather(0, text_to_image[None])  # [1, texts]
    ranks = (similarity >= own).sum(0)  # [texts]; the image itself is one of them
    return [ranks[text_to_image == image].tolist() for image in range(len(similarity))]


def recalls(ranks: Sequence[int], name: str) -> dict[str, float]:
    """`name/R@K` for each K: the share of queries whose answer is among the first K."""
    return {f"{name}/R@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in KS}
