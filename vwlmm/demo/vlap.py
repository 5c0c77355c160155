"""Assignment and captioning against captioning alone, three seeds, on emoji no run has seen; and arithmetic with pictures.

python -m vwlmm.demo.vlap            # writes the measured part of docs/vlap.md; cut short, it goes on where it was
"""

import argparse
import json
import logging
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

from vwlmm.config import Recipe, read_recipe
from vwlmm.demo.run import has_fast_bf16
from vwlmm.embedded import prepare
from vwlmm.loading import load_model
from vwlmm.training import RESULT_FILE, is_finished, run
from vwlmm.vlap.arithmetic import rank_of, read_triples, solve, write_caption
from vwlmm.vlap.evaluate import caption_scores, evaluate
from vwlmm.vlap.likelihood import caption_likelihoods, likelihood_retrieval
from vwlmm.vlap.word_space import WordSpace

RECIPE = Path("train/vlap/embedded.yaml")
# Sums of pictures by what their list is called; each list was committed before any of its sums was tried.
LISTS = {
    "first list": Path(__file__).with_name("emoji_arithmetic.jsonl"),
    "second list": Path(__file__).with_name("emoji_arithmetic_second.jsonl"),
}
PAGE = Path("docs/vlap.md")
WITH_ASSIGNMENT = "assignment and captioning"
ARMS = {WITH_ASSIGNMENT: [], "captioning alone": ["objective.weights.assignment=0"]}
NUM_CAPTIONS = 100  # of the 300 held-out pictures
NUM_RANKED = 60  # of them are ranked by likelihood, which takes a pass of the LLM for every pair
TOP = 10  # nearest words that count as a hit
METRICS = {
    "image_to_text_r1": "picture → name R@1",
    "image_to_text_r5": "R@5",
    "text_to_image_r1": "name → picture R@1",
    "text_to_image_r5": "R@5",
    "likelihood_image_to_text_r1": "by likelihood: picture → name R@1",
    "likelihood_text_to_image_r1": "name → picture R@1",
    "word_f1": "caption, word F1",
    "word_f1_exchanged": "the same, captions of other pictures",
    "exact": "caption, exact",
    "eval_lm_loss": "true caption, nats a token",
}
Sums = dict[str, list[dict[str, Any]]]  # by list, a row a sum
BEGIN, END = "<!-- begin: measured -->", "<!-- end: measured -->"


def main(arguments: list[str] | None = None) -> int:
    """Trains and scores what is not done yet, and writes the tables whatever the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/vlap/demo"), help="folder (default %(default)s)")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="page whose measured part is replaced (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe of every run")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    data = prepare("emoji")
    count_words()
    scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    sums: list[Sums] = []
    for seed in args.seeds:
        for arm in ARMS:
            folder = args.out / f"{arm.replace(' ', '_')}_{seed}"
            recipe = arm_recipe(arm, seed, folder, data, args.overrides)
            print(f"\nseed {seed}: {arm}", flush=True)
            if not is_finished(recipe):
                run(recipe)
            scores[arm].append(score(folder, recipe, data))
            if arm == WITH_ASSIGNMENT:
                sums.append(arithmetic(folder, data))
            write_measured(args.page, measured(scores, sums, recipe, args.seeds))
    print(f"\nWritten: {args.page}")
    return 0


def count_words() -> None:
    """The prior of the recipe, if it is not there yet."""
    from vwlmm.cli import main as command

    prior = Path(read_recipe(RECIPE).objective["prior"])
    if not prior.is_file() and command(["data", "word-prior", str(RECIPE)]):
        raise ValueError(f"The words of {RECIPE} could not be counted.")


def arm_recipe(arm: str, seed: int, folder: Path, data: Path, overrides: list[str]) -> Recipe:
    """The embedded recipe of one arm and seed, with the held-out captions as its validation rows."""
    changes = [
        *ARMS[arm],
        f"training.seed={seed}",
        f"training.output_dir={folder}",
        'training.save_strategy="no"',
        f"data.validation_path={data / 'captions_test.json'}",
        "training.per_device_eval_batch_size=50",
        *overrides,
    ]
    recipe = read_recipe(RECIPE, changes)
    recipe.training["bf16"] = bool(recipe.training["bf16"]) and has_fast_bf16()
    return recipe


def score(folder: Path, recipe: Recipe, data: Path) -> dict[str, Any]:
    """Scores of a finished run on the held-out pictures; kept beside it, and read again."""
    pairs = json.loads((data / "captions_test.json").read_text(encoding="utf-8"))
    kept, ranked = folder / "scores.json", folder / "ranked.json"
    if not (kept.is_file() and ranked.is_file()):
        model, processor = load_model(folder)
    if not kept.is_file():
        kinds = {"captions": recipe.objective["captions"], "num_captions": NUM_CAPTIONS}
        scores = evaluate(model, processor, pairs, data / "images", **kinds)
        kept.write_text(json.dumps(scores, indent=1, ensure_ascii=False), encoding="utf-8")
    if not ranked.is_file():
        names = [pair["caption"] for pair in pairs[:NUM_RANKED]]
        files = [data / "images" / pair["image"] for pair in pairs[:NUM_RANKED]]
        scores = likelihood_retrieval(caption_likelihoods(model, processor, files, names), names)
        ranked.write_text(json.dumps({f"likelihood_{name}": value for name, value in scores.items()}, indent=1))
    result = json.loads((folder / RESULT_FILE).read_text())
    scores = json.loads(kept.read_text(encoding="utf-8")) | json.loads(ranked.read_text())
    scores["word_f1_exchanged"] = exchanged(scores["samples"])
    return scores | {name: result[name] for name in ("eval_lm_loss", "train_runtime")}


def exchanged(samples: list[dict[str, str]]) -> float:
    """Word F1 of every caption that was written with the true caption of every other picture: what not looking gives."""
    count, total = len(samples), 0.0
    for shift in range(1, count):
        others = [samples[(number + shift) % count]["caption"] for number in range(count)]
        total += caption_scores([sample["written"] for sample in samples], others)["word_f1"]
    return total / max(1, count - 1)


def arithmetic(folder: Path, data: Path) -> Sums:
    """Every list's sums: rank of the expected word for the sum and for its first picture alone, words and caption."""
    kept = folder / "arithmetic.json"
    if not kept.is_file():
        model, processor = load_model(folder)
        space = WordSpace(model, processor)
        results: Sums = {name: [] for name in LISTS}
        for name, file in LISTS.items():
            for triple in read_triples(file, data / "images"):
                features = solve(space, triple.plus, triple.minus)
                direction = space.point(features.mean(0))
                plain = space.point(solve(space, triple.plus[:1]).mean(0))
                results[name].append(
                    {
                        "note": triple.note,
                        "expected": triple.expected[0],
                        "rank": rank_of(space, direction, triple.expected),
                        "rank_of_first_picture": rank_of(space, plain, triple.expected),
                        "words": [word for word, _ in space.nearest(direction[None], TOP)[0]],
                        "caption": write_caption(model, processor, features, max_new_tokens=10),
                    }
                )
        kept.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def measured(scores: dict[str, list[dict[str, Any]]], sums: list[Sums], recipe: Recipe, seeds: list[int]) -> str:
    """The measured part of the page, in Markdown."""
    done = min(len(runs) for runs in scores.values())
    first = next(iter(scores.values()))[0]
    steps, batch = recipe.training["max_steps"], recipe.training["per_device_train_batch_size"]
    minutes = statistics.mean(run["train_runtime"] for runs in scores.values() for run in runs) / 60
    lines = [
        f"`python -m vwlmm.demo.vlap`, {date.today().isoformat()}; {done} of {len(seeds)} seeds done; {steps} steps of "
        f"{batch} pairs, {minutes:.1f} minutes a run on one shared core. {first['num_pairs']} held-out emoji, the first "
        f"{first['num_captions']} captioned. Mean, and in brackets lowest to highest over the seeds. Chance is "
        f"{1 / first['num_pairs']:.3f} at R@1 and {5 / first['num_pairs']:.3f} at R@5; by likelihood the first {NUM_RANKED} are "
        f"ranked, and chance is {1 / NUM_RANKED:.3f}.",
        "",
        "| | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    lines += [
        f"| {arm} | " + " | ".join(_spread(runs, name) for name in METRICS) + " |"
        for arm, runs in scores.items()
        if runs
    ]
    lines += [
        "",
        "First captions of seed 0:",
        "",
        "| picture | " + " | ".join(scores) + " |",
        "|---|" + "---|" * len(scores),
    ]
    for number in range(8):
        samples = [runs[0]["samples"][number] for runs in scores.values() if runs]
        lines.append(
            f"| {samples[0]['caption']} | " + " | ".join(_cell(sample["written"]) for sample in samples) + " |"
        )
    return "\n".join([*lines, "", *_arithmetic_section(sums, seeds)])


