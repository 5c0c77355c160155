"""The toy experiment behind freeze-align's choice of encoders: the higher the CKA, the lower the loss a projector reaches.

`python -m vwlmm.demo.cka_toy` writes docs/freeze_align_toy.md and its plot. Paper: arXiv 2409.19425, latent model.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vwlmm.functional import linear_cka

EXAMPLES, LATENT, HIDDEN = 32, 16, 256  # vectors, their width, width of the random maps' hidden layer
STEPS, LEARNING_RATE, TEMPERATURE = 500, 0.01, 0.07
EXAMPLE = "example:\n  python -m vwlmm.demo.cka_toy --pairs 40 --seeds 5"


@dataclass
class ToyResult:
    """One random pair of "encoders" an entry: how alike they are and how far a linear layer brought them together."""

    cka: Tensor  # [pairs]
    loss: Tensor  # [pairs]; contrastive loss after training, nats

    @property
    def correlation(self) -> float:
        """Pearson's, of CKA and loss."""
        return float(torch.corrcoef(torch.stack([self.cka, self.loss]))[0, 1])


def run(num_pairs: int = 40, seed: int = 0, steps: int = STEPS) -> ToyResult:
    """Draws pairs of encoders of one latent and trains, for each, one linear layer with the contrastive loss.

    All pairs are trained at once, as a batch of independent problems: no pair's gradient touches another's layer.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = random_pairs(num_pairs, generator)
    cka = torch.stack([linear_cka(x, y) for x, y in zip(left, right, strict=True)])
    return ToyResult(cka, train_linear_layers(left, right, generator, steps))


def random_pairs(num_pairs: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two views of the same latents, each through a random network and with noise of a random size.

    A = T₁(Z) + w₁·U(0, 1), B = T₂(Z) + w₂·U(0, 1); Z uniform in [−1, 1], w uniform in [0, 1] for each pair and side.

    Returns:
        A and B, each `[pairs, examples, latent]`.
    """
    latents = torch.rand(num_pairs, EXAMPLES, LATENT, generator=generator) * 2 - 1
    return _view(latents, generator), _view(latents, generator)


def _view(latents: Tensor, generator: Generator) -> Tensor:
    """T(Z) + w·U(0, 1) with a random ReLU network T and a random w for each pair."""
    pairs = len(latents)
    hidden = torch.relu(_random_linear(latents, HIDDEN, generator))
    noise = torch.rand(latents.shape, generator=generator) * torch.rand(pairs, 1, 1, generator=generator)
    return _random_linear(hidden, LATENT, generator) + noise


def _random_linear(x: Tensor, width: int, generator: Generator) -> Tensor:
    """A linear layer a pair, with weights and biases from torch's default range ±1/√inputs."""
    pairs, _, inputs = x.shape
    weight, bias = ((torch.rand(pairs, rows, width, generator=generator) * 2 - 1) / inputs**0.5 for rows in (inputs, 1))
    return x @ weight + bias


def train_linear_layers(left: Tensor, right: Tensor, generator: Generator, steps: int = STEPS) -> Tensor:
    """The contrastive loss of each pair after SGD on a linear layer over its left side, `[pairs]`."""
    pairs, _, width = left.shape
    bound = width**-0.5
    weight = nn.Parameter((torch.rand(pairs, width, width, generator=generator) * 2 - 1) * bound)
    bias = nn.Parameter((torch.rand(pairs, 1, width, generator=generator) * 2 - 1) * bound)
    optimizer = torch.optim.SGD([weight, bias], lr=LEARNING_RATE)
    right = nn.functional.normalize(right, dim=-1)
    for _ in range(steps):
        optimizer.zero_grad()
        # The sum over pairs: each layer's gradient is that of its own loss.
        contrastive_losses(left @ weight + bias, right).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return contrastive_losses(left @ weight + bias, right)


def contrastive_losses(left: Tensor, right: Tensor) -> Tensor:
    """CLIP's symmetric loss of each pair, `[pairs]`; `right` is of norm 1 already."""
    scores = nn.functional.normalize(left, dim=-1) @ right.mT / TEMPERATURE  # [pairs, examples, examples]
    diagonal = scores.diagonal(dim1=1, dim2=2)
    rows, columns = scores.logsumexp(2) - diagonal, scores.logsumexp(1) - diagonal
    return (rows.mean(1) + columns.mean(1)) / 2


def draw(result: ToyResult, out: str | Path) -> None:
    """The pairs as points, CKA against reached loss, with the least-squares line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    axes.scatter(result.cka, result.loss, s=22, color="#2563eb", edgecolor="white", linewidth=0.5)
    ends = torch.stack([result.cka.min(), result.cka.max()])
    slope = torch.cov(torch.stack([result.cka, result.loss]))[0, 1] / result.cka.var()
    axes.plot(ends, result.loss.mean() + slope * (ends - result.cka.mean()), color="#94a3b8", linewidth=1)
    axes.set(
        xlabel="linear CKA of the two encoders",
        ylabel=f"contrastive loss after {STEPS} steps, nats",
        title=f"{len(result.cka)} random pairs, correlation {result.correlation:.2f}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def section(results: list[ToyResult], picture: str) -> str:
    """The experiment in Markdown: what was done, the plot of the first seed, the correlation of every seed."""
    first, pairs = results[0], len(results[0].cka)
    others = ", ".join(f"{result.correlation:.3f}" for result in results)
    return f"""# Does CKA say which encoders can be joined? The toy experiment

`python -m vwlmm.demo.cka_toy` repeats the latent model of arXiv 2409.19425 without any data: {pairs} random pairs of
"encoders" of the same {EXAMPLES} latent vectors of width {LATENT}, each a random two-layer ReLU network
(hidden width {HIDDEN}) with its own amount of noise. For each pair one linear layer is trained with the contrastive
loss ({STEPS} steps of SGD, rate {LEARNING_RATE}, temperature {TEMPERATURE}). No encoder is chosen by hand and no pair
is left out.

![CKA against the loss reached]({picture})

- CKA of the pairs: {first.cka.min():.2f} to {first.cka.max():.2f}. Loss reached: {first.loss.min():.2f} to \
{first.loss.max():.2f} nats; without any relation it would be ln {EXAMPLES} = {torch.tensor(EXAMPLES).log():.2f}.
- **Correlation of CKA and loss: {first.correlation:.3f}** (seed 0, the plot).
- {len(results)} seeds, {pairs} new pairs each: {others}.

The hidden width, the optimiser's rate and the number of steps in the latent model are not given in the paper; the
rate, steps and temperature are those of its experiment with real encoders.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment for a few seeds and writes the section and its plot."""
    parser = argparse.ArgumentParser(
        prog="python -m vwlmm.demo.cka_toy",
        description=main.__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="random pairs a seed (default: 40)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="repetitions (default: 5)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="folder to write to")
    options = parser.parse_args(arguments)
    results = [run(options.pairs, seed) for seed in range(options.seeds)]
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    draw(results[0], options.docs / "images/freeze_align_toy.png")
    (options.docs / "freeze_align_toy.md").write_text(section(results, "images/freeze_align_toy.png"), encoding="utf-8")
    for seed, result in enumerate(results):
        print(f"seed {seed}: correlation of CKA and loss {result.correlation:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
