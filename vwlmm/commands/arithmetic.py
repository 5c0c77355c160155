"""`vwlmm arithmetic MODEL --plus a.png b.png --minus c.png`: nearest words and a caption of a sum of pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from vwlmm.options import add_device

EXAMPLE = """\
examples:
  vwlmm arithmetic checkpoints/vlap/embedded --plus blue_heart.png red_circle.png --minus red_heart.png
  vwlmm arithmetic checkpoints/vlap/embedded --triples sums.jsonl --images pictures --out scored.json
      one sum a line: {"plus": ["a.png", "b.png"], "minus": ["c.png"], "expected": ["word"]}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of a trained model")
    parser.add_argument("--plus", nargs="+", type=Path, default=[], metavar="IMAGE", help="pictures to add")
    parser.add_argument("--minus", nargs="+", type=Path, default=[], metavar="IMAGE", help="pictures to subtract")
    parser.add_argument("--triples", type=Path, metavar="FILE", help="JSONL of sums with expected words, to be scored")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where pictures of --triples lie (default: beside it)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument("--top-k", type=int, default=10, metavar="N", help="nearest words (default: 10)")
    parser.add_argument("--centred", action="store_true", help="cosines after the mean word is taken off")
    add_device(parser)


def main(args: argparse.Namespace) -> int:
    """Prints words and captions; with --triples also how many sums have an expected word among the nearest.

    Raises:
        FileNotFoundError: a picture or file that is not there.
        ValueError: neither or both of --plus and --triples, or a bad line of the latter.
    """
    from vwlmm.vlap.arithmetic import Arithmetic, read_triples

    if bool(args.plus) == bool(args.triples) or (args.triples and args.minus):
        raise ValueError("Give either pictures (--plus, --minus) or a file of sums (--triples).")
    if args.top_k < 1:
        raise ValueError(f"--top-k is at least 1, got {args.top_k}.")
    for picture in (*args.plus, *args.minus):
        if not picture.is_file():
            raise FileNotFoundError(f"A picture was expected at {picture}: there is no such file.")
    triples = (
        read_triples(args.triples, args.images) if args.triples else [Arithmetic(tuple(args.plus), tuple(args.minus))]
    )
    results = score_triples(args, triples)
    if args.triples:
        hits = sum(result["hit"] for result in results)
        print(f"{hits} of {len(results)} sums have an expected word among the {args.top_k} nearest")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {args.out}")
    return 0


def score_triples(args: argparse.Namespace, triples: list[Any]) -> list[dict[str, Any]]:
    """Solves every sum with the model of `args`, printing each."""
    from vwlmm.loading import load_model
    from vwlmm.vlap.arithmetic import rank_of, solve, write_caption
    from vwlmm.vlap.word_space import WordSpace

    model, processor = load_model(args.model, device=args.device, require_vm_head=False)
    space = WordSpace(model, processor, centred=args.centred)
    results = []
    for triple in triples:
        features = solve(space, triple.plus, triple.minus)
        direction = space.point(features.mean(0))
        (words,) = space.nearest(direction[None], args.top_k)
        caption = write_caption(model, processor, features)
        result: dict[str, Any] = {"words": words, "caption": caption, "note": triple.note}
        line = ", ".join(f"{word} {cosine:.2f}" for word, cosine in words)
        print(f"{triple.note or 'words'}: {line}\n    caption: {caption}", flush=True)
        if triple.expected:
            rank = rank_of(space, direction, triple.expected)
            result |= {"expected": list(triple.expected), "rank": rank, "hit": rank is not None and rank <= args.top_k}
            print(f"    expected {' or '.join(triple.expected)}: rank {rank or 'beyond 1000'}")
        results.append(result)
    return results
