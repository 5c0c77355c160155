"""The demo: four stages of visual-word training on real pictures, answers to unseen ones, and a report to read.

python -m vwlmm.demo.run            # make demo does this after installing; cut short, it goes on where it was
"""

import argparse
import dataclasses
import json
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vwlmm.config import read_recipe
from vwlmm.demo.easy_vqa import accuracy, blind_baseline, sample_questions
from vwlmm.demo.evaluate import answer_questions
from vwlmm.demo.report import write_report
from vwlmm.embedded import prepare, resolve
from vwlmm.loading import load_model
from vwlmm.training import RESULT_FILE, is_finished, run
from vwlmm.visualize import draw_png, visual_word_map

STAGES = {
    "1_align": "The projector learns to put pictures among the words; all else is frozen.",
    "2_instruct": "Projector and language model learn to answer questions.",
    "3_vm_head": "The VM head learns to name what the model predicts at each patch.",
    "4_visual_words": "Projector and language model learn the answer and the next visual word together.",
}
RECIPES = Path("train/demo")
NUM_QUESTIONS = {"real": 1000, "blank": 300, "shuffled": 300}
SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Runs whatever of the demo is not done yet and writes `report.html`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/demo"), help="folder (default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change all four recipes")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    began = time.perf_counter()
    timing: dict[str, float] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, Any] = {}
    data = prepare("easy-vqa")
    recipes = {stage: stage_recipe(stage, args.out, args.overrides) for stage in STAGES}
    for number, (stage, recipe) in enumerate(recipes.items(), start=1):
        print(f"\n[{number}/4] {stage}: {STAGES[stage]}", flush=True)
        if not is_finished(recipe):
            run(recipe)
        folder = Path(recipe.training["output_dir"])
        curves[stage] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        timing[stage] = json.loads((folder / RESULT_FILE).read_text())["train_runtime"]
        settings[stage] = recipe.to_dict()
    print("\nAnswering questions about pictures that no stage has seen.", flush=True)
    started = time.perf_counter()
    scores, answers = evaluate(args.out / "4_visual_words", data, args.out)
    timing["answering"] = time.perf_counter() - started
    maps = draw_maps(args.out, data, sorted({answer["image"] for answer in answers})[:3])
    timing["this run, in all"] = time.perf_counter() - began
    report = write_report(
        args.out / "report.html",
        curves=curves,
        scores=scores,
        samples=twelve(answers, data / "images"),
        word_maps=maps,
        settings=settings,
        timing=timing,
        stages=STAGES,
        command="make demo",
    )
    _print_scores(scores, report, args.out)
    return 0


def stage_recipe(stage: str, out: Path, overrides: list[str]) -> Any:
    """The recipe of one stage, its folders under `out`; without fast bf16 on this CPU it trains in fp32."""
    recipe = read_recipe(RECIPES / f"{stage}.yaml", overrides)
    recipe.training["output_dir"] = str(out / stage)
    recipe.training["bf16"] = bool(recipe.training["bf16"]) and has_fast_bf16()
    if recipe.model.init_from:
        recipe.model = dataclasses.replace(recipe.model, init_from=str(out / Path(recipe.model.init_from).name))
    return recipe


def has_fast_bf16() -> bool:
    """True where bf16 matrix products are faster than fp32: a GPU, or a CPU with instructions for them."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capability = torch.cpu.get_capabilities()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16"))


def evaluate(
    model_folder: Path, data: Path, out: Path, num_questions: dict[str, int] | None = None, seed: int = SEED
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy with the picture, a grey one and another's, beside the commonest answer; and the answers with the picture.

    Answers are kept in `out` beside the model, and read again when the same questions are asked of the same model.
    """
    test = json.loads((data / "questions_test.json").read_text())
    train = json.loads((data / "questions_train.json").read_text())
    kept = out / "answers.json"
    if not kept.is_file() or kept.stat().st_mtime < (model_folder / RESULT_FILE).stat().st_mtime:
        model, processor = load_model(model_folder)
        autocast = torch.bfloat16 if has_fast_bf16() else None
        numbers = num_questions or NUM_QUESTIONS
        asked = sample_questions(test, numbers["real"], seed)
        answers = {
            picture: answer_questions(
                model,
                processor,
                sample_questions(asked, number, seed),
                images=data / "images",
                batch_size=32,
                picture=picture,  # type: ignore[arg-type]
                seed=seed,
                autocast=autocast,
            )
            for picture, number in numbers.items()
        }
        kept.write_text(json.dumps(answers))
    answers = json.loads(kept.read_text())
    scores = {picture: accuracy(rows) for picture, rows in answers.items()}
    scores["blind"] = blind_baseline(train, test)
    return scores, answers["real"]


def twelve(answers: list[dict[str, Any]], images: Path) -> list[dict[str, Any]]:
    """Twelve answers of different kinds, drawn by a fixed seed and not by what was answered."""
    drawn = random.Random(SEED).sample(answers, 12)
    return [{**answer, "image": images / answer["image"]} for answer in drawn]


def draw_maps(out: Path, data: Path, images: list[str]) -> dict[str, list[Path]]:
    """Visual-word maps of the same pictures before stage 3, with a random VM head, and after stage 4."""
    maps: dict[str, list[Path]] = {}
    for name, stage in (("before", "2_instruct"), ("after", "4_visual_words")):
        model, processor = load_model(out / stage)
        maps[name] = []
        for number, image in enumerate(images):
            target = out / f"words_{name}_{number}.png"
            draw_png(visual_word_map(model, processor, data / "images" / image), target)
            maps[name].append(target)
    return maps


def _print_scores(scores: dict[str, Any], report: Path, out: Path) -> None:
    print(f"\n{'':28}{'all':>8}{'yes/no':>10}{'colour and shape':>20}")
    names = {
        "real": "the picture",
        "blank": "a grey picture",
        "shuffled": "another's picture",
        "blind": "without looking",
    }
    for picture, name in names.items():
        score = scores[picture]
        row = [f"{score[kind]['accuracy']:.3f}" for kind in ("overall", "yes/no", "colour and shape")]
        print(f"{name:28}{row[0]:>8}{row[1]:>10}{row[2]:>20}")
    example = resolve("checkpoints/embedded/easy-vqa")
    print(f"\nThe report: {report}")
    print(f"Ask it yourself: vwlmm chat {out / '4_visual_words'} --image {example}/images/test/0.png")


if __name__ == "__main__":
    sys.exit(main())
