"""The toy experiment behind freeze-align's choice of encoders: the higher the CKA, the lower the loss a projector reaches.

`python -m vwlmm.demo.cka_toy` writes docs/freeze_align_toy.md and its plot. Paper: arXiv 2409.19425, latent model.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vwlmm.functional import linear_cka

BATCH, LATENT, HIDDEN = 32, 16, 256  # vectors an instance, their width, width of the random maps' hidden layer
INSTANCES = 1000
STEPS, LEARNING_RATE, TEMPERATURE = 500, 0.01, 0.07
EXAMPLE = "example:\n  python -m vwlmm.demo.cka_toy --pairs 40 --seeds 5"


@dataclass
class ToyResult:
    """One random pair of "encoders" an entry: how alike they are and how far a linear layer brought them together."""

    cka: Tensor  # [pairs], over all instances
    loss: Tensor  # [pairs]; contrastive loss after training, mean over the instances, nats

    @property
    def correlation(self) -> float:
        """Pearson's, of CKA and loss."""
        return float(torch.corrcoef(torch.stack([self.cka, self.loss.double()]))[0, 1])


def run(num_pairs: int = 40, seed: int = 0, *, instances: int = INSTANCES, steps: int = STEPS) -> ToyResult:
    """Draws pairs of encoders of one latent and trains, for each, one linear layer with the contrastive loss.

    All pairs are trained at once, as a batch of independent problems: no pair's gradient touches another's layer.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = [random_pair(instances, generator) for _ in range(num_pairs)]
    cka = torch.stack([linear_cka(left.flatten(0, 1), right.flatten(0, 1)) for left, right in pairs])
    left, right = (torch.stack(side) for side in zip(*pairs, strict=True))
    return ToyResult(cka, train_linear_layers(left, right, generator, steps))


def random_pair(instances: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two views of the same latents, each through a random network and with noise of a random size.

    A = T₁(Z) + w₁·U(0, 1), B = T₂(Z) + w₂·U(0, 1); Z uniform in [−1, 1], one w uniform in [0, 1] for each side.

    Returns:
        A and B, each `[instances, batch, latent]`.
    """
    latents = torch.rand(instances, BATCH, LATENT, generator=generator) * 2 - 1
    return _view(latents, generator), _view(latents, generator)


def _view(latents: Tensor, generator: Generator) -> Tensor:
    """T(Z) + w·U(0, 1) with a random ReLU network T and a random w."""
    hidden = torch.relu(_random_linear(latents, HIDDEN, generator))
    noise = torch.rand(latents.shape, generator=generator) * torch.rand(1, generator=generator)
    return _random_linear(hidden, LATENT, generator) + noise


def _random_linear(x: Tensor, width: int, generator: Generator) -> Tensor:
    """A linear layer with weights and biases from torch's default range ±1/√inputs."""
    inputs = x.shape[-1]
    weight, bias = ((torch.rand(rows, width, generator=generator) * 2 - 1) / inputs**0.5 for rows in (inputs, 1))
    return x @ weight + bias


def train_linear_layers(left: Tensor, right: Tensor, generator: Generator, steps: int = STEPS) -> Tensor:
    """The contrastive loss of each pair after SGD on a linear layer over its left side, an instance a step, `[pairs]`."""
    pairs, instances, _, width = left.shape
    bound = width**-0.5
    weight = nn.Parameter((torch.rand(pairs, width, width, generator=generator) * 2 - 1) * bound)
    bias = nn.Parameter((torch.rand(pairs, 1, width, generator=generator) * 2 - 1) * bound)
    optimizer = torch.optim.SGD([weight, bias], lr=LEARNING_RATE)
    right = nn.functional.normalize(right, dim=-1)
    for step in range(steps):
        now = step % instances
        optimizer.zero_grad()
        # The sum over pairs: each layer's gradient is that of its own loss.
        contrastive_losses(left[:, now] @ weight + bias, right[:, now]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        losses = [contrastive_losses(left[:, i] @ weight + bias, right[:, i]) for i in range(instances)]
    return torch.stack(losses).mean(0)


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
    slope = torch.cov(torch.stack([result.cka, result.loss.double()]))[0, 1] / result.cka.var()
    axes.plot(ends, result.loss.mean() + slope * (ends - result.cka.mean()), color="#94a3b8", linewidth=1)
    axes.set(
        xlabel="linear CKA of the two encoders",
        ylabel=f"contrastive loss after {STEPS} steps, nats",
        title=f"{len(result.cka)} random pairs, correlation {result.correlation:.2f}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def section(results: list[ToyResult], single: list[ToyResult], instances: int, picture: str) -> str:
    """The experiment in Markdown: what was done, the plot of the first seed, the correlation of every seed."""
    first, pairs = results[0], len(results[0].cka)
    each, other = (", ".join(f"{result.correlation:.3f}" for result in runs) for runs in (results, single))
    chance = torch.tensor(BATCH).log()
    return f"""# Does CKA say which encoders can be joined? The toy experiment

`python -m vwlmm.demo.cka_toy` repeats the latent model of arXiv 2409.19425 without any data: {pairs} random pairs of
"encoders" see the same {instances:,} × {BATCH} latent vectors of width {LATENT}; each is a random two-layer ReLU network
(hidden width {HIDDEN}) with its own amount of noise. For each pair one linear layer is trained with the contrastive
loss ({STEPS} steps of SGD with batches of {BATCH}, rate {LEARNING_RATE}, temperature {TEMPERATURE}); the loss is
then measured over all {instances:,} batches. No pair is left out.

![CKA against the loss reached]({picture})

- CKA of the pairs: {first.cka.min():.2f} to {first.cka.max():.2f}. Loss reached: {first.loss.min():.2f} to \
{first.loss.max():.2f} nats; a uniform guess has ln {BATCH} = {chance:.2f}.
- **Correlation of CKA and loss: {first.correlation:.3f}** (seed 0, the plot).
- {len(results)} seeds, {pairs} new pairs each: {each}.

Two things are our reading. The paper does not give the hidden width, and takes rate, steps and temperature from its
experiment with real encoders. And its "10³ instances of 32 vectors" is read as 1,000 batches of 32. Read as one set of
32 vectors for each pair instead, the relation has the same sign but is much weaker, because 32 vectors of width
{LATENT} look alike by chance ({single[0].cka.min():.2f} is the smallest CKA): correlation {other} for the same seeds.
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
    parser.add_argument("--instances", type=int, default=INSTANCES, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="folder to write to")
    options = parser.parse_args(arguments)
    results, single = [], []
    for seed in range(options.seeds):
        results.append(run(options.pairs, seed, instances=options.instances))
        single.append(run(options.pairs, seed, instances=1))
        print(
            f"seed {seed}: correlation of CKA and loss {results[-1].correlation:.3f}; with a single batch a pair "
            f"{single[-1].correlation:.3f}",
            flush=True,
        )
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    draw(results[0], options.docs / "images/freeze_align_toy.png")
    text = section(results, single, options.instances, "images/freeze_align_toy.png")
    (options.docs / "freeze_align_toy.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
