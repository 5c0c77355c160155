"""Intersection over union of zero-shot segmentation: by the paper's definition, and as freeze-align's script computes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

VOID = 255  # pixels of no class, at the edges of things
BACKGROUND = 0
SCRIPT_SIZE, SCRIPT_THRESHOLD = 256, 0.4


def upsample(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores of patches, `[classes, rows, columns]`, as scores of pixels, `[classes, *size]`, bilinear."""
    return interpolate(scores[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def predicted_labels(scores: Tensor, labels: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The label of the highest score at every pixel, `[*size]`.

    Args:
        scores: `[classes, rows, columns]`.
        labels: of the classes, in the order of `scores`.
    """
    return torch.tensor(labels)[upsample(scores, size).argmax(0)]


@dataclass
class Overlap:
    """Pixels of intersection and union by label, added up over pictures: the IoU of a data set."""

    intersection: dict[int, int] = field(default_factory=dict)
    union: dict[int, int] = field(default_factory=dict)

    def add(self, predicted: Tensor, truth: Tensor, labels: Sequence[int], counted: Tensor) -> None:
        """One picture.

        Args:
            counted: True where a pixel counts, `[height, width]`.
        """
        for label in labels:
            ours, theirs = (predicted == label) & counted, (truth == label) & counted
            self.intersection[label] = self.intersection.get(label, 0) + int((ours & theirs).sum())
            self.union[label] = self.union.get(label, 0) + int((ours | theirs).sum())

    def iou(self) -> dict[int, float]:
        """By label; a label that is nowhere, predicted or true, is left out."""
        return {label: self.intersection[label] / union for label, union in self.union.items() if union}


def script_iou(scores: Mapping[int, Tensor], truth: Tensor, linear_masks: bool) -> dict[int, float]:
    """IoU by label of one picture as freeze-align's script computes it, for the classes that are in the picture.

    Every class by itself: its scores resized to 256 pixels, scaled from their least (0) to their greatest (1), and
    everything above 0.4 is the class; classes may overlap. Void pixels count as background.

    Args:
        scores: by label, `[rows, columns]`.
        truth: labels, `[height, width]`.
        linear_masks: resize the labels bilinearly, as the script does, which makes other labels at edges; False: the
            nearest label.
    """
    size = (SCRIPT_SIZE, SCRIPT_SIZE)
    truth = truth.masked_fill(truth == VOID, BACKGROUND)
    mode = {"mode": "bilinear", "align_corners": False} if linear_masks else {"mode": "nearest"}
    resized = interpolate(truth[None, None].float(), size=size, **mode)[0, 0].long()
    found = {}
    for label in truth.unique().tolist():
        if label == BACKGROUND:
            continue
        scaled = upsample(scores[label][None], size)[0]
        low, high = scaled.min(), scaled.max()
        ours = (scaled - low) / (high - low) > SCRIPT_THRESHOLD if high > low else torch.zeros(size, dtype=torch.bool)
        theirs = resized == label
        union = int((ours | theirs).sum())
        found[label] = int((ours & theirs).sum()) / union if union else 0.0
    return found


def run_lengths(labels: Tensor) -> list[list[int]]:
    """Labels row by row as `[label, count]` pairs: the compact form of an answers file."""
    values, counts = labels.flatten().unique_consecutive(return_counts=True)
    return [list(pair) for pair in zip(values.tolist(), counts.tolist(), strict=True)]


def from_run_lengths(pairs: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """The labels again, `[*size]`.

    Raises:
        ValueError: the counts do not fill the picture.
    """
    total = sum(count for _, count in pairs)
    if total != size[0] * size[1]:
        raise ValueError(f"expected runs over {size[0]}×{size[1]} pixels, found {total}")
    values, counts = torch.tensor([v for v, _ in pairs]), torch.tensor([c for _, c in pairs])
    return values.repeat_interleave(counts).view(size)
