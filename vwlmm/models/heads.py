"""Heads and word embeddings whose weight is read only inside their own forward, so that DDP, FSDP2 and ZeRO-3 can hook it.

Used by `models/visual_word_llava.py`; the reason is measured in DeepSpeed's behaviour: a weight read from outside its module
stays gathered for the whole step, or is empty.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class LossHead(nn.Linear):
    """A vocabulary head `[…, hidden] -> […, vocab]` that can also hand its weight to a loss, inside its own forward.

    `head(rows)` is the plain linear layer. `head(*rows, use=function)` returns `function(weight, *rows)`: tensors that may
    learn are given positionally (sharding hooks look at positional inputs), everything else is closed over.
    """

    def forward(self, *rows: Tensor, use: Callable[..., Any] | None = None) -> Any:
        return super().forward(*rows) if use is None else use(self.weight, *rows)


class WordEmbedding(nn.Embedding):
    """The LLM's word-embedding table, with the same `use` as `LossHead`: pseudo-image features mix its rows."""

    def forward(self, *rows: Tensor, use: Callable[..., Any] | None = None) -> Any:
        return super().forward(*rows) if use is None else use(self.weight, *rows)


def as_loss_head(linear: nn.Linear) -> LossHead:
    """The same parameter under a `LossHead`; returns `linear` itself when it is one already.

    Raises:
        ValueError: the head has a bias, which neither LLaVA nor the visual-word loss knows.
    """
    if isinstance(linear, LossHead):
        return linear
    if linear.bias is not None:
        raise ValueError("A vocabulary head without bias was expected, got one with a bias: LLaVA has no place for it.")
    head = LossHead(linear.in_features, linear.out_features, bias=False, device="meta")
    head.weight = linear.weight
    return head


def as_word_embedding(embedding: nn.Module) -> nn.Module:
    """The same parameter under a `WordEmbedding`, when it is a plain `nn.Embedding`; anything else is returned as it is.

    Some LLMs (Gemma) scale their embeddings in a class of their own; they keep it, and cannot make pseudo-image features.
    """
    if type(embedding) is not nn.Embedding:
        return embedding
    words = WordEmbedding(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
    words.weight = embedding.weight
    return words
