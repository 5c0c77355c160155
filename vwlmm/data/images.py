"""Opens a picture and says in plain words why one cannot be opened.

Every picture is decoded whole, so that a truncated one is found here and not in the loss.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ImageSource = Path | bytes | dict[str, Any]  # a file, its bytes, or {"bytes", "path"} as `datasets` stores it

# Pillow's own hard limit: 0.5 GB as RGB. Larger files are mostly attacks or scans nobody meant to train on.
MAX_PIXELS = 178_956_970

# First bytes of a file: they tell a broken picture from something that never was one.
MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


class ImageProblem(ValueError):
    """Why a picture cannot be used: `expected` and `found` are the words a `BadRow` takes."""

    def __init__(self, expected: str, found: str = "") -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"expected {self.expected}, found {self.found}"


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as 8-bit RGB, upright by its EXIF orientation, transparency on white; the first frame of several.

    Args:
        source: a path, encoded bytes, or a dict with `bytes` or `path`.
        max_pixels: width × height above this is refused before anything is decoded.

    Raises:
        ImageProblem: missing, zero bytes, truncated, not a picture, or too many pixels.
    """
    data, name = _read(source)
    try:
        return _decode(data, name, max_pixels)
    except Image.DecompressionBombError as problem:
        # A frame inside the file may be larger than the file's header says.
        raise ImageProblem(f"at most {max_pixels:,} pixels", f"{name}: {problem}") from problem
    except MemoryError as problem:
        raise ImageProblem("a picture that fits in memory", f"too large a picture ({name})") from problem


def _read(source: ImageSource) -> tuple[bytes, str]:
    """The encoded bytes, and what to call the picture in a message."""
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and not path:
            raise ImageProblem("a picture", "neither bytes nor a path")
        if data is None:
            return _read(Path(str(path)))
        return _read_bytes(data, str(path or "embedded bytes"))
    if isinstance(source, bytes):
        return _read_bytes(source, "embedded bytes")
    if source.is_dir():
        raise ImageProblem("a picture file", f"a folder ({source})")
    try:
        return _read_bytes(source.read_bytes(), str(source))
    except FileNotFoundError as problem:
        raise ImageProblem("a readable image", f"no such file ({source})") from problem
    except OSError as problem:
        raise ImageProblem(
            "a readable image", f"a file that cannot be opened ({source}): {problem.strerror}"
        ) from problem


def _read_bytes(data: bytes, name: str) -> tuple[bytes, str]:
    if not data:
        raise ImageProblem("a readable image", f"zero bytes ({name})")
    return data, name


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    try:
        with _pillow_limit(None):  # reads the header only; the limit follows, in our words
            image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as problem:
        found = f"a truncated or broken {kind} ({name})" if kind else f"a file that is not an image ({name})"
        raise ImageProblem("a readable image", found) from problem
    width, height = image.size
    if width * height > max_pixels:
        expected = f"at most {max_pixels:,} pixels (`max_pixels`)"
        raise ImageProblem(expected, f"{width} × {height} = {width * height:,} pixels ({name})")
    try:
        with _pillow_limit(max_pixels):
            image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except (ImageProblem, Image.DecompressionBombError, MemoryError):
        raise
    except Exception as problem:
        # Pillow's decoders report damage as OSError, SyntaxError, EOFError, struct.error, zlib.error and more.
        damage = "truncated" if "truncated" in str(problem).lower() or isinstance(problem, EOFError) else "broken"
        raise ImageProblem("a readable image", f"a {damage} {image.format} ({name}): {problem}") from problem


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bit(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as 8-bit grey. Pillow's own conversion clips at 255, which turns most 16-bit pictures white."""
    pixels = np.asarray(image)  # [height, width]
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65_535:
        raise ImageProblem("8 or 16 bits a channel", f"32-bit pixels, whose white is not known ({name})")
    return Image.fromarray((pixels.astype(np.float32) / 257).round().astype(np.uint8))


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow's own limit, a global, set while one picture is read: above twice `max_pixels` it refuses."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
