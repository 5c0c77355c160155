"""Zero-shot segmentation with a dual encoder: patches compared with the names of classes.

Three ways, because freeze-align's paper (arXiv 2409.19425, A.10) and its script do not measure the same thing:
`paper` (argmax without a background, IoU of the foreground classes), `script` (a threshold a class) and `miou` (the usual).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from vwlmm.benchmarks.segmentation_metrics import VOID, script_iou


def patch_embeddings(model: torch.nn.Module, pixel_values: Tensor, *, cls_residual: bool = True) -> Tensor:
    """Every patch of pictures in a dual encoder's space, not scaled, `[images, rows, columns, dim]`.

    Args:
        model: a `DualEncoderModel` that projects patches.
        pixel_values: `[images, 3, height, width]`.
        cls_residual: add the projected class token to every patch, as the paper says; the script does not.

    Raises:
        ValueError: a model without a projection of patches, or patches that form no grid of the picture's shape.
    """
    config = model.config
    if getattr(model, "local_vision_projection", None) is None:
        raise ValueError("This model does not project patches: segmentation needs local_vision_projection.")
    tokens = model.vision_tokens(pixel_values)  # type: ignore[operator]  # [images, 1 + patches, width]
    patches = config.local_vision_weight * model.local_vision_projection(tokens[:, 1:])  # type: ignore[operator,union-attr]
    if cls_residual and model.cls_vision_projection is not None:
        patches = patches + config.cls_vision_weight * model.cls_vision_projection(tokens[:, :1])  # type: ignore[operator,union-attr]
    if model.vision_projection is not None:
        patches = model.vision_projection(patches)  # type: ignore[operator]
    count, (height, width) = patches.shape[1], pixel_values.shape[-2:]
    rows = max(1, round((count * height / width) ** 0.5))
    if count % rows or abs(rows * width - count // rows * height) > max(height, width):
        raise ValueError(f"{count} patches of a picture of {height} × {width} pixels do not form a grid.")
    return patches.unflatten(1, (rows, count // rows))


def class_maps(patches: Tensor, classes: Tensor, size: tuple[int, int], *, scaled: bool = True) -> Tensor:
    """How much each pixel looks like each class, `[classes, height, width]`.

    Args:
        patches: of one picture, `[rows, columns, dim]`.
        classes: vectors of the classes, `[classes, dim]`.
        size: height and width of the picture, or of its mask.
        scaled: compare by cosine; the script leaves the patches' lengths in.
    """
    patches, classes = patches.float(), classes.float()
    if scaled:
        patches, classes = normalize(patches, dim=-1), normalize(classes, dim=-1)
    grid = (patches @ classes.T).permute(2, 0, 1)  # [classes, rows, columns]
    return interpolate(grid[None], size=size, mode="bilinear", align_corners=False)[0]


def argmax_mask(
    maps: Tensor, labels: Sequence[int], *, background: int | None = None, threshold: float = 0.0
) -> Tensor:
    """The label of the best class of each pixel, `[height, width]`.

    Args:
        maps: `[classes, height, width]`.
        labels: of the classes.
        background: label of pixels whose best class does not reach `threshold`; None has no background.
        threshold: in the maps' unit.
    """
    best, index = maps.max(0)
    mask = torch.tensor(list(labels), device=maps.device)[index]
    return mask if background is None else torch.where(best >= threshold, mask, background)


@dataclass
class Counts:
    """Pixels of each label over many pictures: right, given by the model, in the mask. `[labels]` each."""

    hits: Tensor
    predicted: Tensor
    actual: Tensor

    @classmethod
    def zeros(cls, num_labels: int) -> "Counts":
        """Of no picture."""
        return cls(*(torch.zeros(num_labels, dtype=torch.long) for _ in range(3)))

    def add(self, prediction: Tensor, mask: Tensor) -> None:
        """Counts one picture; pixels marked as void are left out on both sides.

        Raises:
            ValueError: prediction and mask of different sizes, or a label that the class list does not have.
        """
        if prediction.shape != mask.shape:
            raise ValueError(
                f"Prediction and mask are of one size, got {tuple(prediction.shape)}, {tuple(mask.shape)}."
            )
        num = len(self.hits)
        scored = mask != VOID
        prediction, mask = prediction[scored].long(), mask[scored].long()
        highest = int(mask.max()) if len(mask) else 0
        if highest >= num:
            raise ValueError(
                f"The class list has {num} labels (0 to {num - 1}), but a mask names {highest}: give the list the masks "
                "were drawn with."
            )
        self.hits += torch.bincount(mask[prediction == mask], minlength=num)
        self.predicted += torch.bincount(prediction, minlength=num)[:num]
        self.actual += torch.bincount(mask, minlength=num)

    def iou(self) -> Tensor:
        """Intersection over union of each label, float64; NaN where neither side has it."""
        union = self.predicted + self.actual - self.hits
        return torch.where(union > 0, self.hits.double() / union, torch.nan)

    def mean_iou(self, *, foreground_only: bool = False) -> float:
        """The mean over labels that occur; label 0 is the background."""
        return float(self.iou()[1 if foreground_only else 0 :].nanmean())


def paper_prediction(patches: Tensor, classes: Tensor, mask: Tensor, *, candidates: str = "all") -> Tensor:
    """The paper's way: each pixel's nearest class by cosine, without a background, `[height, width]`.

    "Every ground-truth class name" can be read as every name of the data set (`all`, as in SPARC, whose figures stand
    beside it in the paper) or as the names in this picture's mask (`present`).
    """
    labels = list(range(1, len(classes) + 1))
    if candidates == "present":
        labels = [label for label in mask.unique().tolist() if label not in (0, VOID)]
    elif candidates != "all":
        raise ValueError(f"candidates are 'all' classes or those 'present', got {candidates!r}.")
    maps = class_maps(patches, classes[[label - 1 for label in labels]], tuple(mask.shape))  # type: ignore[arg-type]
    return argmax_mask(maps, labels)


def script_ious(patches: Tensor, classes: Tensor, mask: Tensor) -> dict[int, float]:
    """The script's way: IoU of each class present, from its own map scaled to [0, 1] and cut at 0.4.

    Args:
        patches: without the class token's part, `[rows, columns, dim]`; their lengths count.
        classes: of labels 1, 2, …, `[classes, dim]`.
        mask: labels, 0 is background, `[height, width]`; void becomes background.

    There is no choice between classes: a pixel may belong to several. Masks are resized with linear interpolation of the
    label numbers, as the script does, which makes up labels along borders; both are why this is not the paper's measure.
    """
    scores = {number: patches.float() @ vector for number, vector in enumerate(classes.float(), start=1)}
    return script_iou(scores, mask, linear_masks=True)


@dataclass
class SegmentationScores:
    """The three measures over a set of pictures, collected one picture at a time."""

    classes: Tensor  # of labels 1, 2, …, `[classes, dim]`
    threshold: float = 0.0  # cosine below which `miou` calls a pixel background
    candidates: str = "all"  # of `paper`: see `paper_prediction`

    def __post_init__(self) -> None:
        num_labels = len(self.classes) + 1
        self.paper, self.paper_all_pixels, self.usual = (Counts.zeros(num_labels) for _ in range(3))
        self.script: list[tuple[int, float]] = []

    def add(self, with_cls: Tensor, without_cls: Tensor, mask: Tensor) -> None:
        """Scores one picture.

        Args:
            with_cls: its patches with the class token's part, `[rows, columns, dim]`.
            without_cls: its patches alone, for the script's way.
            mask: `[height, width]`: 0 background, 1 … classes, 255 void.

        Raises:
            ValueError: a mask without foreground, or with a label that the classes do not have.
        """
        labels = [label for label in mask.unique().tolist() if label not in (0, VOID)]
        if not labels:
            raise ValueError("The mask names no class, so there is nothing to score: leave the picture out.")
        if max(labels) > len(self.classes):
            raise ValueError(
                f"The class list has {len(self.classes)} names (labels 1 to {len(self.classes)}), but a mask names "
                f"{max(labels)}: give the list the masks were drawn with."
            )
        nearest = paper_prediction(with_cls, self.classes, mask, candidates=self.candidates)
        # "Over foreground only" can mean the pixels or the labels that are averaged: both are counted.
        self.paper.add(nearest, torch.where(mask == 0, VOID, mask))
        self.paper_all_pixels.add(nearest, mask)
        self.script += script_ious(without_cls, self.classes, mask).items()
        maps = class_maps(with_cls, self.classes, tuple(mask.shape))  # type: ignore[arg-type]
        everywhere = range(1, len(self.classes) + 1)
        self.usual.add(argmax_mask(maps, everywhere, background=0, threshold=self.threshold), mask)

    def result(self) -> dict[str, float]:
        """The measures, shares of 1.

        `paper` over pixels of things, `paper_all_pixels` where a class seen in the background is wrong, `script_mean` over
        pictures and classes present, `script_by_class` over classes, and `miou`.
        """
        values = torch.tensor([value for _, value in self.script], dtype=torch.float64)
        owners = torch.tensor([label for label, _ in self.script])
        by_class = [values[owners == label].mean() for label in owners.unique().tolist()]
        return {
            "paper": self.paper.mean_iou(foreground_only=True),
            "paper_all_pixels": self.paper_all_pixels.mean_iou(foreground_only=True),
            "script_mean": float(values.mean()),
            "script_by_class": float(torch.stack(by_class).mean()),
            "miou": self.usual.mean_iou(),
        }
