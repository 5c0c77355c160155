"""Linear CKA, by which freeze-align chooses its pair of encoders. Paper: arXiv 2409.19425."""

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
    for name, features in (("x", x), ("y", y)):
        if features.dim() != 2:
            raise ValueError(f"{name} is a matrix [examples, dim], got shape {tuple(features.shape)}.")
    if len(x) != len(y):
        raise ValueError(
            f"linear_cka compares the same examples, got {len(x)} and {len(y)}: "
            "embed one dataset, unshuffled, with both encoders."
        )
    x, y = _centred("x", x), _centred("y", y)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


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
