"""Time and peak memory of the streamed losses beside their plain forms, forward and backward.

    python bench/visual_word_loss.py --out bench/results.md                    # on CPU
    python bench/visual_word_loss.py --out bench/results.md --device cuda --dtype bfloat16

VW-LMM (arXiv 2403.07720) section 3; the bars are the design's.
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
from vwlmm.functional import language_model_loss, pseudo_image_features, visual_word_loss

# (image rows, hidden, vocab): the bar, a small head, SmolLM2-135M's width and words over two images of 576 patches.
SIZES = ((1152, 1024, 32_000), (256, 256, 8_000), (1152, 576, 49_152))
# Of a sequence in which 1,152 positions show an image; the rest is text. The released code runs both heads over all.
POSITIONS_PER_IMAGE_ROW = 2048 / 1152


class Inputs:
    """Random rows and heads, all learning."""

    def __init__(self, rows: int, hidden: int, vocab: int, device: torch.device, dtype: torch.dtype) -> None:
        self.generator, self.device, self.dtype = torch.Generator().manual_seed(0), device, dtype
        self.leaves: list[Tensor] = []
        self.num_rows, self.width = rows, hidden
        # Row i of hidden predicts row i of features; logits have a spread of about 1.
        self.hidden, self.features = self.leaf(rows), self.leaf(rows)
        self.lm_weight, self.vm_weight, self.words = (self.leaf(vocab, hidden**-0.5) for _ in range(3))
        self.labels = torch.randint(vocab, (rows,), generator=self.generator).to(device)

    def leaf(self, count: int, scale: float = 1.0) -> Tensor:
        """`[count, hidden]`, learning."""
        values = torch.randn(count, self.width, generator=self.generator).mul_(scale)
        self.leaves.append(values.to(self.device, self.dtype).requires_grad_())
        return self.leaves[-1]


def streamed(x: Inputs) -> Callable[[], Tensor]:
    return lambda: visual_word_loss(x.hidden, x.lm_weight, x.features, x.vm_weight, detach_target=False)


def plain(x: Inputs) -> Callable[[], Tensor]:
    """The released formula, over the image rows only."""

    def loss() -> Tensor:
        log_p = F.log_softmax(F.linear(x.hidden, x.lm_weight), -1, dtype=torch.float32)
        q = F.softmax(F.linear(x.features, x.vm_weight), -1, dtype=torch.float32)
        return F.kl_div(log_p, q, reduction="batchmean")

    return loss


def plain_logs(x: Inputs) -> Callable[[], Tensor]:
    """The same with the target in logarithms: one matrix less, and exact where a word's probability is 0."""

    def loss() -> Tensor:
        log_p = F.log_softmax(F.linear(x.hidden, x.lm_weight), -1, dtype=torch.float32)
        log_q = F.log_softmax(F.linear(x.features, x.vm_weight), -1, dtype=torch.float32)
        return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")

    return loss


def released(x: Inputs) -> Callable[[], Tensor]:
    """Both heads over every position, the image rows gathered afterwards."""
    positions = round(x.num_rows * POSITIONS_PER_IMAGE_ROW)
    hidden, features = x.leaf(positions), x.leaf(positions)
    is_image = torch.arange(positions, device=x.device) < x.num_rows

    def loss() -> Tensor:
        logits, word_logits = F.linear(hidden, x.lm_weight), F.linear(features, x.vm_weight)
        log_p = F.log_softmax(logits[is_image], -1, dtype=torch.float32)
        q = F.softmax(word_logits[is_image], -1, dtype=torch.float32)
        return F.kl_div(log_p, q, reduction="batchmean")

    return loss


def bare_matmuls(x: Inputs) -> Callable[[], None]:
    """The six products of the loss and nothing else: the floor."""

    @torch.no_grad()
    def products() -> None:
        for rows, weight in ((x.hidden, x.lm_weight), (x.features, x.vm_weight)):
            logits = rows @ weight.T
            _ = logits @ weight
            _ = logits.T @ rows

    return products


def streamed_text(x: Inputs) -> Callable[[], Tensor]:
    return lambda: language_model_loss(x.hidden, x.lm_weight, x.labels)


def torch_text(x: Inputs) -> Callable[[], Tensor]:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: F.linear_cross_entropy(x.hidden, x.lm_weight, x.labels, options=options)


def plain_text(x: Inputs) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(F.linear(x.hidden, x.lm_weight).float(), x.labels)


def streamed_mixture(x: Inputs) -> Callable[[], Tensor]:
    return lambda: pseudo_image_features(x.features, x.vm_weight, x.words).square().sum()


def plain_mixture(x: Inputs) -> Callable[[], Tensor]:
    def mixture() -> Tensor:
        words = F.softmax(F.linear(x.features, x.vm_weight), -1, dtype=torch.float32).to(x.words.dtype)
        return (words @ x.words).square().sum()

    return mixture


