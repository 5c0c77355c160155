"""How well pictures and texts find each other: recall at 1, 5 and 10 both ways.

recall(images, texts)["image_to_text_r1"]
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall(
    images: Tensor,
    texts: Tensor,
    *,
    image_labels: Sequence[object] | None = None,
    text_labels: Sequence[object] | None = None,
    ks: tuple[int, ...] = (1, 5, 10),
    chunk_rows: int = 1024,
) -> dict[str, float]:
    """Share of queries with a right answer among the k nearest, `image_to_text_r1` and so on, and `text_to_image_r1`.

    Args:
        images: `[images, dim]`, of length 1.
        texts: `[texts, dim]`, of length 1.
        image_labels, text_labels: what belongs together: an image and a text with equal labels. Without them image i
            belongs to text i. With several captions an image any of them is right, as on Flickr30k and COCO.
        ks: how many nearest are looked at.
        chunk_rows: queries at once.

    A right answer that is exactly as near as wrong ones counts by the chance of being drawn first.

    Raises:
        ValueError: numbers of rows and labels that differ.
    """
    if image_labels is None and text_labels is None:
        if len(images) != len(texts):
            raise ValueError(
                f"{len(images)} images and {len(texts)} texts are not pairs: say by labels which belong together."
            )
        image_labels = text_labels = range(len(images))
    if (
        image_labels is None
        or text_labels is None
        or len(image_labels) != len(images)
        or len(text_labels) != len(texts)
    ):
        raise ValueError("recall: expected one label for every image and every text.")
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*image_labels, *text_labels]))}
    of_image, of_text = (
        torch.tensor([numbers[x] for x in labels], device=images.device) for labels in (image_labels, text_labels)
    )
    ways = {
        "image_to_text": _recall(images, texts, of_image, of_text, ks, chunk_rows),
        "text_to_image": _recall(texts, images, of_text, of_image, ks, chunk_rows),
    }
    return {f"{way}_r{k}": value for way, values in ways.items() for k, value in zip(ks, values, strict=True)}


def _recall(
    queries: Tensor, answers: Tensor, of_query: Tensor, of_answer: Tensor, ks: tuple[int, ...], chunk_rows: int
) -> list[float]:
    found = [0.0] * len(ks)
    for start in range(0, len(queries), chunk_rows):
        scores = queries[start : start + chunk_rows] @ answers.T  # [queries, answers]
        right = of_query[start : start + chunk_rows, None] == of_answer
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)  # of the right answers
        before = ((scores > best) & ~right).sum(1)
        wrong = ((scores == best) & ~right).sum(1).double()
        good = ((scores == best) & right).sum(1).double()
        for number, k in enumerate(ks):
            found[number] += (1 - _all_wrong(wrong, good, (k - before).clamp(min=0))).sum().item()
    return [total / max(len(queries), 1) for total in found]


def _all_wrong(wrong: Tensor, good: Tensor, draws: Tensor) -> Tensor:
    """The chance that so many draws from equally near answers, `wrong` and `good` ones, give wrong ones alone."""

    def log_choose(n: Tensor, k: Tensor) -> Tensor:
        return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

    possible = draws <= wrong
    drawn = torch.where(possible, draws.double(), 0.0)
    chance = (log_choose(wrong, drawn) - log_choose(wrong + good, drawn)).exp()
    return torch.where(possible, chance, 0.0)
