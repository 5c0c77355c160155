"""`vwlmm train RECIPE [section.key=value …]`, on one process or under torchrun, deepspeed or accelerate."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: vwlmm train train/demo/1_align.yaml training.max_steps=10"
    parser.add_argument("recipe", help="YAML file; train/forkme.yaml is the one to copy")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a value for this run")
    parser.add_argument(
        "--check",
        action="store_true",
        help="take real steps with the longest rows on every rank, print memory, speed and the time of the run, write nothing",
    )


def main(args: argparse.Namespace) -> int:
    """Trains, and prints where the model is and how to use it."""
    from vwlmm.config import read_recipe
    from vwlmm.data.pairs_config import PairDataConfig
    from vwlmm.distributed import rank
    from vwlmm.stopping import RunStopped
    from vwlmm.training import run

    recipe = read_recipe(args.recipe, args.overrides)
    if args.check:
        from vwlmm.preflight import check

        report = check(recipe)
        if rank() == 0:
            print(report)
        return 0
    try:
        folder = run(recipe)
    except RunStopped as stopped:
        if rank() == 0:
            print(
                f"Stopped by a signal after step {stopped.step} of {stopped.max_steps}, checkpoint written. "
                "The same command goes on from there."
            )
        return 0
    if rank() != 0:
        return 0
    if isinstance(recipe.data, PairDataConfig):
        print(
            f"The pair is in {folder}, its scores in {folder}/result.json: DualEncoderModel.from_pretrained('{folder}')."
        )
        return 0
    print(f"The model is in {folder}. Try: vwlmm chat {folder} --image F, or vwlmm words {folder} F --out words.png")
    return 0
