"""`vwlmm words MODEL IMAGE… --out FILE`: draws the visual words of pictures as PNG, HTML or JSON.

vwlmm words checkpoints/visual_words/4_final cat.jpg dog.jpg --out words.html
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vwlmm.options import add_device, add_dtype

from .page import write_html
from .png import draw_png
from .word_map import VisualWordMap, load_picture, visual_word_map, write_json

SUFFIXES = (".png", ".html", ".json")

EXAMPLE = """\
examples:
  vwlmm words checkpoints/visual_words/4_final cat.jpg --out cat.png
      the picture as the model saw it, with the top word of every patch
  vwlmm words checkpoints/visual_words/4_final cat.jpg dog.jpg --out words.html
      one page; point at a patch for its top words and entropy
  vwlmm words checkpoints/vlap/embedded cat.jpg --out cat.png --cosine centred
      words by cosine to the word embeddings, as VLAP reads them
  vwlmm words checkpoints/visual_words/4_final cat.jpg --out words.json --top-k 20

Several pictures make one page or one JSON file, but one PNG each: words.png becomes words_1.png, words_2.png, …
in the order of the pictures.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `vwlmm words`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Draw the top visual word of every patch over the picture."
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of a model with a VM head")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="picture files")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write: .png, .html or .json")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="words kept per patch (default: 5)")
    parser.add_argument(
        "--center",
        action="store_true",
        help="take each word's mean score over the picture off first: shows what tells the patches apart",
    )
    parser.add_argument(
        "--cosine",
        choices=("raw", "centred"),
        help="score words by cosine to the word embeddings in place of the VM head (VLAP); centred takes the mean word off, "
        "because some words are near everything",
    )
    parser.add_argument("--font", type=Path, metavar="FILE", help="font of the PNG (default: DejaVu Sans)")
    add_device(parser)
    add_dtype(parser)


def main(args: argparse.Namespace) -> int:
    """Runs `vwlmm words`: prints one line a picture and the files written.

    Raises:
        FileNotFoundError: a picture or the font does not exist.
        ValueError: unknown kind of output file, unreadable picture, or a model without a VM head.
    """
    # All that can be wrong is found before the model, which takes the longest, is loaded.
    _check_suffix(args.out)
    for image in args.images:
        load_picture(image)
    from vwlmm.loading import load_model

    model, processor = load_model(args.model, dtype=args.dtype, device=args.device, require_vm_head=not args.cosine)
    scores = None
    if args.cosine:
        from vwlmm.vlap.word_space import WordSpace

        scores = WordSpace(model, processor, centred=args.cosine == "centred").word_scores()
    maps = []
    for image in args.images:
        maps.append(visual_word_map(model, processor, image, top_k=args.top_k, center=args.center, scores=scores))
        print(maps[-1].summary(), flush=True)
    for path in write_words(maps, args.out, font=args.font):
        print(f"wrote {path}")
    return 0


def write_words(maps: Sequence[VisualWordMap], out: str | Path, *, font: str | Path | None = None) -> list[Path]:
    """Writes the maps in the format that the file's suffix names, making its folder; returns the files written.

    Several maps make one page or one JSON file, but one PNG each: `words_1.png`, `words_2.png`, …

    Raises:
        ValueError: the suffix is not .png, .html or .json.
    """
    out = Path(out)
    suffix = _check_suffix(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".html":
        write_html(maps, out)
    elif suffix == ".json":
        write_json(maps, out)
    else:
        files = [out] if len(maps) == 1 else [out.with_stem(f"{out.stem}_{i}") for i in range(1, len(maps) + 1)]
        for word_map, file in zip(maps, files, strict=True):
            draw_png(word_map, file, font=font)
        return files
    return [out]


def _check_suffix(out: Path) -> str:
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"--out takes a .png, .html or .json file, got {out}: choose one of the three.")
    return suffix
