"""Small inputs for the streamed losses and the textbook forms they must equal."""

import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = ("visual_words", "language_model")
DIVERGENCES = ("kl", "cross_entropy")
ROWS, VOCAB, HIDDEN, WIDTH = 7, 11, 5, 4


def make(*shape: int, dtype: torch.dtype = torch.float64, learns: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 100 * shape[0])
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(learns)


def two_heads(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """hidden, lm_weight, features, vm_weight."""
    shapes = ((rows, HIDDEN), (VOCAB, HIDDEN), (rows, WIDTH), (VOCAB, WIDTH))
    return [make(*shape, dtype=dtype) for shape in shapes]


def plain_terms(
    hidden: Tensor,
    lm_weight: Tensor,
    features: Tensor,
    vm_weight: Tensor,
    target: str = "visual_words",
    detach_target: bool = True,
    divergence: str = "kl",
) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook form, a value per row: loss, KL, H(q)."""
    log_p, log_q = F.log_softmax(hidden @ lm_weight.T, -1), F.log_softmax(features @ vm_weight.T, -1)
    teacher, student = (log_q, log_p) if target == "visual_words" else (log_p, log_q)
    if detach_target:
        teacher = teacher.detach()
    cross_entropy = -(teacher.exp() * student).sum(-1)
    kl = cross_entropy + (teacher.exp() * teacher).sum(-1)
    return kl if divergence == "kl" else cross_entropy, kl, -(log_q.exp() * log_q).sum(-1)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [x for x in inputs if x.requires_grad], allow_unused=True))


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], **tolerance: float) -> None:
    """Equal gradients; None and zero are told apart."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **tolerance)


def scored_rows(ignored: tuple[int, ...] = (2, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, labels."""
    labels = torch.arange(ROWS) * 3 % VOCAB
    labels[list(ignored)] = -100
    return make(ROWS, HIDDEN), make(VOCAB, HIDDEN), labels


def mixture_inputs(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """features, vm_weight, word_embeddings."""
    return [make(rows, WIDTH, dtype=dtype), make(VOCAB, WIDTH, dtype=dtype), make(VOCAB, HIDDEN, dtype=dtype)]


def plain_mixture(features: Tensor, vm_weight: Tensor, word_embeddings: Tensor) -> Tensor:
    return torch.softmax(features @ vm_weight.T, -1) @ word_embeddings
