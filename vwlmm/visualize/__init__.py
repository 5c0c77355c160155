"""The visual-word inspector: what every patch of a picture is called in the language model's vocabulary.

`vwlmm words MODEL IMAGE --out words.html` draws it as PNG, HTML or JSON; `visual_word_map` computes it.
Source: VW-LMM (arXiv 2403.07720), the figures that write the VM head's word on every patch.
"""

from .command import add_arguments, main, write_words
from .page import write_html
from .png import draw_png
from .word_map import VisualWordMap, load_picture, text_grid, visual_word_map, write_json

__all__ = [
    "VisualWordMap",
    "add_arguments",
    "draw_png",
    "load_picture",
    "main",
    "text_grid",
    "visual_word_map",
    "write_html",
    "write_json",
    "write_words",
]
