"""Entropic optimal transport, for word assignments. Paper: VLAP, arXiv 2404.09632 (after SwAV, arXiv 2006.09882)."""

import torch
from torch import Tensor


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float,
    iterations: int,
    row_marginal: Tensor | None = None,
    col_marginal: Tensor | None = None,
) -> Tensor:
    """Shares rows out over columns: the plan Q ≥ 0 with given marginals that maximises ⟨Q, scores⟩ + ε H(Q).

    In VLAP rows are examples and columns are words: multiply the plan by the number of rows to get, for each example,
    a distribution over words. Works in the log domain, so cosines over a small ε do not overflow. Each iteration
    matches the columns and then the rows: the **row marginal is exact** after any number of iterations, the column
    marginal in the limit. Differentiable; assignments are targets, so call it under `torch.no_grad()`.

    Args:
        scores: similarity of each row to each column, `[rows, cols]`.
        epsilon: weight of the entropy, in the scores' unit; smaller is harder and converges more slowly.
        iterations: pairs of half-steps, at least 1.
        row_marginal: mass of each row, `[rows]`, summing to 1; uniform if None.
        col_marginal: mass of each column, `[cols]`, summing to 1; uniform if None. A mass of 0 keeps a word unused.

    Returns:
        The plan, `[rows, cols]`, summing to 1; fp32, or float64 for float64 scores.

    Raises:
        ValueError: no matrix, no row or column, ε or iterations not positive, a marginal of another length, with a
            negative entry or not summing to 1.

    Source: Cuturi 2013 (arXiv 1306.0895). VLAP's published code has no row normalisation in the branch it runs, which
        makes it a softmax with a prior and not a transport plan; this is the textbook form its text asks for.
    """
    if scores.dim() != 2 or 0 in scores.shape:
        raise ValueError(f"scores is a matrix [rows, cols] with at least one of each, got shape {tuple(scores.shape)}.")
    if not epsilon > 0:
        raise ValueError(f"epsilon is positive, got {epsilon}: 0.01 to 0.1 suits cosines.")
    if iterations < 1:
        raise ValueError(f"iterations is at least 1, got {iterations}.")
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    with torch.autocast(scores.device.type, enabled=False):
        log_kernel = scores.to(dtype) / epsilon  # [rows, cols]
        log_rows = _log_marginal("row_marginal", row_marginal, log_kernel, 0)
        log_cols = _log_marginal("col_marginal", col_marginal, log_kernel, 1)
        row_potential = torch.zeros_like(log_rows)
        for _ in range(iterations):
            col_potential = log_cols - torch.logsumexp(log_kernel + row_potential[:, None], 0)
            row_potential = log_rows - torch.logsumexp(log_kernel + col_potential, 1)
        return (log_kernel + row_potential[:, None] + col_potential).exp()


def _log_marginal(name: str, marginal: Tensor | None, log_kernel: Tensor, dim: int) -> Tensor:
    """The logarithm of a checked marginal, uniform if None; `[rows]` or `[cols]`."""
    size = log_kernel.shape[dim]
    if marginal is None:
        return log_kernel.new_full((size,), 1.0 / size).log()
    if marginal.shape != (size,):
        raise ValueError(f"{name} has one mass for each of the {size} entries, got shape {tuple(marginal.shape)}.")
    marginal = marginal.to(log_kernel)
    total, least = float(marginal.sum()), float(marginal.min())
    if not (least >= 0 and abs(total - 1) < 1e-3):
        raise ValueError(
            f"{name} is a distribution: no negative entry and a sum of 1; got a sum of {total:.6g} and a smallest "
            f"entry of {least:.3g}. Divide counts by their total."
        )
    # Exactly 1 on both sides, or the two half-steps could never agree.
    return (marginal / marginal.sum()).log()
