"""The freeze-align objective: every image finds its caption in the batch, every caption its image.

Source: "Harnessing Frozen Unimodal Encoders for Flexible Multimodal Alignment" (arXiv 2409.19425).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vwlmm import functional

TERM = "contrastive"


@dataclass
class FreezeAlignConfig:
    """What a pair is compared with, and how much of a batch is in memory at once.

    Args:
        gather: compare with the pairs of all ranks. The released code does not: each of its 8 GPUs contrasts its own 1,800
            pairs, and the paper's batch of 16,000 counts all of them. The log and the saved recipe say which was used.
        embed_rows: pairs that pass towers and projectors at once; their activations are made again in the backward
            (GradCache), so that a batch may be as large as its embeddings fit. None: all at once.
        chunk_rows: rows of the similarity matrix at once; None chooses by memory.
    """

    gather: bool = False
    embed_rows: int | None = None
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("embed_rows", "chunk_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"objective.{name} is a positive number of pairs or left out: got {value}.")


class FreezeAlign:
    """Symmetric contrastive loss of a batch of embedded pairs; holds no parameters, sees no model."""

    def __init__(self, config: FreezeAlignConfig | None = None) -> None:
        self.config = config or FreezeAlignConfig()
        self.embed_rows = self.config.embed_rows

    def __call__(
        self, *, image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums over this rank's pairs.

        Args:
            image_embeds, text_embeds: `[pairs, dim]`, of length 1.
            temperature: the divisor of the cosines, in its range already.

        Returns:
            the sum that learns (`contrastive`) and the one that is only logged (`temperature`, once a pair).
        """
        loss = functional.contrastive_loss(
            image_embeds,
            text_embeds,
            temperature,
            gather=self.config.gather,
            reduction="sum",
            chunk_rows=self.config.chunk_rows,
        )
        return {TERM: loss}, {"temperature": temperature.detach() * len(image_embeds)}

    def combine(
        self, sums: tuple[dict[str, Tensor], dict[str, Tensor]], num_items: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and every term by name, each divided by the pairs of the global batch (at least 1)."""
        learned, logged = sums
        pairs = torch.clamp(num_items[TERM], min=1)
        loss = learned[TERM] / pairs
        return loss, {f"{TERM}_loss": loss.detach()} | {name: total / pairs for name, total in logged.items()}

    def counted_by(self, term: str) -> str:
        """The count that a logged term is divided by: the pairs."""
        return TERM

    def weigh(self, terms: dict[str, float]) -> float:
        """The loss that logged terms add up to."""
        return terms[f"{TERM}_loss"]
