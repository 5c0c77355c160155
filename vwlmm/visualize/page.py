"""One self-contained page of visual words: the picture, every patch's word, and on hover its top words and entropy.

`write_html(maps, "words.html")`; no script and no file beside it, so the page can be mailed or published as it is.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .word_map import VisualWordMap

MIN_CELL = 76  # CSS pixels
MIN_PICTURE = 576  # CSS pixels along the longer side: small grids get larger cells

STYLE = """
:root { color-scheme: light dark; --page: #fafafa; --ink: #18181b; --soft: #71717a; --card: #ffffff; --edge: #d4d4d8;
  --bar: #d97706; }
@media (prefers-color-scheme: dark) { :root { --page: #111113; --ink: #e4e4e7; --soft: #a1a1aa; --card: #1f1f23;
  --edge: #3f3f46; --bar: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: max-content; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; color: var(--soft); max-width: 70ch; }
label { user-select: none; cursor: pointer; margin-right: 1.25rem; }
figure { margin: 1.5rem 0; }
figcaption { margin-bottom: .5rem; color: var(--soft); }
figcaption b { color: var(--ink); }
.map { display: grid; width: max-content; border-radius: 6px; background-size: 100% 100%;
  grid-template-columns: repeat(var(--cols), var(--cell)); grid-auto-rows: var(--cell); }
.cell { position: relative; display: flex; align-items: flex-end; outline-offset: -2px;
  box-shadow: inset 0 0 0 .5px rgb(128 128 128 / .6); }
.cell:hover, .cell:focus { outline: 2px solid var(--bar); z-index: 2; }
.word { max-width: calc(100% - 4px); margin: 0 auto 2px; padding: 1px 4px 3px; overflow: hidden; border-radius: 3px;
  white-space: nowrap; text-overflow: ellipsis; color: #fff; font-size: var(--size); line-height: 1.3;
  text-shadow: 0 0 2px #000, 0 0 2px #000; background: linear-gradient(90deg, #fbbf24 calc(100% * var(--p)), #0000 0)
  bottom / 100% 2px no-repeat, rgb(0 0 0 / calc(.28 + .57 * var(--p))); }
.tip { display: none; position: absolute; top: 100%; left: 0; width: 18rem; margin: 4px 0; padding: .6rem .7rem;
  background: var(--card); border: 1px solid var(--edge); border-radius: 6px; box-shadow: 0 4px 16px rgb(0 0 0 / .3);
  pointer-events: none; color: var(--ink); font-size: 13px; }
.tip.up { top: auto; bottom: 100%; }
.tip.back { left: auto; right: 0; }
.cell:hover .tip, .cell:focus .tip { display: block; }
.tip div { display: grid; grid-template-columns: 6.2rem 1fr 3.2rem; gap: .4rem; align-items: center; }
.tip bdi { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.tip i { height: .55rem; border-radius: 2px;
  background: linear-gradient(90deg, var(--bar) calc(100% * var(--p)), var(--edge) 0); }
.tip span { text-align: right; font-variant-numeric: tabular-nums; }
.tip footer { margin-top: .35rem; color: var(--soft); }
#hide:checked ~ main .word { visibility: hidden; }
#entropy:checked ~ main .cell { background: color-mix(in srgb, #fde047 calc(100% * var(--h)), #312e81); }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p>Every patch carries the word that its features stand for in the language model's vocabulary. The darker the plate and
the longer the yellow bar, the more probable the word. Point at a patch, or step to it with the Tab key, for its top
words and entropy.</p>
<input type="checkbox" id="hide"> <label for="hide">picture only</label>
<input type="checkbox" id="entropy"> <label for="entropy">entropy map: blue is certain, yellow is not</label>
<main>
{figures}
</main>
</html>
"""


def write_html(maps: Sequence["VisualWordMap"], out: str | Path, *, title: str = "Visual words") -> None:
    """Writes one page with a figure for every picture, in the order given.

    The page needs no network and no script: pictures are inside it, hover and the two switches are CSS.
    """
    figures = "\n".join(_figure(word_map) for word_map in maps)
    Path(out).write_text(PAGE.format(title=escape(title), style=STYLE, figures=figures), encoding="utf-8")


def _figure(word_map: "VisualWordMap") -> str:
    rows, cols = word_map.grid
    cell = max(MIN_CELL, -(-MIN_PICTURE // max(rows, cols)))
    buffer = io.BytesIO()
    word_map.picture.save(buffer, format="PNG")
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    cells = "\n".join(_cell(word_map, row, col, cell) for row in range(rows) for col in range(cols))
    name, _, numbers = word_map.summary().rpartition(": ")
    style = f"--cols:{cols};--cell:{cell}px;background-image:url(data:image/png;base64,{picture})"
    return (
        f"<figure><figcaption><b>{escape(name)}</b>: {escape(numbers)}</figcaption>\n"
        f'<div class="map" style="{style}">\n'
        f"{cells}\n</div></figure>"
    )


def _cell(word_map: "VisualWordMap", row: int, col: int, cell: int) -> str:
    rows, cols = word_map.grid
    tokens, probabilities = word_map.tokens[row][col], word_map.probabilities[row][col]
    entropy = word_map.entropy[row][col]
    # Letters are about 0.6 as wide as high: the size at which the word fills its cell, within what is legible.
    size = min(max(10, int((cell - 12) / (0.6 * len(tokens[0])))), cell * 2 // 9)
    # The box opens towards the middle of the picture, where there is room.
    side = " ".join(["tip"] + ["up"] * (row >= rows / 2) + ["back"] * (col >= cols / 2))
    bars = "".join(
        f'<div><bdi>{escape(token)}</bdi><i style="--p:{probability:.4f}"></i><span>{probability:.1%}</span></div>'
        for token, probability in zip(tokens, probabilities, strict=True)
    )
    return (
        f'<div class="cell" tabindex="0" style="--p:{probabilities[0]:.4f};'
        f'--h:{entropy / math.log(word_map.vocab_size):.4f};--size:{size}px">'
        f'<bdi class="word">{escape(tokens[0])}</bdi><div class="{side}">{bars}'
        f"<footer>row {row + 1}, column {col + 1}; entropy {entropy:.2f} nats</footer></div></div>"
    )
