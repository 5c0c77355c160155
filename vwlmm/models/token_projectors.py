"""The small trainable parts of freeze-align: a projector for every token and a residual head for the pooled text.

Paper: freeze-align (arXiv 2409.19425), figure 3 and section A.9; the token projector is PACL's.
"""

import torch
from torch import Tensor, nn

PROJECTIONS = ("token", "mlp", "linear", "identity")
POOLINGS = ("mean", "max")


class TokenProjector(nn.Module):
    """`Linear(n) + Linear(GELU(Linear(n)))` of `n = Dropout(LayerNorm(x))`, for every token by itself.

    Shapes: `[…, in]` -> `[…, out]`. The paper's figure 3 says ReLU, its released code has GELU; this is the code.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features)
        self.mlp = nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.dropout(self.norm(tokens))
        return self.linear(normed) + self.mlp(normed)


class ResidualHead(nn.Module):
    """`LayerNorm(p + Dropout(Linear(GELU(p))))` of `p = Linear(x)`; `[…, in]` -> `[…, out]`."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(in_features, out_features)
        self.fc = nn.Linear(out_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.projection(features)
        return self.norm(projected + self.dropout(self.fc(nn.functional.gelu(projected))))


class Temperature(nn.Module):
    """The learned divisor of the cosines, kept in a range."""

    def __init__(self, start: float, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high, self.start = low, high, start
        self.value = nn.Parameter(torch.tensor(float(start)))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.value, self.start)

    def forward(self) -> Tensor:
        """The divisor, a scalar."""
        if self.training:
            with torch.no_grad():  # the released code clamps the parameter itself, at every forward
                self.value.clamp_(self.low, self.high)
        # A sharded optimiser keeps its own copy, which no clamp reaches: what is used is clamped again, and the gradient
        # passes as if it was not, so that a temperature at its bound can come back from there.
        return self.value + (self.value.clamp(self.low, self.high) - self.value).detach()


def make_projection(kind: str, in_features: int, out_features: int, dropout: float = 0.1) -> nn.Module | None:
    """A projection by its name in the configuration: `token`, `mlp` (residual head), `linear`; None for `identity`."""
    if kind == "token":
        return TokenProjector(in_features, out_features, dropout)
    if kind == "mlp":
        return ResidualHead(in_features, out_features, dropout)
    return nn.Linear(in_features, out_features) if kind == "linear" else None


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens whose mask is True, `[rows, tokens, dim]` and `[rows, tokens]` -> `[rows, dim]`."""
    kept = mask.to(tokens.dtype).unsqueeze(-1)
    # where, not a product: 0 times an inf of a padding token is NaN.
    total = torch.where(mask.bool().unsqueeze(-1), tokens, 0).sum(1)
    return total / kept.sum(1).clamp(min=1)