# What is compared: title → {form: builder}. The first form is ours, the second its plain form.
GROUPS: dict[str, dict[str, Callable[[Inputs], Callable]]] = {
    "visual_word_loss, both sides learn": {
        "ours": streamed,
        "plain, image rows only": plain,
        "plain, image rows only, log target": plain_logs,
        "plain, all positions (released)": released,
        "six bare matmuls": bare_matmuls,
    },
    "language_model_loss": {
        "ours": streamed_text,
        "plain": plain_text,
        "torch linear_cross_entropy": torch_text,
    },
    "pseudo_image_features": {"ours": streamed_mixture, "plain": plain_mixture},
}
if not hasattr(F, "linear_cross_entropy"):  # torch < 2.13
    del GROUPS["language_model_loss"]["torch linear_cross_entropy"]


def step(x: Inputs, forward: Callable) -> Callable[[], None]:
    """Forward and backward, from no gradients."""

    def run() -> None:
        loss = forward()
        if loss is not None:
            loss.backward()
        for leaf in x.leaves:
            leaf.grad = None

    return run


def memory_of(group: str, form: str, size: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> int:
    """Peak bytes of one forward and backward beyond inputs and parameter gradients, in this process."""
    tiny = Inputs(8, 8, 32, device, dtype)
    step(tiny, GROUPS[group][form](tiny))()  # loads what is loaded once
    x = Inputs(*size, device, dtype)
    weights = (x.lm_weight, x.vm_weight, x.words)
    forward = GROUPS[group][form](x)
    gc.collect()
    peak = peak_bytes(lambda: forward().backward(), device)
    return peak - sum(weight.grad.nbytes for weight in weights if weight.grad is not None)


def memory_in_a_fresh_process(arguments: argparse.Namespace, group: str, form: str, size: tuple, threads: int) -> int:
    """`memory_of`, where no earlier work has left freed memory behind."""
    request = json.dumps([group, form, size, threads])
    command = [sys.executable, __file__, "--device", arguments.device, "--dtype", arguments.dtype, "--one", request]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(arguments: argparse.Namespace, group: str, size: tuple, threads: int) -> str:
    """One group at one size: a Markdown table."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    torch.set_num_threads(threads)
    x = Inputs(*size, device, dtype)
    forms = {form: build(x) for form, build in GROUPS[group].items()}
    seconds = alternating_times({form: step(x, forward) for form, forward in forms.items()}, arguments.rounds, device)
    ours, base, *others = forms
    lines = [f"| {group} | seconds | × {base} | peak MB |", "|---|---|---|---|"]
    for form in forms:
        is_bare = form == "six bare matmuls"
        peak = "–" if is_bare else f"{memory_in_a_fresh_process(arguments, group, form, size, threads) / 1e6:.0f}"
        lines.append(f"| {form} | {statistics.median(seconds[form]):.4g} | {ratio(seconds, form, base):.2f} | {peak} |")
    if "six bare matmuls" in others:
        lines.append(f"\nOurs over its six bare matmuls: {ratio(seconds, ours, 'six bare matmuls'):.2f}.")
    print("\n".join(lines), flush=True)
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file whose section is replaced; without it, only printed")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; medians are reported")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="CPU threads, one table each")
    parser.add_argument(
        "--size", type=int, nargs=3, action="append", metavar=("ROWS", "HIDDEN", "VOCAB"), help="instead of the default"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # [group, form, size, threads]: the fresh process
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    if arguments.one:
        group, form, size, threads = json.loads(arguments.one)
        torch.set_num_threads(threads)
        print(memory_of(group, form, tuple(size), device, getattr(torch, arguments.dtype)))
        return
    sizes = [tuple(size) for size in arguments.size or SIZES]
    parts = [
        f"{machine_description(device)}; {arguments.dtype}.",
        f"`python bench/visual_word_loss.py {' '.join(sys.argv[1:])}`",
        "Forward and backward, every input learning. Seconds: "
        + ("device time" if device.type == "cuda" else "CPU time of the process, all threads")
        + f", median of {arguments.rounds} alternating rounds; × is the median of the ratios within a round. Peak: "
        + ("allocator" if device.type == "cuda" else "resident memory (VmHWM) of a fresh process")
        + ", above inputs and parameter gradients. The released form runs both heads over all positions, "
        "of which 1,152 in 2,048 are image rows.",
    ]
    for rows, hidden, vocab in sizes:
        for threads in arguments.threads if device.type == "cpu" else [torch.get_num_threads()]:
            where = f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else ""
            parts.append(f"### {rows:,} rows, hidden {hidden:,}, vocab {vocab:,}{where}")
            print(parts[-1], flush=True)
            parts += [table(arguments, group, (rows, hidden, vocab), threads) for group in GROUPS]
            if arguments.out:  # after each, so that a stopped run leaves what it has
                title = f"Streamed losses, {arguments.device} {arguments.dtype}"
                write_section(arguments.out, title, "\n\n".join(parts))


if __name__ == "__main__":
    main()
