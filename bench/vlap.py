"""Time and peak memory of VLAP's assignment and loss beside the plain form, at batch 256 and OPT's vocabulary.

    python bench/vlap.py --out bench/results.md                    # on CPU
    python bench/vlap.py --out bench/results.md --device cuda

VLAP (arXiv 2404.09632); the bar is the issue's: measured against the form that holds every [batch, vocab] matrix.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import alternating_times, machine_description, peak_bytes, ratio, write_section
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vwlmm.functional import Assignment, assignment_loss, sinkhorn

SIZE = (256, 2048, 50_272)  # pairs, hidden and vocabulary of OPT-1.3B
SETTING = Assignment("sinkhorn_prior")
TEMPERATURE = 0.01


class Inputs:
    """Unit rows, a table of words and their frequencies."""

    def __init__(self, pairs: int, hidden: int, vocab: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.words = torch.randn(vocab, hidden, generator=generator).to(device)
        prior = 1.0 / (10 + torch.arange(vocab, dtype=torch.float32))
        self.prior = (prior / prior.sum()).to(device)
        # Near a word each, as trained rows are.
        places = torch.randint(vocab, (2, pairs), generator=generator).to(device)
        noise = torch.randn(2, pairs, hidden, generator=generator).to(device)
        self.image, self.text = F.normalize(self.words[places] + 0.5 * noise, dim=-1)
        self.image.requires_grad_()


def streamed(x: Inputs, both: bool) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        terms = assignment_loss(
            x.image,
            x.text,
            x.words,
            assignment=SETTING,
            temperature=TEMPERATURE,
            prior=x.prior,
            both_directions=both,
        )
        return 0.5 * (terms.image + terms.text)

    return loss


def plain(x: Inputs, both: bool) -> Callable[[], Tensor]:
    """Cosines, plans and predictions as whole matrices, the gradient by autograd."""

    def loss() -> Tensor:
        words = F.normalize(x.words, dim=-1)
        scores = [F.normalize(rows, dim=-1) @ words.t() for rows in (x.image, x.text)]

        def assigned(table: Tensor) -> Tensor:
            with torch.no_grad():
                return len(table) * sinkhorn(
                    table, epsilon=SETTING.epsilon, iterations=SETTING.iterations, col_marginal=x.prior
                )

        total = -(assigned(scores[1]) * (scores[0] / TEMPERATURE).log_softmax(1)).sum()
        if both:
            total = total - (assigned(scores[0]) * (scores[1] / TEMPERATURE).log_softmax(1)).sum()
        return 0.5 * total

    return loss


FORMS: dict[str, Callable[[Inputs], Callable[[], Tensor]]] = {
    "streamed": lambda x: streamed(x, True),
    "plain": lambda x: plain(x, True),
    "streamed, half that learns": lambda x: streamed(x, False),
    "plain, half that learns": lambda x: plain(x, False),
}


def step(x: Inputs, forward: Callable[[], Tensor]) -> Callable[[], None]:
    def once() -> None:
        x.image.grad = None
        forward().backward()

    return once


def memory_in_a_fresh_process(arguments: argparse.Namespace, form: str, threads: int) -> int:
    """Peak bytes where no earlier work has left freed memory behind."""
    request = json.dumps([form, threads])
    command = [sys.executable, __file__, "--device", arguments.device, "--one", request]
    command += ["--size", *map(str, arguments.size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_of(form: str, size: tuple[int, int, int], device: torch.device) -> int:
    """Above the inputs, of one forward and backward; small products first, so that threads and kernels are there."""
    step(small := Inputs(8, 64, 512, device), FORMS[form](small))()
    x = Inputs(*size, device)
    gc.collect()
    return peak_bytes(step(x, FORMS[form](x)), device)


def check(x: Inputs) -> float:
    """The largest relative difference of loss and gradient between the two forms."""
    found = []
    for form in ("streamed", "plain"):
        x.image.grad = None
        loss = FORMS[form](x)()
        loss.backward()
        found.append((loss.detach(), x.image.grad.clone()))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file whose section is replaced; without it, only printed")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, metavar=("PAIRS", "HIDDEN", "VOCAB"))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # [form, threads]: the fresh process
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        form, threads = json.loads(arguments.one)
        torch.set_num_threads(threads)
        print(memory_of(form, tuple(arguments.size), device))
        return
    x = Inputs(*arguments.size, device)
    machine = machine_description(device)
    difference = check(x)
    seconds = alternating_times({form: step(x, build(x)) for form, build in FORMS.items()}, arguments.rounds, device)
    del x
    pairs, hidden, vocab = arguments.size
    matrix = pairs * vocab * 4 / 1e6
    lines = [
        "| assignment and loss | seconds | × plain | peak MB | in [batch, vocab] matrices |",
        "|---|---|---|---|---|",
    ]
    for form in FORMS:
        peak = memory_in_a_fresh_process(arguments, form, arguments.threads) / 1e6
        base = form.replace("streamed", "plain")
        lines.append(
            f"| {form} | {statistics.median(seconds[form]):.3g} | {ratio(seconds, form, base):.2f} | {peak:.0f} | "
            f"{peak / matrix:.1f} |"
        )
    parts = [
        f"{machine}; float32; {arguments.threads} thread{'s' if arguments.threads > 1 else ''}."
        if device.type == "cpu"
        else f"{machine}; float32.",
        f"`python bench/vlap.py {' '.join(sys.argv[1:])}`",
        f"{pairs} pairs, hidden {hidden:,}, vocabulary {vocab:,}, mode {SETTING.mode}, {SETTING.iterations} iterations, ε "
        f"{SETTING.epsilon}; forward and backward; one [batch, vocab] matrix is {matrix:.0f} MB. Loss and gradient of the two "
        f"forms differ by {difference:.1e} relative. Medians of {arguments.rounds} alternating rounds; peak above the inputs, "
        + ("by the allocator." if device.type == "cuda" else "of a fresh process (VmHWM)."),
        "\n".join(lines),
    ]
    print("\n\n".join(parts))
    if arguments.out:
        write_section(arguments.out, f"VLAP assignment, {arguments.device}", "\n\n".join(parts))


if __name__ == "__main__":
    main()
