"""The whole training step of the demo model, with and without the visual term, and beside transformers' own LLaVA loss.

    python bench/training_step.py --out bench/results.md

Forward, backward and AdamW on a batch of easy-VQA, in fp32 and bf16 autocast; all learn but the vision tower.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import alternating_times, machine_description, peak_bytes, ratio, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vwlmm.config import read_recipe
from vwlmm.data.collator import Collator
from vwlmm.data.dataset import load_datasets
from vwlmm.embedded import prepare
from vwlmm.objectives import VisualWords, VisualWordsConfig
from vwlmm.trainable import set_trainable
from vwlmm.training import build_model

FORMS = {
    "transformers' LLaVA: language loss over all positions": None,
    "streamed language loss (vm: 0)": {"lm": 1.0, "vm": 0.0},
    "language and visual-word loss": {"lm": 1.0, "vm": 1.0},
}
ROWS = 16


def steps(device: torch.device, bf16: bool) -> dict[str, Callable[[], None]]:
    """One optimiser step in each form, on the same model and batch."""
    prepare("easy-vqa")
    recipe = read_recipe("train/demo/1_align.yaml", ["data.path=checkpoints/embedded/easy-vqa/questions_train.json"])
    torch.manual_seed(0)
    model, processor = build_model(recipe.model)
    set_trainable(model, {"multi_modal_projector": 1e-4, "language_model": 1e-5})
    model.to(device).train()
    rows, _ = load_datasets(recipe.data, processor, seed=0)
    batch = {k: v.to(device) for k, v in Collator(processor)([rows[i] for i in range(ROWS)]).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step(weights: dict[str, float] | None) -> None:
        objective = None if weights is None else VisualWords(VisualWordsConfig(weights=weights))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(**batch, objective=objective).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {name: (lambda weights=weights: step(weights)) for name, weights in FORMS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file whose section is replaced; printed when left out")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "DTYPE"), help=argparse.SUPPRESS)  # in a fresh process
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak:
        function = steps(device, args.peak[1] == "bf16")[args.peak[0]]
        function()  # the optimiser's state is there before the measured step
        print(json.dumps(peak_bytes(function, device)))
        return
    command = f"python bench/training_step.py --device {args.device} --rounds {args.rounds}"
    lines = [machine_description(device), "", f"Command: `{command}`.", ""]
    lines += ["| dtype | step | seconds | ratio | peak above the model and optimiser |", "|---|---|---|---|---|"]
    for dtype in ("fp32", "bf16"):
        seconds = alternating_times(steps(device, dtype == "bf16"), args.rounds, device)
        first = next(iter(FORMS))
        for name in FORMS:
            again = [sys.executable, __file__, "--device", args.device, "--peak", name, dtype]
            peak = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            middle = statistics.median(seconds[name])
            lines.append(
                f"| {dtype} | {name} | {middle:.2f} | {ratio(seconds, name, first):.2f} | {peak / 1e6:.0f} MB |"
            )
    lines += [
        "",
        f"{ROWS} rows of easy-VQA, 16 image tokens each, 256 patches scored against a visual word. Seconds: CPU time of",
    ]
    lines += [
        "the process (on a GPU device time), median; ratio: median over rounds, against the first form in the same round."
    ]
    if args.out:
        write_section(args.out, f"Training step of the demo model, {args.device}", "\n".join(lines))
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
