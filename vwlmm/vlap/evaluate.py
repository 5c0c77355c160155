"""Scores a model on image–caption pairs: retrieval in both directions, and its captions beside the true ones.

python -m vwlmm.vlap.evaluate checkpoints/vlap/embedded checkpoints/embedded/emoji/captions_test.json \\
    --images checkpoints/embedded/emoji/images --out scores.json
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vwlmm.vlap.captions import write_captions
from vwlmm.vlap.word_space import WordSpace, caption_kind, retrieval_scores


def evaluate(
    model: Any,
    processor: Any,
    pairs: list[dict[str, Any]],
    images: Path,
    *,
    captions: str,
    num_captions: int | None = None,
    centred: bool = False,
    max_new_tokens: int = 12,
) -> dict[str, Any]:
    """R@1 and R@5 in both directions over all pairs, and exact match and word F1 of the first `num_captions` captions.

    Args:
        pairs: rows with `image` and `caption`.
        images: the folder that `image` is relative to.
        captions: what a text's point is the mean of, see `WordSpace`.
        num_captions: how many pictures are captioned; all if None.
    """
    space = WordSpace(model, processor, captions=captions, centred=centred)
    files = [images / pair["image"] for pair in pairs]
    truth = [pair["caption"] for pair in pairs]
    scores: dict[str, Any] = retrieval_scores(space.images(files), space.texts(truth))
    written = write_captions(model, processor, files[:num_captions], max_new_tokens=max_new_tokens)
    scores |= caption_scores(written, truth[: len(written)])
    samples = [
        {"image": pair["image"], "caption": pair["caption"], "written": text}
        for pair, text in zip(pairs, written, strict=False)
    ]
    return scores | {"num_pairs": len(pairs), "num_captions": len(written), "samples": samples}


def caption_scores(written: list[str], truth: list[str]) -> dict[str, float]:
    """Exact match, and the mean F1 of the words that a written and a true caption share.

    Raises:
        ValueError: no captions, or not as many written as true ones.
    """
    if len(written) != len(truth) or not written:
        raise ValueError(
            f"As many written captions as true ones were expected, and some: got {len(written)} and {len(truth)}."
        )
    pairs = [(_words(ours), _words(theirs)) for ours, theirs in zip(written, truth, strict=True)]
    return {
        "exact": sum(ours == theirs for ours, theirs in pairs) / len(pairs),
        "word_f1": sum(_f1(ours, theirs) for ours, theirs in pairs) / len(pairs),
    }


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def _f1(ours: list[str], theirs: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Evaluates one model and prints its scores."""
    from vwlmm.data.rows import BadRow, read_rows
    from vwlmm.loading import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("pairs", type=Path, help="JSON, JSONL or Parquet rows with `image` and `caption`")
    parser.add_argument("--images", type=Path, help="folder of the pictures (default: beside the rows)")
    parser.add_argument(
        "--captions", choices=("contextual", "word_embeddings"), help="default: as the model was trained"
    )
    parser.add_argument("--num-captions", type=int, help="caption only the first so many (default: all)")
    parser.add_argument("--centred", action="store_true", help="cosines after the mean word is taken off")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    pairs = []
    for row in read_rows(args.pairs, images=args.images):
        if isinstance(row, BadRow):
            raise row
        if len(row.images) != 1 or not isinstance(row.images[0], str | Path):
            raise ValueError(
                f"{row.source}: one picture in a file and its caption were expected, got {len(row.images)} pictures."
            )
        text = " ".join(part["text"] for part in row.messages[-1]["content"] if part["type"] == "text")
        pairs.append({"image": row.images[0], "caption": text})
    model, processor = load_model(args.model, require_vm_head=False)
    scores = evaluate(
        model,
        processor,
        pairs,
        Path(),
        captions=args.captions or caption_kind(args.model),
        num_captions=args.num_captions,
        centred=args.centred,
    )
    print(json.dumps({name: value for name, value in scores.items() if name != "samples"}, indent=2))
    if args.out:
        args.out.write_text(json.dumps(scores, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
