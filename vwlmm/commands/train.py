"""`vwlmm train RECIPE [section.key=value …]`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: vwlmm train train/demo/1_align.yaml training.max_steps=10"
    parser.add_argument("recipe", help="YAML file; train/forkme.yaml is the one to copy")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a value for this run")


def main(args: argparse.Namespace) -> int:
    """Trains, and prints where the model is and how to use it."""
    from vwlmm.config import read_recipe
    from vwlmm.data.pairs_config import PairDataConfig
    from vwlmm.training import run

    recipe = read_recipe(args.recipe, args.overrides)
    folder = run(recipe)
    if isinstance(recipe.data, PairDataConfig):
        print(
            f"The pair is in {folder}, its scores in {folder}/result.json: DualEncoderModel.from_pretrained('{folder}')."
        )
        return 0
    print(f"The model is in {folder}. Try: vwlmm chat {folder} --image F, or vwlmm words {folder} F --out words.png")
    return 0
