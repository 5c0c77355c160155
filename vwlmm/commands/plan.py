"""`vwlmm plan RECIPE [--gpus N --gpu-memory GIB]`: parameters, tokens, steps and memory, before anything is loaded."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: vwlmm plan train/visual_words/vicuna_7b/2_instruct.yaml --gpus 8 --gpu-memory 80"
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a value for this look")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many share the work (default 1)")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of one GPU: also says what fits")
    parser.add_argument("--rows", type=int, default=200, metavar="N", help="rows that are encoded (default 200)")


def main(args: argparse.Namespace) -> int:
    """Prints the plan."""
    from vwlmm.config import read_recipe
    from vwlmm.plan import plan

    for name, value in (("--gpus", args.gpus), ("--rows", args.rows)):
        if value < 1:
            raise ValueError(f"{name} is at least 1: got {value}.")
    recipe = read_recipe(args.recipe, args.overrides)
    print(plan(recipe, num_gpus=args.gpus, gpu_memory=args.gpu_memory, sample=args.rows))
    return 0
