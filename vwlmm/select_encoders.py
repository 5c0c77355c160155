"""Chooses a pair of encoders before any training: the vision and text encoders that see one set of pairs most alike.

vwlmm select-encoders --vision checkpoints/embedded/vit-s14 --text checkpoints/embedded/all-minilm-l6-v2 --data pairs.json

Step 1 of freeze-align (arXiv 2409.19425, section 3.1): linear CKA of image and caption embeddings.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from vwlmm.encoder_sets import Embeddings, embed_text, embed_vision, embeddings_of, read_set
from vwlmm.functional import linear_cka, rbf_cka
from vwlmm.options import add_device

EXAMPLE = """\
example:
  vwlmm select-encoders --vision facebook/dinov2-large facebook/dinov2-base --text sentence-transformers/all-roberta-large-v1 \\
      --data coco_val.json --images val2017 --out cka.png
  vwlmm select-encoders --vision checkpoints/embedded/vit-s14@8 --text checkpoints/embedded/all-minilm-l6-v2 \\
      --data pairs.json --kernel rbf --embeddings checkpoints/cka

`@8` after a vision encoder reads its hidden state 8 instead of its output. Captions of one picture are averaged. With
--embeddings each encoder's embeddings are kept there and read instead of made again; a .safetensors file made that way,
from the same pairs, can stand in the place of an encoder.
"""


def cka_table(
    vision: list[Embeddings], text: list[Embeddings], kernel: str = "linear", bandwidth: float = 1.0
) -> Tensor:
    """CKA of every vision encoder with every text encoder, `[vision, text]`.

    Raises:
        ValueError: an unknown kernel, or embeddings of different sets.
    """
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"The kernel is linear or rbf, got {kernel!r}.")
    first = [*vision, *text][0]
    for other in [*vision, *text]:
        if (other.digest, len(other.features)) != (first.digest, len(first.features)):
            raise ValueError(
                f"{first.name} and {other.name} have embedded different sets ({len(first.features)} and "
                f"{len(other.features)} pictures, set {first.digest} and {other.digest}): embed one set with both."
            )
    rows = []
    for image in vision:
        values = [
            linear_cka(image.features, caption.features)
            if kernel == "linear"
            else rbf_cka(image.features, caption.features, bandwidth=bandwidth)
            for caption in text
        ]
        rows.append(torch.stack(values))
    return torch.stack(rows)


def best_pair(table: Tensor) -> tuple[int, int]:
    """Row and column of the highest value, the first of equals."""
    index = int(table.argmax())
    return index // table.shape[1], index % table.shape[1]


def short_names(names: list[str]) -> list[str]:
    """The last part of each path; whole paths where that would not tell them apart."""
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else names


def draw(table: Tensor, vision: list[str], text: list[str], title: str, out: str | Path) -> None:
    """The table as a heat map, the best pair framed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(2.6 + 1.1 * len(text), 1.8 + 0.55 * len(vision)), layout="constrained")
    picture = axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1e-6, float(table.max())), aspect="auto")
    axes.set_xticks(range(len(text)), text, rotation=20, ha="right")
    axes.set_yticks(range(len(vision)), vision)
    axes.set_title(title, fontsize=10)
    middle = float(table.max()) / 2
    for row in range(len(vision)):
        for column in range(len(text)):
            value = float(table[row, column])
            axes.text(
                column, row, f"{value:.3f}", ha="center", va="center", color="white" if value > middle else "black"
            )
    row, column = best_pair(table)
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#dc2626", linewidth=2))
    figure.colorbar(picture, label="CKA")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=150)
    plt.close(figure)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vwlmm select-encoders`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--vision", nargs="+", required=True, metavar="ENCODER", help="folders, hub ids, or files (below)"
    )
    parser.add_argument(
        "--text", nargs="+", required=True, metavar="ENCODER", help="folders, hub ids, or files (below)"
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs: .json, .jsonl, .parquet or a dataset")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where image paths start (default: folder of --data)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N pictures only (paper: COCO val, 5000)")
    parser.add_argument(
        "--kernel", choices=("linear", "rbf"), default="linear", help="default: linear, as in the paper"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=1.0, metavar="X", help="of rbf, in median distances (default: 1)"
    )
    parser.add_argument("--embeddings", type=Path, metavar="DIR", help="keep embeddings here, and read them next time")
    parser.add_argument("--out", type=Path, default=Path("cka.png"), metavar="PNG", help="heat map (default: cka.png)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_device(parser)


def main(args: argparse.Namespace) -> int:
    """Embeds the set once with each encoder, prints the table, draws it and names the best pair.

    Raises:
        FileNotFoundError: no such data file or encoder.
        ValueError: a bad row, or embeddings of another set.
    """
    for name, specs in (("--vision", args.vision), ("--text", args.text)):
        if len(set(specs)) != len(specs):
            raise ValueError(f"{name} names an encoder twice: {' '.join(specs)}.")
    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit is at least 2 pictures, got {args.limit}.")
    pairs = read_set(args.data, args.images, args.limit)
    given: dict[str, list[Embeddings]] = {"vision": [], "text": []}
    for kind, make in (("vision", embed_vision), ("text", embed_text)):
        for spec in getattr(args, kind):
            given[kind].append(
                embeddings_of(
                    spec,
                    kind,
                    pairs,
                    folder=args.embeddings,
                    embed=lambda name, set_, make=make: make(name, set_, args.device),  # type: ignore[misc]
                )
            )
    table = cka_table(given["vision"], given["text"], args.kernel, args.bandwidth)
    vision, text = ([found.name for found in given[kind]] for kind in ("vision", "text"))
    draw(table, short_names(vision), short_names(text), f"{args.kernel} CKA, {len(pairs.images):,} pictures", args.out)
    _print(table, vision, text, args, len(pairs.images))
    return 0


def _print(table: Tensor, vision: list[str], text: list[str], args: argparse.Namespace, num_pictures: int) -> None:
    row, column = best_pair(table)
    if args.json:
        result = {"kernel": args.kernel, "pictures": num_pictures, "vision": vision, "text": text}
        result |= {"cka": table.tolist(), "best": {"vision": vision[row], "text": text[column]}}
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return
    columns = short_names(text)
    width = max(len(name) for name in short_names(vision))
    print(" " * width, *(f"{name:>12}" for name in columns), sep="  ")
    for name, values in zip(short_names(vision), table.tolist(), strict=True):
        cells = (f"{value:>{max(12, len(head))}.4f}" for value, head in zip(values, columns, strict=True))
        print(f"{name:{width}}", *cells, sep="  ")
    print(f"{args.kernel} CKA over {num_pictures:,} pictures; heat map: {args.out}")
    print(f"Best pair: {vision[row]} + {text[column]} ({float(table[row, column]):.4f})")
