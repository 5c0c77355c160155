"""Memory and time of the streamed contrastive loss against the plain form, forward and backward.

python bench/contrastive.py --out bench/results.md
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import alternating_times, machine_description, peak_bytes, ratio, write_section
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vwlmm.functional import contrastive_loss

DIM = 1024


def plain(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """The formula as it is written: one `[pairs, pairs]` matrix."""
    scores = images @ texts.T / temperature
    own = torch.arange(len(images), device=images.device)
    return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2


FORMS: dict[str, Callable[..., Tensor]] = {"plain": plain, "streamed": contrastive_loss}


def step(form: str, pairs: int, device: torch.device) -> Callable[[], object]:
    """One forward and backward; the inputs are made here, outside of what is measured."""
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(pairs, DIM, device=device), dim=-1).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.07, device=device, requires_grad=True)

    def run() -> None:
        images.grad = texts.grad = temperature.grad = None
        FORMS[form](images, texts, temperature).backward()

    return run


def peak_in_fresh_process(form: str, pairs: int, device: str) -> int:
    """On CPU memory that was freed hides a rise, so that each figure has a process of its own."""
    arguments = [sys.executable, __file__, "--peak", form, "--pairs", str(pairs), "--device", device]
    return json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=FORMS, help="print one peak in bytes and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.peak:
        step(args.peak, 64, device)()  # the first call loads libraries, which is not the loss' memory
        print(peak_bytes(step(args.peak, args.pairs[0], device), device))
        return 0
    lines = [
        machine_description(device) + ".",
        "",
        f"`python bench/contrastive.py{'' if device.type == 'cpu' else f' --device {device}'} --out bench/results.md`",
        "",
        f"Forward and backward, {DIM} wide, fp32, images, texts and temperature learning. Peak: above the inputs, the "
        f"gradients ({DIM} × 2 numbers a pair) included. Time: median of the ratios within a round, {args.rounds} rounds.",
        "",
        "| pairs | plain, peak MB | streamed, peak MB | ratio | plain, s | streamed, s | ratio of times |",
        "|---|---|---|---|---|---|---|",
    ]
    for pairs in args.pairs:
        peaks = {form: peak_in_fresh_process(form, pairs, args.device) for form in FORMS}
        seconds = alternating_times({form: step(form, pairs, device) for form in FORMS}, args.rounds, device)
        middle = {form: sorted(seconds[form])[args.rounds // 2] for form in FORMS}
        lines.append(
            f"| {pairs:,} | {peaks['plain'] / 1e6:.0f} | {peaks['streamed'] / 1e6:.0f} | "
            f"{peaks['streamed'] / peaks['plain']:.3f} | {middle['plain']:.2f} | {middle['streamed']:.2f} | "
            f"{ratio(seconds, 'streamed', 'plain'):.2f} |"
        )
    text = "\n".join(lines)
    print(text)
    if args.out:
        write_section(args.out, f"Contrastive loss, {device.type}", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
