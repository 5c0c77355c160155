"""`vwlmm merge ADAPTER OUT`: LoRA adapters and every weight trained beside them become a whole model."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merge the adapters of a `lora` recipe, or of LLaVA's LoRA script, into the model they were trained on, with "
        "every weight that learned in full beside them (projector, VM head)."
    )
    parser.epilog = "example: vwlmm merge checkpoints/visual_words/4_lora checkpoints/visual_words/4_merged"
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or Hub id that holds adapter_config.json")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument(
        "--dtype", default="auto", help="of the weights: auto (as the base model's; default), float32, …"
    )
    parser.add_argument("--base", metavar="MODEL", help="the model it was trained on, if that has moved")
    parser.add_argument("--vision-tower", metavar="CLIP", help="of LLaVA's LoRA folders (default: as they say)")


def main(args: argparse.Namespace) -> int:
    """Merges, and prints how many weights changed and which learned in full."""
    from vwlmm.weights.merge import merge

    for line in merge(args.adapter, args.out, dtype=args.dtype, base=args.base, vision_tower=args.vision_tower):
        print(line)
    print(f"The whole model is in {args.out}")
    return 0
