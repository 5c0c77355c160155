"""Options that several commands share: on which device a model runs, and in which precision."""

import argparse

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`; None means the fastest there is."""
    parser.add_argument("--device", help="cpu, cuda, mps, … (default: cuda when there is one, else cpu)")


def add_dtype(parser: argparse.ArgumentParser, default: str | None = "auto") -> None:
    """`--dtype` of the weights; a default of None leaves the choice to what else is given (a suite)."""
    help_text = "of the weights (default: auto, as saved)"
    parser.add_argument("--dtype", default=default, choices=DTYPES, help=help_text)
