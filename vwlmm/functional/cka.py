"""Centred kernel alignment, by which freeze-align chooses its pair of encoders. Paper: arXiv 2409.19425.

`linear_cka` is what the paper uses; `rbf_cka` sees curved likeness too and costs examples² memory.
"""

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """How alike two encoders see the same examples: linear CKA, from 0 (unrelated) to 1 (equal up to rotation).

    Args:
        x: features of one encoder, `[examples, dim_x]`.
        y: features of the other, the same examples in the same order, `[examples, dim_y]`.

    Returns:
        A scalar, float64: sums of fourth powers over thousands of examples leave fp32 with few digits.

    Raises:
        ValueError: not two matrices, different numbers of examples, or features that do not vary between examples.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), linear CKA, written over features so that the cost grows with
        dim² and not with examples².
    """
    _check_same_examples("linear_cka", x, y)
    x, y = _centred("x", x), _centred("y", y)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def rbf_cka(x: Tensor, y: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    """How alike two encoders see which examples are near each other: CKA with Gaussian kernels, from 0 to 1.

    Args:
        x: features of one encoder, `[examples, dim_x]`.
        y: features of the other, the same examples in the same order, `[examples, dim_y]`.
        bandwidth: the kernels' standard deviation, as a multiple of the median distance between two examples.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: as `linear_cka`; or a bandwidth that is not positive.

    Memory: two matrices `[examples, examples]` in float64 and a third for a moment; 0.6 GB for 5,000 examples.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), section 3 and its choice of bandwidth; freeze-align compared it
        with the linear form, found the same order of encoders, and kept the cheaper one.
    """
    _check_same_examples("rbf_cka", x, y)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is a positive multiple of the median distance, got {bandwidth}.")
    k, l = (_rbf_kernel(_centred(name, f), bandwidth) for name, f in (("x", x), ("y", y)))  # noqa: E741
    return (k * l).sum() / (k.norm() * l.norm())


def _rbf_kernel(features: Tensor, bandwidth: float) -> Tensor:
    """The centred kernel H exp(−d² / 2σ²) H, `[examples, examples]`."""
    squares = (features * features).sum(1)
    # In float64 the expanded square leaves an error of 1e-16 of the norms, which no kernel of this width sees.
    distances = (squares[:, None] + squares).sub_(features @ features.T, alpha=2).clamp_(min=0)  # squared
    n = len(features)
    pairs = distances[torch.triu(torch.ones(n, n, dtype=torch.bool, device=features.device), diagonal=1)]
    # Where more than half of all pairs are equal, the median says nothing about the others.
    median = pairs[pairs > 1e-12 * pairs.mean()].median()
    kernel = distances.div_(-2 * bandwidth**2 * median).exp_()
    rows = kernel.mean(1)
    return kernel.sub_(rows).sub_(rows[:, None]).add_(rows.mean())


def _check_same_examples(function: str, x: Tensor, y: Tensor) -> None:
    for name, features in (("x", x), ("y", y)):
        if features.dim() != 2:
            raise ValueError(f"{name} is a matrix [examples, dim], got shape {tuple(features.shape)}.")
    if len(x) != len(y):
        raise ValueError(
            f"{function} compares the same examples, got {len(x)} and {len(y)}: "
            "embed one dataset, unshuffled, with both encoders."
        )


def _centred(name: str, features: Tensor) -> Tensor:
    """Features without their mean and of norm 1, `[examples, dim]` in float64; CKA does not see the scale."""
    features = features.double()
    centred = features - features.mean(0)
    norm, scale = centred.norm(), features.norm()
    # Equal rows do not cancel to exactly 0; what is left is rounding of the mean.
    if not norm > 1e-12 * scale:
        raise ValueError(
            f"{name} does not vary over its {len(features)} examples (norm {float(norm):.3g} around the mean), so it "
            "cannot be like anything: give at least two different examples, without NaN, and look whether the "
            "encoder collapsed."
        )
    return centred / norm
