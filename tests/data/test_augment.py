"""freeze-align's picture augmentation."""

import random

import pytest
from PIL import Image, ImageChops

from vwlmm.data.augment import OPERATIONS, Augmentation


@pytest.fixture
def picture():
    image = Image.new("RGB", (40, 30), "navy")
    image.paste("gold", (5, 5, 20, 15))
    return image


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(picture):
    def drawn(seed):
        random.seed(seed)
        return [Augmentation()(picture).tobytes() for _ in range(4)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_crop_keeps_at_least_a_fifth_and_its_shape_is_bounded(picture):
    random.seed(0)
    for _ in range(200):
        left, top, right, bottom = Augmentation()._box(*picture.size)
        width, height = right - left, bottom - top
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        assert width * height >= 0.2 * 40 * 30 * 0.9  # rounded to whole pixels
        assert 0.6 < width / height < 1.6


def test_a_picture_of_an_extreme_shape_is_cropped_in_its_middle():
    random.seed(0)
    assert {Augmentation(scale=(0.9, 1.0))._box(400, 10) for _ in range(5)} == {(193, 0, 206, 10)}


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_every_operation_gives_an_rgb_picture_of_the_same_size(picture, number):
    for strength in (-0.7, 0.7):
        changed = OPERATIONS[number](picture, strength)
        assert (changed.size, changed.mode) == (picture.size, "RGB")
        same = ImageChops.difference(changed, picture).getbbox() is None
        assert same == (number == 0), f"operation {number}"
