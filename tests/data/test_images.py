"""What `load_image` makes of a picture, and what it says of one it cannot read."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vwlmm.data.images import ImageProblem, load_image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nowhere.png", "no such file"),
        ("zero.png", "zero bytes"),
        ("cut.png", "a truncated PNG"),
        ("cut.jpg", "a truncated JPEG"),
        ("text.png", "not an image"),
        (".", "a folder"),
    ],
)
def test_each_bad_file_is_named_for_what_it_is(images: Path, name: str, found: str):
    with pytest.raises(ImageProblem, match=found):
        load_image(images / name)


def test_a_png_cut_inside_its_header_is_called_broken_and_not_a_stranger():
    with pytest.raises(ImageProblem, match="truncated or broken PNG"):
        load_image(encoded(Image.new("RGB", (8, 8)))[:14])


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    bomb = encoded(Image.new("1", (9000, 9000)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageProblem, match=r"9000 × 9000 = 81,000,000 pixels.*") as raised:
        load_image(bomb, max_pixels=1_000_000)
    assert "1,000,000 pixels (`max_pixels`)" in str(raised.value)


def test_the_limit_may_be_above_the_one_pillow_has_of_its_own(monkeypatch: pytest.MonkeyPatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_image(encoded(Image.new("RGB", (30, 30))), max_pixels=900).size == (30, 30)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 100  # and Pillow's is as it was


def test_exif_orientation_turns_the_picture_upright():
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    assert load_image(encoded(picture, "JPEG", exif=exif)).size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_composed_on_white(mode: str):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture = picture.quantize() if mode == "P" else picture.convert(mode)
    kind = "TIFF" if mode == "PA" else "PNG"
    assert load_image(encoded(picture, kind)).getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades():
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(ramp))))
    assert np.array_equal(loaded[..., 0].reshape(-1), np.arange(256))


def test_pixels_whose_white_is_unknown_are_refused():
    with pytest.raises(ImageProblem, match="32-bit"):
        load_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_every_other_mode_becomes_rgb(mode: str):
    assert load_image(encoded(Image.new(mode, (4, 4)), "TIFF")).mode == "RGB"


def test_bytes_a_dict_of_bytes_and_a_dict_of_a_path_are_the_same_picture(images: Path):
    path = images / "a.png"
    data = path.read_bytes()
    loaded = [
        load_image(source) for source in (path, data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)})
    ]
    assert len({image.tobytes() for image in loaded}) == 1


def test_too_little_memory_is_said_and_not_crashed_on(images: Path, monkeypatch: pytest.MonkeyPatch):
    def no_memory(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(ImageProblem, match="fits in memory"):
        load_image(images / "a.png")
