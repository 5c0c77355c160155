"""Captions ranked by how likely the LLM finds them after a picture: retrieval for models that were trained to caption alone.

Protocol: per-token likelihood under the frozen LLM, as FROMAGe (arXiv 2301.13823) ranks texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vwlmm.data.images import ImageSource
from vwlmm.functional import language_model_loss
from vwlmm.vlap.captions import PROMPT
from vwlmm.vlap.word_space import image_features, recall


@torch.inference_mode()
def caption_likelihoods(
    model: Any, processor: Any, images: Sequence[ImageSource], captions: Sequence[str], *, prompt: str = PROMPT
) -> Tensor:
    """The mean log-likelihood a token of every caption, its end included, after every picture: `[images, captions]`.

    Picture and prompt are read once a picture, the captions after them together.

    Raises:
        ValueError: an empty caption.
    """
    if any(not caption.strip() for caption in captions):
        raise ValueError("A caption is empty: a likelihood is of at least one word.")
    features = image_features(model, processor, images).to(model.dtype)
    tokenizer = processor.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = [*start, *[model.config.image_token_id] * features.shape[1]]
    before += tokenizer(prompt, add_special_tokens=False)["input_ids"]
    texts = [
        [*tokenizer(" " + c.strip(), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for c in captions
    ]
    longest, first = max(map(len, texts)), len(before)
    ids = torch.tensor([before + text + [0] * (longest - len(text)) for text in texts], device=model.device)
    read = torch.tensor(
        [[1] * (first + len(text)) + [0] * (longest - len(text)) for text in texts], device=model.device
    )
    labels = ids[:, first:].masked_fill(read[:, first:] == 0, -100)
    words = model.embed_text(ids, read)  # [captions, seq, hidden]
    is_image = (ids[:1, :first] == model.config.image_token_id)[..., None]
    return torch.stack(
        [_likelihoods(model, words, words[:1, :first].masked_scatter(is_image, one), read, labels) for one in features]
    )


def _likelihoods(model: Any, words: Tensor, prefix: Tensor, read: Tensor, labels: Tensor) -> Tensor:
    """Of one picture: prefix `[1, first, hidden]` and the captions' words after it, `[captions]`."""
    captions, first = len(words), prefix.shape[1]
    begun = model.model.language_model(inputs_embeds=prefix, use_cache=True)
    cache = begun.past_key_values
    cache.batch_repeat_interleave(captions)
    rest = model.model.language_model(
        inputs_embeds=words[:, first:-1], attention_mask=read[:, :-1], past_key_values=cache, use_cache=True
    ).last_hidden_state
    hidden = torch.cat(
        [begun.last_hidden_state[:, -1:].expand(captions, -1, -1), rest], 1
    )  # [captions, longest, hidden]
    scored = labels != -100
    losses = model.lm_head(
        hidden[scored], use=lambda weight, rows: language_model_loss(rows, weight, labels[scored], reduction="none")
    )
    total = torch.zeros(labels.shape, dtype=losses.dtype, device=labels.device).masked_scatter(scored, losses).sum(1)
    return -total / scored.sum(1)


def likelihood_retrieval(table: Tensor, captions: Sequence[str], at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k in both directions from likelihoods `[pictures, captions]`, caption i being picture i's.

    Each caption's mean over the pictures is taken off: what is likely after any picture says nothing about this one.

    Raises:
        ValueError: not as many captions as pictures.
    """
    if table.shape != (len(captions), len(captions)):
        raise ValueError(
            f"Retrieval needs a caption for each picture: got {len(captions)} for a table {tuple(table.shape)}."
        )
    same = torch.tensor([[ours == theirs for theirs in captions] for ours in captions], device=table.device)
    return recall(table - table.mean(0), same, at)
