"""`vwlmm data curate`: chooses from shards of pairs those that cover a list of concepts. Paper: arXiv 2409.19425."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vwlmm.curation.choose import ORDERS
from vwlmm.curation.curate import CurateConfig, curate
from vwlmm.curation.labelled import Labelled, read_labelled
from vwlmm.curation.prototypes import Prototypes, concept_prototypes, few_shot
from vwlmm.curation.scale import NO_SCORE, Scale
from vwlmm.curation.shards import Fields, find_shards
from vwlmm.options import add_device

if TYPE_CHECKING:
    from vwlmm.pair_encoder import PairEncoder

SAVED = "prototypes.safetensors"

EXAMPLE = """\
example:
  vwlmm data curate shards/ --model openai/clip-vit-large-patch14 --concepts labelled.jsonl --out curated
      labelled.jsonl: {"image": "cat/1.jpg", "label": "cat"} a line; shards/: .jsonl, .json, .parquet or webdataset .tar
  vwlmm data curate shards/ --model checkpoints/freeze_align/embedded --prototypes curated/prototypes.safetensors \\
      --per-concept 100 --score-range -1 1 --out smaller

Each caption is scored against the mean picture of each concept. From the rarest concept to the commonest, the best
captions that no rarer one has taken are chosen. Interrupted, the same command goes on; --per-concept, --depth and
--order may change without scoring again. OUT gets pairs.jsonl, report.md, report.json, coverage.png.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vwlmm data curate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("shards", nargs="+", metavar="SHARD", help="files or folders of .json, .jsonl, .parquet, .tar")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="embeds pictures and captions: a folder or hub id"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--concepts", type=Path, metavar="FILE", help="labelled pictures: rows with `image` and `label`"
    )
    source.add_argument("--prototypes", type=Path, metavar="FILE", help="prototypes.safetensors of an earlier curation")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where image paths of --concepts start (default: its own)"
    )
    parser.add_argument("--label-field", default="label", metavar="NAME", help="of --concepts (default: label)")
    parser.add_argument("--shots", type=int, default=128, metavar="N", help="pictures a concept at most (default: 128)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--per-concept", type=int, default=2000, metavar="N", help="captions a concept (default: 2000)")
    parser.add_argument(
        "--depth",
        type=int,
        default=25_000,
        metavar="N",
        help="best captions that say how common one is (default: 25000)",
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default="mean",
        help="commonality is their mean (paper) or the last one's score (script)",
    )
    parser.add_argument(
        "--scores", choices=list(NO_SCORE), default="int8", help="how scores are stored (default: int8)"
    )
    parser.add_argument(
        "--score-range",
        nargs=2,
        type=float,
        default=(-0.3, 0.4),
        metavar=("LOW", "HIGH"),
        help="cosines that int8 tells apart (default: -0.3 0.4, CLIP ViT-L's)",
    )
    parser.add_argument(
        "--block-rows", type=int, default=65_536, metavar="N", help="rows scored at a time (default: 65536)"
    )
    parser.add_argument("--caption-field", default="caption", metavar="NAME", help="column (default: caption)")
    parser.add_argument("--image-field", default="image", metavar="NAME", help="column (default: image)")
    parser.add_argument(
        "--on-bad",
        choices=("stop", "quarantine"),
        default="stop",
        help="at a caption that is not text or a broken shard: stop, or go on and list it in OUT/quarantine.jsonl",
    )
    add_device(parser)
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="captions embedded at once (default: 64)"
    )


def main(args: argparse.Namespace) -> int:
    """Runs the curation and prints its summary.

    Raises:
        FileNotFoundError: a shard, the concepts or the prototypes are not there.
        ValueError: bad input, or OUT holds another curation.
    """
    # All that can be wrong is found before the model, which takes the longest, is loaded.
    shards = find_shards(args.shards)
    low, high = args.score_range
    config = CurateConfig(
        scale=Scale(args.scores, low, high),
        block_rows=args.block_rows,
        fields=Fields(args.caption_field, args.image_field),
        quarantine=args.on_bad == "quarantine",
        per_concept=args.per_concept,
        depth=args.depth,
        order=args.order,
    )
    labelled = None if args.concepts is None else read_labelled(args.concepts, args.label_field, args.images)
    known = None if args.prototypes is None else Prototypes.load(args.prototypes)

    from vwlmm.models.towers import fingerprint
    from vwlmm.pair_encoder import load_pair_encoder

    pair = load_pair_encoder(args.model, device=args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    if labelled is not None:
        known = _prototypes(pair, labelled, args)
        print(f"{len(known.names):,} prototypes from {sum(known.shots):,} pictures: {args.out / SAVED}")
    assert known is not None  # one of the two options is required
    report = curate(
        shards,
        known,
        lambda captions: pair.embed_texts(captions, batch_size=args.batch_size),
        args.out,
        config,
        model=f"{args.model} {fingerprint(pair.model)}",
        progress=bar,
    )
    for line in report.summary():
        print(line)
    print(f"Wrote {args.out / 'pairs.jsonl'}, report.md, report.json and coverage.png.")
    return 0


def _prototypes(pair: "PairEncoder", labelled: list[Labelled], args: argparse.Namespace) -> Prototypes:
    """The prototypes an interrupted run has saved, if they come from the same pictures and model; else new ones."""
    from vwlmm.models.towers import fingerprint

    content = (
        args.concepts.read_bytes() + f"{args.label_field} {args.images} {args.shots} {fingerprint(pair.model)}".encode()
    )
    origin, file = hashlib.sha256(content).hexdigest(), args.out / SAVED
    if file.is_file() and (saved := Prototypes.load(file)).origin == origin:
        return saved
    made = make_prototypes(pair, labelled, args.shots)
    made.origin = origin
    made.save(file)
    return made


def make_prototypes(pair: "PairEncoder", labelled: list[Labelled], shots: int) -> Prototypes:
    """Embeds the pictures that stand for each concept; the others are not opened."""
    from vwlmm.data.images import load_image

    groups = few_shot([label for label, _ in labelled], shots)
    chosen = [index for rows in groups.values() for index in rows]
    features = pair.embed_images(load_image(labelled[index][1]) for index in chosen)
    place = {index: number for number, index in enumerate(chosen)}
    return concept_prototypes(features, {name: [place[i] for i in rows] for name, rows in groups.items()})


def bar(what: str, total: int) -> Callable[[int], None]:
    """A progress bar on a terminal, nothing in a log file."""
    from tqdm import tqdm

    progress = tqdm(total=total or None, desc=what, unit="", unit_scale=True, disable=None)

    def more(count: int) -> None:
        progress.update(count)

    return more
