"""docs/freeze_align.md from the results of `vwlmm.demo.freeze_align`: means and spreads over seeds, whatever they are."""

import statistics
from datetime import date
from typing import Any

import torch

MODELS = {
    "before": "before training",
    "baseline": "VisionTextDualEncoderModel",
    "after": "freeze-align",
}
LONGER = """Longer training on so few pictures makes both overfit, and the smaller baseline less. EfficientNet-Lite0, seed 0, new
things (OpenMoji), picture → name R@1 and R@5 of freeze-align and of the baseline: 26.2 and 47.9 against 23.5 and 47.3 after
150 steps of 128 pairs, 25.0 and 44.8 against 28.0 and 46.6 after 300 with a warm-up of 30
(`python -m vwlmm.demo.freeze_align --seeds 0 --out OUT --page PAGE --set training.max_steps=150
training.per_device_train_batch_size=128`)."""
RETRIEVAL = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
COLUMNS = ["R@1", "R@5", "R@10"]


def page(results: dict[str, Any], splits: dict[str, str], seeds: list[int]) -> str:
    """The whole page.

    Args:
        results: `chance` by split, and `pairs` by name of the vision tower: CKA, steps, and scores by seed.
        splits: held-out sets, and what is new in them.
        seeds: in the order of the columns.
    """
    pairs = results["pairs"]
    one = next(iter(pairs.values()))
    lines = [
        "# freeze-align on real pictures",
        "",
        f"Written by `python -m vwlmm.demo.freeze_align` on {date.today().isoformat()} (torch {torch.__version__}, "
        f"{len(seeds)} seeds). Two frozen encoders that have never met are joined by projectors of a few million parameters, on "
        f"{one['pairs']:,} pictures with a name each (OpenMoji and Tux Paint's stamps), {one['steps']} steps of {one['batch']} "
        "pairs. The text encoder is all-MiniLM-L6-v2; there are two vision encoders, and the one with the higher CKA is what "
        "the paper's rule would choose. A fifth of all names is held out with every picture of them; Noto's drawings are a "
        "style that training never sees.",
        "",
        "| vision encoder | linear CKA with the text encoder | trainable parameters | training on cached features, CPU seconds |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(pairs.items(), key=lambda item: -item[1]["cka"]):
        taken = [found["seeds"][str(seed)]["train_seconds"] for seed in seeds]
        lines.append(f"| {name} | {found['cka']:.3f} | {found['trainable']:,} | {statistics.mean(taken):.0f} |")
    lines += ["", *_retrieval(results, splits, seeds), *_zero_shot(results, splits, seeds), *_reading(results, seeds)]
    return "\n".join([*lines, ""])


def _retrieval(results: dict[str, Any], splits: dict[str, str], seeds: list[int]) -> list[str]:
    head = [f"{way} {column}" for way in ("picture → name", "name → picture") for column in COLUMNS]
    lines = [
        "## Retrieval",
        "",
        "Share of queries whose right answer is among the nearest 1, 5 and 10 of the whole set, in percent, mean ± standard "
        "deviation over the seeds. Pictures that share a name are all right answers.",
        "",
    ]
    for split, what in splits.items():
        chance = results["chance"][split]
        lines += [f"### {what[0].upper()}{what[1:]}", "", f"| | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
        lines.append(f"| guessing | {' | '.join(f'{100 * chance[m]:.1f}' for m in RETRIEVAL)} |")
        for name, found in results["pairs"].items():
            for model, label in MODELS.items():
                cells = [_spread(_values(found, seeds, model, split, measure)) for measure in RETRIEVAL]
                lines.append(f"| {name}, {label} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _zero_shot(results: dict[str, Any], splits: dict[str, str], seeds: list[int]) -> list[str]:
    tasks = [
        (split, measure)
        for split in splits
        for measure in ("zero_shot_names", "zero_shot_categories")
        if measure in results["chance"][split]
    ]
    head = [f"{splits[split]}: {measure.removeprefix('zero_shot_')}" for split, measure in tasks]
    lines = [
        "## Zero-shot classification",
        "",
        "Top-1 in percent. The classes are the names of the set, or what the stamps' folders are called; the prompt is \"a "
        'picture of …", which no caption was.',
        "",
        f"| | {' | '.join(head)} |",
        "|---|" + "---|" * len(head),
    ]
    chance = results["chance"]
    lines.append(f"| guessing | {' | '.join(f'{100 * chance[split][m]:.1f}' for split, m in tasks)} |")
    commonest = [chance[split][m.replace("zero_shot", "commonest")] for split, m in tasks]
    lines.append(f"| always the commonest class | {' | '.join(f'{100 * value:.1f}' for value in commonest)} |")
    for name, found in results["pairs"].items():
        for model, label in MODELS.items():
            cells = [_spread(_values(found, seeds, model, split, measure)) for split, measure in tasks]
            lines.append(f"| {name}, {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def _reading(results: dict[str, Any], seeds: list[int]) -> list[str]:
    """What the differences are, paired by seed, in figures and not in words that could be wrong."""
    pairs = results["pairs"]
    split, measure = "heldout_concepts", "image_to_text_r5"
    lines = ["## Reading", "", "Picture → name R@5 on new things (OpenMoji), in percentage points, paired by seed:", ""]
    for name, found in pairs.items():
        for other in ("before", "baseline"):
            gains = _differences(found, found, seeds, "after", other, split, measure)
            lines.append(f"- {name}, freeze-align minus {MODELS[other]}: {_spread(gains, signed=True)}.")
    high, low = sorted(pairs, key=lambda name: -pairs[name]["cka"])[:2]
    gains = _differences(pairs[high], pairs[low], seeds, "after", "after", split, measure)
    agrees = "agrees with" if statistics.mean(gains) > 0 else "contradicts"
    return [
        *lines,
        f"- {high} (CKA {pairs[high]['cka']:.3f}) minus {low} (CKA {pairs[low]['cka']:.3f}): {_spread(gains, signed=True)}. "
        f"This {agrees} the paper's rule; two pairs are no correlation, for that see the toy experiment below.",
        "",
        "The projectors differ in size and rate of overfitting, the baseline has two matrices: equal steps are not equal "
        "capacity. Names of emoji share words (man, woman, hand, face), so a near name counts as wrong and R@5 says more than "
        "R@1. A few thousand drawings teach which things look alike, not a language: the paper uses 20 million pairs.",
        "",
        LONGER,
        "",
        "## CKA and the loss reached, over 40 random pairs",
        "",
        "![CKA against the loss reached](images/freeze_align_toy.png)",
        "",
        "`python -m vwlmm.demo.cka_toy` draws it and writes [how it is done, and other seeds](freeze_align_toy.md).",
    ]


def _values(found: dict[str, Any], seeds: list[int], model: str, split: str, measure: str) -> list[float]:
    return [found["seeds"][str(seed)][model][split][measure] for seed in seeds]


def _differences(
    one: dict[str, Any], two: dict[str, Any], seeds: list[int], model: str, other: str, split: str, measure: str
) -> list[float]:
    pairs = zip(_values(one, seeds, model, split, measure), _values(two, seeds, other, split, measure), strict=True)
    return [first - second for first, second in pairs]


def _spread(values: list[float], signed: bool = False) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):{'+' if signed else ''}.1f} ± {100 * deviation:.1f}"
