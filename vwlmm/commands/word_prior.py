"""`vwlmm data word-prior RECIPE [--out FILE]`: how often each word stands in a recipe's training captions.

VLAP (arXiv 2404.09632) shares words out by their frequency: `objective.prior` names the file that this writes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: vwlmm data word-prior train/vlap/embedded.yaml"
    parser.add_argument("recipe", help="YAML file, whose data are counted with its model's tokenizer")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a value for this count")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: objective.prior)")


def main(args: argparse.Namespace) -> int:
    """Counts, writes, and prints the commonest words."""
    from vwlmm.config import read_recipe
    from vwlmm.objectives.word_prior import count_words, write_word_prior

    recipe = read_recipe(args.recipe, args.overrides)
    out = args.out or recipe.objective.get("prior")
    if out is None:
        raise ValueError(f"{args.recipe} has no objective.prior: say with --out where to write the counts.")
    rows, tokenizer = _rows(recipe)
    prior = count_words(_captions(rows), tokenizer)
    write_word_prior(prior, Path(out))
    commonest = prior.counts.topk(min(10, int((prior.counts > 0).sum())))
    words = ", ".join(
        f"{tokenizer.decode([token]).strip()} {count / prior.num_captions:.3f}"
        for token, count in zip(commonest.indices.tolist(), commonest.values.tolist(), strict=True)
    )
    print(
        f"{prior.num_captions} captions, {int((prior.counts > 0).sum())} different words; share of the captions that have it: "
        f"{words}"
    )
    print(f"wrote {out}")
    return 0


def _rows(recipe: Any) -> tuple[Any, Any]:
    from vwlmm.data.dataset import load_datasets
    from vwlmm.embedded import resolve
    from vwlmm.training import build_processor

    processor = build_processor(recipe.model)
    resolve(Path(recipe.data.path).parent)
    rows, _ = load_datasets(recipe.data, processor, seed=int(recipe.training.get("seed", 42)))
    return rows, processor.tokenizer


def _captions(rows: Any) -> Iterator[list[int]]:
    """The scored tokens of every row; a bad row stops the count or is left out, as the recipe's on_bad_row says."""
    import logging

    from vwlmm.data.bad_row import BadRow
    from vwlmm.data.encode import IGNORE

    left_out = 0
    for record in rows.raw_records():
        try:
            encoded = rows.encoder.encode(record)
        except BadRow as bad:
            if rows.encoder.config.on_bad_row == "stop":
                raise
            left_out += 1
            logging.getLogger(__name__).warning("left out: %s", bad.summary)
            continue
        yield [token for token in encoded.labels if token != IGNORE]
    if left_out:
        print(f"left out {left_out} bad rows")
