"""`vwlmm zero-shot`: how often the name of a picture's class is the nearest, without training on the classes."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vwlmm.curation.labelled import read_labelled
from vwlmm.data.images import ImageProblem, load_image
from vwlmm.options import add_device
from vwlmm.zero_shot import SCRIPT_LENGTH, class_vectors, classify, labels_by_name, read_prompts

EXAMPLE = f"""\
example:
  vwlmm zero-shot checkpoints/freeze_align/embedded_vit_s14 --label-field category \\
      --data checkpoints/embedded/named-pictures/heldout_stamps.json
  vwlmm zero-shot openai/clip-vit-base-patch32 --data val.jsonl --classes names.txt --prompts templates.json --set pets

PROMPTS: `single` ("photo of {{}}"), a .txt with a template a line, or .json: a list of templates, lists by data set (--set),
or sentences by class. --released computes as freeze-align's script: lists filled up to {SCRIPT_LENGTH} with their first
sentence, means not brought to length 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vwlmm zero-shot`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="dual encoder or CLIP-like model: folder or hub id")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="rows with `image` and a label in words"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where image paths start (default: folder of --data)"
    )
    parser.add_argument("--label-field", default="label", metavar="NAME", help="column (default: label)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="one name a line (default: the labels of --data)")
    parser.add_argument("--prompts", default="single", metavar="PROMPTS", help="default: single")
    parser.add_argument("--set", metavar="NAME", help="data set, in a file with templates of several")
    parser.add_argument("--released", action="store_true", help="class vectors as freeze-align's script makes them")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_device(parser)


def main(args: argparse.Namespace) -> int:
    """Scores the pictures and prints top-1, top-5 and the mean over classes beside a guess.

    Raises:
        FileNotFoundError: no such data, class list or prompts.
        ValueError: labels that the class list does not have, prompts that do not fit, or a picture that cannot be opened.
    """
    rows = read_labelled(args.data, args.label_field, args.images)
    if args.classes is None:
        names = sorted({label for label, _ in rows})
    else:
        names = [line.strip() for line in args.classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    labels = labels_by_name([label for label, _ in rows], names)
    prompts = read_prompts(args.prompts, names, set_name=args.set)

    from vwlmm.pair_encoder import load_pair_encoder

    pair = load_pair_encoder(args.model, device=args.device)
    longest = max(map(len, prompts.values()))
    vectors = class_vectors(
        pair.embed_texts,
        prompts,
        renormalise=not args.released,
        pad_to=max(SCRIPT_LENGTH, longest) if args.released else None,
    )
    try:
        images = pair.embed_images(load_image(image) for _, image in rows)
    except ImageProblem as problem:
        raise ValueError(f"{args.data}: {problem}; run `vwlmm data check` on it.") from problem
    scores = classify(images, vectors, labels, names)
    if args.json:
        print(json.dumps(asdict(scores) | {"chance": scores.chance}, indent=2))
        return 0
    print(f"{scores.num_images:,} pictures of {scores.num_classes:,} classes, {longest} prompts a class at most")
    print(
        f"top-1 {100 * scores.top1:.2f} %, top-5 {100 * scores.top5:.2f} %, mean of classes {100 * scores.mean_per_class:.2f} %"
    )
    print(f"a guess: top-1 {100 * scores.chance:.2f} %")
    return 0
