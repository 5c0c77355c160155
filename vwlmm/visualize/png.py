"""Draws the visual words of a picture over it, as one PNG.

`draw_png(word_map, "words.png")`; the same map always gives the same bytes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .word_map import VisualWordMap

MIN_CELL = 80  # pixels: a word of ten letters stays legible
MIN_PICTURE = 640  # pixels along the longer side: small grids get larger cells
ACCENT = (255, 196, 61)
GRID = (128, 128, 128, 110)  # seen on dark and on pale pictures


def draw_png(word_map: "VisualWordMap", out: str | Path, *, font: str | Path | None = None) -> None:
    """Draws the picture with its patch grid and the top word of every patch.

    A label is the more opaque, and the bar under its word the longer, the more probable the word is. Letters that the
    font lacks are written as their code point (`U+4E2D`).

    Args:
        word_map: the words.
        out: file to write.
        font: a TrueType or OpenType file; the default is DejaVu Sans (Latin, Greek, Cyrillic, Arabic, Hebrew).

    Raises:
        FileNotFoundError: no such font file.
        ValueError: the font file cannot be read.
    """
    labels = _Labels(font)
    rows, cols = word_map.grid
    cell = max(MIN_CELL, -(-MIN_PICTURE // max(rows, cols)))
    width, height = cols * cell, rows * cell
    picture = word_map.picture.resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")

    overlay = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(overlay)
    for row in range(1, rows):
        draw.line([(0, row * cell), (width, row * cell)], fill=GRID)
    for col in range(1, cols):
        draw.line([(col * cell, 0), (col * cell, height)], fill=GRID)
    for row in range(rows):
        for col in range(cols):
            word, probability = word_map.tokens[row][col][0], word_map.probabilities[row][col][0]
            _draw_label(draw, labels, word, probability, (col * cell, row * cell), cell)
    picture.alpha_composite(overlay)
    _with_caption(picture.convert("RGB"), word_map.summary(), labels).save(out, format="PNG")


def _draw_label(
    draw: ImageDraw.ImageDraw, labels: "_Labels", word: str, probability: float, corner: tuple[int, int], cell: int
) -> None:
    """One word on a dark, half-transparent plate at the bottom of its cell, which leaves the picture above it free."""
    largest = cell * 2 // 9
    text, face = labels.fit(word, largest=largest, width=cell - 8)
    bar, plate_height = max(2, cell // 32), round(1.4 * largest) + max(2, cell // 32)
    plate_width = min(cell - 4, max(cell // 2, round(face.getlength(text)) + largest // 2))
    left, top = corner[0] + (cell - plate_width) // 2, corner[1] + cell - plate_height - 2
    box = (left, top, left + plate_width, top + plate_height)
    draw.rounded_rectangle(box, radius=3, fill=(0, 0, 0, 70 + round(150 * probability)))
    draw.text(
        (left + plate_width / 2, top + (plate_height - bar) / 2),
        text,
        font=face,
        anchor="mm",
        fill=(255, 255, 255, 255),
        stroke_width=1,  # an outline keeps unlikely words legible, whose plate is nearly clear
        stroke_fill=(0, 0, 0, 200),
    )
    length = round((plate_width - 4) * probability)
    draw.rectangle((left + 2, box[3] - bar, left + 2 + length, box[3] - 1), fill=(*ACCENT, 255))


def _with_caption(picture: Image.Image, caption: str, labels: "_Labels") -> Image.Image:
    """The picture over a strip that says what it is."""
    text, face = labels.fit(caption, largest=16, width=picture.width - 16)
    sheet = Image.new("RGB", (picture.width, picture.height + 32), (24, 24, 27))
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).text((8, picture.height + 16), text, font=face, anchor="lm", fill=(228, 228, 231))
    return sheet


class _Labels:
    """Fits words into a width with one font, at every size it is asked for."""

    smallest = 11  # pixels; below this nobody reads a word, so a longer one is cut

    def __init__(self, font: str | Path | None) -> None:
        import matplotlib
        from matplotlib.ft2font import FT2Font

        # Matplotlib ships DejaVu; Pillow's own font has no Greek, Cyrillic or signs for blanks.
        self.path = Path(font) if font else Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        if not self.path.is_file():
            raise FileNotFoundError(f"Expected a font file, found none at {self.path}: give a .ttf or .otf file.")
        try:
            self.letters = FT2Font(str(self.path)).get_charmap()
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} is not a font that FreeType reads ({error}): give a .ttf or .otf."
            ) from error
        self.faces: dict[int, ImageFont.FreeTypeFont] = {}

    def fit(self, word: str, *, largest: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
        """The word as it can be drawn and the face of the largest size, in pixels, that fits; cut with "…" if none."""
        word = "".join(c if ord(c) in self.letters else f"U+{ord(c):04X}" for c in word)
        for size in range(largest, self.smallest, -1):
            if self._face(size).getlength(word) <= width:
                return word, self._face(size)
        face = self._face(self.smallest)
        if face.getlength(word) > width:
            while word and face.getlength(word + "…") > width:
                word = word[:-1]
            word += "…"
        return word, face

    def _face(self, size: int) -> ImageFont.FreeTypeFont:
        if size not in self.faces:
            self.faces[size] = ImageFont.truetype(str(self.path), size)
        return self.faces[size]