def _arithmetic_section(sums: list[Sums], seeds: list[int]) -> list[str]:
    lines = [
        "### Arithmetic",
        "",
        f"Sums whose expected word is among the {TOP} nearest, assignment and captioning, seeds "
        f"{', '.join(map(str, seeds[: len(sums)]))}; in brackets those for which the first picture alone would not have done. "
        "Both lists were committed before any of their sums was tried (`vwlmm/demo/emoji_arithmetic*.jsonl`).",
        "",
        "| | " + " | ".join(f"seed {seed}" for seed in seeds[: len(sums)]) + " |",
        "|---|" + "---|" * len(sums),
    ]
    for name in LISTS:
        cells = []
        for of_seed in sums:
            hits = [row for row in of_seed[name] if _is_hit(row["rank"])]
            brought = sum(not _is_hit(row["rank_of_first_picture"]) for row in hits)
            cells.append(f"{len(hits)} of {len(of_seed[name])} ({brought})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in LISTS:
        lines += [
            "",
            f"The {name}, seed {seeds[0]}; “alone” is the word's rank for the first picture by itself, nothing added or "
            "taken off:",
            "",
            "| sum | expected | rank | alone | nearest words | caption |",
            "|---|---|---|---|---|---|",
        ]
        for row in sums[0][name] if sums else []:
            rank, alone = row["rank"] or "> 1000", row["rank_of_first_picture"] or "> 1000"
            cells = [row["note"], row["expected"], str(rank), str(alone), ", ".join(row["words"][:5]), row["caption"]]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def _is_hit(rank: int | None) -> bool:
    return rank is not None and rank <= TOP


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "–"


def _spread(runs: list[dict[str, Any]], name: str) -> str:
    values = [float(run[name]) for run in runs]
    digits = 2 if name == "eval_lm_loss" else 3
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def write_measured(page: Path, markdown: str) -> None:
    """Replaces what stands between the page's two marks, or appends both.

    Raises:
        ValueError: the first mark is there and the second is not.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else "# VLAP\n\n## Measured\n\n"
    section = f"{BEGIN}\n{markdown}\n{END}"
    if BEGIN in text:
        head, rest = text.split(BEGIN, 1)
        if END not in rest:
            raise ValueError(f"{page} has the mark {BEGIN} and no {END} after it: put that back.")
        text = head + section + rest.split(END, 1)[1]
    else:
        text = text.rstrip("\n") + f"\n\n{section}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
