"""How much faster an epoch is when the frozen towers' features come from the cache: embedded towers, real pictures.

python bench/feature_cache.py --out bench/results.md
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine_description, write_section
from transformers import TrainerCallback, set_seed

import vwlmm.training
from vwlmm.config import read_recipe

RECIPES = {
    "ViT-S/14, 112 px": "train/freeze_align/embedded/vit_s14.yaml",
    "EfficientNet-Lite0, 224 px": "train/freeze_align/embedded/efficientnet_lite0.yaml",
}


class EpochTimes(TrainerCallback):
    """CPU seconds of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.began)


def train(recipe: str, rows: int, folder: Path, cache: Path | None) -> tuple[list[float], list[float], float]:
    """CPU seconds of two epochs, losses, and CPU seconds of the whole run."""
    overrides = [
        f"training.output_dir={folder}",
        f"data.max_rows={rows}",
        "data.validation_path=null",
        "training.max_steps=-1",
        "training.num_train_epochs=2",
        "training.per_device_train_batch_size=64",
        "training.logging_steps=1",
        "training.disable_tqdm=true",
        "data.cache_dtype=float32",
        f"data.cache={cache or 'null'}",
    ]
    times = EpochTimes()
    trainer = vwlmm.training.ObjectiveTrainer

    class Timed(trainer):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(times)

    vwlmm.training.ObjectiveTrainer = Timed  # type: ignore[misc]
    try:
        set_seed(0)
        began = time.process_time()
        vwlmm.training.run(read_recipe(recipe, overrides))
        whole = time.process_time() - began
    finally:
        vwlmm.training.ObjectiveTrainer = trainer  # type: ignore[misc]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return times.seconds, [line["loss"] for line in history if "loss" in line], whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="pairs an epoch (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        machine_description(torch.device("cpu")) + ".",
        "",
        "`python bench/feature_cache.py --out bench/results.md`",
        "",
        f"The embedded freeze-align recipes on {args.rows} pairs of real pictures, two epochs of batches of 64, fp32, "
        f"{args.threads} thread: CPU seconds of the process. Uncached, an epoch opens pictures and runs both towers.",
        "",
        "| towers | epoch 2 uncached, s | epoch 2 cached, s | faster | making the cache, s | MB | losses differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, recipe in RECIPES.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            plain, plain_losses, _ = train(recipe, args.rows, folder / "plain", None)
            _, _, first = train(recipe, args.rows, folder / "first", folder / "cache")
            cached, cached_losses, second = train(recipe, args.rows, folder / "second", folder / "cache")
            size = sum(file.stat().st_size for file in (folder / "cache").rglob("features.bin"))
        largest = max(abs(a - b) for a, b in zip(plain_losses, cached_losses, strict=True))
        lines.append(
            f"| {name}, MiniLM | {plain[1]:.1f} | {cached[1]:.2f} | **{plain[1] / cached[1]:.1f} ×** | "
            f"{first - second:.1f} | {size / 1e6:.0f} | {largest:.1e} |"
        )
    text = "\n".join(lines)
    print(text)
    if args.out:
        write_section(args.out, "Feature cache, cpu", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
