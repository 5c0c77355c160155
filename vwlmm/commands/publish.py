"""`vwlmm publish MODEL REPO`: a model on the Hub with a card made from its run."""

import argparse
from pathlib import Path

EXAMPLE = """\
examples:
  vwlmm publish checkpoints/visual_words/4_final user/vw-llava --dry-run
      writes the folder that the Hub would get, card and pictures included, and uploads nothing
  vwlmm publish checkpoints/visual_words/4_final user/vw-llava --private --revision v1 --results checkpoints/eval
      an upload that was cut short goes on when the same command is run again

Folders with optimiser state, tokens or paths of this machine in their files are refused. The recipe is published with
its paths cut to their last part.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Publish a model on the Hub, with a card from its recipe, data hashes, curves and results."
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a model")
    parser.add_argument("repo", metavar="REPO", help="user/name")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and upload nothing")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of --dry-run (default: MODEL-hub beside MODEL)")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to publish to (default: main)")
    parser.add_argument("--message", default="Publish with vwlmm", help="of the commit")
    parser.add_argument("--license", metavar="ID", help="Hub licence id of the whole (default: the parts' licences)")
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="results of vwlmm eval or vwlmm score for the card, file or folder; repeatable (MODEL/eval is read anyway)",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="picture of the visual-word map (default: a drawn one)"
    )
    parser.add_argument("--no-word-map", action="store_true", help="do not load the model to draw the map")
    parser.add_argument("--model-only", action="store_true", help="leave optimiser state where it is, do not refuse")


def main(args: argparse.Namespace) -> int:
    """Publishes, and prints where."""
    from vwlmm.hub import PublishConfig, publish

    if args.out is not None and not args.dry_run:
        raise ValueError("--out names the folder of --dry-run: give both, or neither.")
    config = PublishConfig(
        private=args.private,
        revision=args.revision,
        message=args.message,
        licence=args.license,
        results=args.results,
        image=args.image,
        word_map=not args.no_word_map,
        model_only=args.model_only,
    )
    folder = args.out or args.model.resolve().with_name(f"{args.model.resolve().name}-hub")
    place, left_out = publish(args.model, args.repo, config, dry_run=folder if args.dry_run else None)
    if left_out:
        print(f"left out, no part of the model: {', '.join(left_out)}")
    print(f"nothing was uploaded; the folder is {place}" if args.dry_run else f"published: {place}")
    return 0
