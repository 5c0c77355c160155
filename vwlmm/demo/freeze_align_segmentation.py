"""Zero-shot segmentation on real pictures with known masks: four stamps on one sheet, each to be found by its category.

Used by `vwlmm.demo.freeze_align_encoders`. Paper: freeze-align (arXiv 2409.19425), A.10 and A.3.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vwlmm.pair_encoder import PairEncoder
from vwlmm.segmentation import SegmentationScores, argmax_mask, class_maps
from vwlmm.zero_shot import class_vectors, fill

SIDE = 112  # pixels of a stamp on the sheet
WHITE = 245  # paler than this in all channels is background
TEMPLATE = "a picture of {}"


@dataclass(frozen=True)
class Sheet:
    """Two by two stamps of different categories, and the label of each pixel: 0 background, 1 … categories."""

    picture: Image.Image
    mask: Tensor  # [height, width]


def make_sheets(data: Path, splits: list[str], categories: list[str], count: int, seed: int = 0) -> list[Sheet]:
    """Sheets of four stamps of four categories, drawn with the seed.

    Raises:
        ValueError: fewer than four categories among the stamps.
    """
    rows = [row for split in splits for row in json.loads((data / f"{split}.json").read_text("utf-8"))]
    by_category = {name: [row for row in rows if row["category"] == name] for name in categories}
    filled = [name for name in categories if by_category[name]]
    if len(filled) < 4:
        raise ValueError(f"A sheet needs stamps of 4 categories, found {len(filled)}.")
    generator = random.Random(seed)
    sheets = []
    for _ in range(count):
        picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
        mask = torch.zeros(2 * SIDE, 2 * SIDE, dtype=torch.long)
        for place, name in enumerate(generator.sample(filled, 4)):
            with Image.open(data / generator.choice(by_category[name])["image"]) as file:
                stamp = file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            top, left = place // 2 * SIDE, place % 2 * SIDE
            picture.paste(stamp, (left, top))
            drawn = torch.from_numpy((np.asarray(stamp) < WHITE).any(-1))
            mask[top : top + SIDE, left : left + SIDE][drawn] = categories.index(name) + 1
        sheets.append(Sheet(picture, mask))
    return sheets


def segment(pair: PairEncoder, sheets: list[Sheet], categories: list[str]) -> dict[str, dict[str, float]]:
    """The measures over the sheets: of the pair, without its class token, and with its categories exchanged."""
    vectors = class_vectors(pair.embed_texts, fill([TEMPLATE], categories))
    # Each category's vector goes to the next one, so that every answer about a category is about another.
    ways = {"pair": vectors, "without class token": vectors, "categories exchanged": vectors.roll(1, 0)}
    scores = {name: SegmentationScores(given) for name, given in ways.items()}
    for sheet in sheets:
        with_cls, without_cls = (pair.embed_patches([sheet.picture], cls_residual=way)[0] for way in (True, False))
        for name, found in scores.items():
            found.add(without_cls if name == "without class token" else with_cls, without_cls, sheet.mask)
    return {name: found.result() for name, found in scores.items()}


def draw(pair: PairEncoder, sheets: list[Sheet], categories: list[str], out: Path) -> None:
    """Each sheet over what the pair sees in it: the nearest of all categories wherever something is drawn."""
    import matplotlib.pyplot as plt

    vectors = class_vectors(pair.embed_texts, fill([TEMPLATE], categories))
    colours = plt.get_cmap("tab20")
    figure, panels = plt.subplots(2, len(sheets), figsize=(2.3 * len(sheets), 5.2), layout="constrained", squeeze=False)
    shown: set[int] = set()
    for column, sheet in enumerate(sheets):
        patches = pair.embed_patches([sheet.picture])[0]
        maps = class_maps(patches, vectors, (sheet.mask.shape[0], sheet.mask.shape[1]))
        found = argmax_mask(maps, range(1, len(categories) + 1)).where(sheet.mask > 0, 0)
        panels[0][column].imshow(sheet.picture)
        panels[1][column].imshow(_painted(found, colours))
        shown |= {label for label in found.unique().tolist() if label}
        for row in panels:
            row[column].set(xticks=[], yticks=[])
    handles: list[Any] = [plt.Line2D([], [], marker="s", linestyle="", color=colours(i - 1)) for i in sorted(shown)]
    figure.legend(
        handles, [categories[i - 1] for i in sorted(shown)], loc="outside lower center", ncols=6, frameon=False
    )
    figure.savefig(out, format="png", dpi=110)
    plt.close(figure)


def _painted(labels: Tensor, colours: Any) -> np.ndarray:
    """Labels as colours, background white, `[height, width, 3]`."""
    table = np.array([(1.0, 1.0, 1.0), *(colours(i)[:3] for i in range(colours.N))])
    return table[labels.numpy()]
