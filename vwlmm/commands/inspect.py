"""`vwlmm data inspect RECIPE [--rows N]`: what the model reads and which tokens and patches are scored."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: vwlmm data inspect train/demo/2_instruct.yaml --rows 3"
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a value for this look")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="how many rows (default 3)")


def main(args: argparse.Namespace) -> int:
    """Reads the recipe's data with the processor its model will have; no weights of an existing model are loaded."""
    from vwlmm.config import read_recipe
    from vwlmm.data.dataset import load_datasets
    from vwlmm.data.inspect import inspect_rows
    from vwlmm.data.pairs import inspect_pairs
    from vwlmm.data.pairs_config import PairDataConfig
    from vwlmm.training import build_processor

    recipe = read_recipe(args.recipe, args.overrides)
    processor = build_processor(recipe.model)
    if isinstance(recipe.data, PairDataConfig):
        print(inspect_pairs(recipe.data, processor, num_rows=args.rows))
        return 0
    rows, _ = load_datasets(recipe.data, processor, seed=int(recipe.training.get("seed", 42)))
    scored = bool(recipe.objective_object().config.weights.get("vm"))
    print(inspect_rows(rows, processor, num_rows=args.rows, visual_words=scored))
    return 0
