"""The picture augmentation that freeze-align was trained with: a random crop, a flip, and RandAugment of two steps.

Source: the released code of arXiv 2409.19425 (`RandomResizedCrop(scale=(0.2, 1))`, flip, `RandAugment(2, 7)`), in Pillow.
Draws come from Python's `random`, which the trainer seeds and torch's DataLoader seeds anew in every worker.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
LARGEST = 10  # magnitudes count from 0 to this


@dataclass(frozen=True)
class Augmentation:
    """A picture → another picture of the same thing; the image processor resizes it afterwards.

    Args:
        scale: least and most share of the area that a crop keeps.
        ratio: least and most width over height of a crop.
        steps: operations of RandAugment, one after the other.
        magnitude: of each, from 0 to 10.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    steps: int = 2
    magnitude: int = 7

    def __call__(self, image: Image.Image) -> Image.Image:
        image = image.crop(self._box(*image.size))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        for _ in range(self.steps):
            image = random.choice(OPERATIONS)(image, self.magnitude / LARGEST * random.choice((-1, 1)))
        return image

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """A random part of the picture; after ten drawn in vain the largest in the middle whose shape is allowed."""
        for _ in range(10):
            area = width * height * random.uniform(*self.scale)
            shape = math.exp(random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


Operation = Callable[[Image.Image, float], Image.Image]  # strength from −1 to 1


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC)


def _translate_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, strength * image.width / 3, 0, 1, 0)


def _translate_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, strength * image.height / 3)


# Identity, autocontrast, equalise, brightness, sharpness, shears, translations, rotation: the released list.
OPERATIONS: tuple[Operation, ...] = (
    lambda image, strength: image,
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
    lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: _affine(image, 1, 0.3 * strength, 0, 0, 1, 0),
    lambda image, strength: _affine(image, 1, 0, 0, 0.3 * strength, 1, 0),
    _translate_x,
    _translate_y,
    lambda image, strength: image.rotate(30 * strength, BICUBIC),
)
