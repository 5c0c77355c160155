"""What an objective over image–caption pairs reads of a batch: each picture's features and each caption's states.

Used by `models/visual_word_llava.py`. Source: VLAP, arXiv 2404.09632.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vwlmm.models.heads import WordEmbedding


def gather_text(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's marked tokens lie, moved to its start: `(places, valid)`, both `[batch, longest]`.

    Args:
        mask: `[batch, seq]`, True at the tokens wanted.
    """
    lengths = mask.sum(1)
    longest = max(1, int(lengths.max()))
    places = torch.argsort((~mask).int(), dim=1, stable=True)[:, :longest]
    return places, torch.arange(longest, device=mask.device) < lengths[:, None]


def take(values: Tensor, places: Tensor) -> Tensor:
    """`values[b, places[b]]`, for `[batch, seq]` or `[batch, seq, hidden]`."""
    if values.dim() == 2:
        return values.gather(1, places)
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def put(values: Tensor, places: Tensor, valid: Tensor, new: Tensor) -> Tensor:
    """`values` `[batch, seq, hidden]` with `new[b, i]` at `places[b, i]` wherever that is valid."""
    new = torch.where(valid[..., None], new.to(values.dtype), take(values, places))
    return values.scatter(1, places[..., None].expand_as(new), new)


def caption_states(
    input_ids: Tensor,
    is_caption: Tensor,
    embed: Callable[[Tensor], Tensor],
    contextual: Callable[[Tensor, Tensor], Tensor] | None,
    bos_token_id: int | None,
) -> tuple[Tensor, Tensor]:
    """Each row's caption by itself, read without its picture and without a gradient.

    Args:
        input_ids: `[batch, seq]`; is_caption: True at the caption's tokens.
        embed: ids to word embeddings.
        contextual: embeddings and mask to last hidden states, or None to stay with the embeddings.
        bos_token_id: stands before a caption that the LLM reads, as in its training; not among the states.

    Returns:
        states `[batch, longest, hidden]` and ids `[batch, longest]`, −100 where padded.
    """
    places, valid = gather_text(is_caption)
    ids = take(input_ids, places).masked_fill(~valid, 0)
    with torch.no_grad():
        if contextual is None:
            states = embed(ids)
        else:
            read, attended = ids, valid
            if bos_token_id is not None:
                read = torch.cat([torch.full_like(ids[:, :1], bos_token_id), ids], 1)
                attended = torch.cat([torch.ones_like(valid[:, :1]), valid], 1)
            states = contextual(embed(read), attended)[:, int(bos_token_id is not None) :]
    return states, ids.masked_fill(~valid, -100)


def check_pairs(is_image: Tensor, is_caption: Tensor, pairs: Tensor, patches: int) -> None:
    """Refuses a row that is no pair of one picture and its caption.

    Raises:
        ValueError: a picture without a caption, or more than one picture in a row.
    """
    if (pairs & ~is_caption.any(1)).any():
        row = int((pairs & ~is_caption.any(1)).nonzero()[0])
        raise ValueError(
            f"Row {row} of the batch has a picture and no caption (no scored token): an assignment needs both. "
            "`vwlmm data check` finds such rows."
        )
    several = pairs & (is_image.sum(1) != patches)
    if several.any():
        row = int(several.nonzero()[0])
        raise ValueError(
            f"Row {row} of the batch has {int(is_image[row].sum())} image tokens, and one picture has {patches}: an assignment "
            "pairs one picture with its caption. Give rows of one picture."
        )


def gather_pairs(
    model: Any,
    input_ids: Tensor,
    masks: tuple[Tensor, Tensor, Tensor],
    pairs: Tensor,
    features: Tensor,
    images: int,
    objective: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features `[pairs, patches, hidden]`, caption states and caption ids `[pairs, length(, hidden)]` of the pairs.

    Args:
        masks: labels, image tokens and attended tokens, `[batch, seq]` each.
        pairs: `[batch]`, True for the rows that are a pair.
        features: of all images of the batch, `[image tokens, hidden]`; images: how many those are.
    """
    labels, is_image, attended = masks
    is_caption = (labels != -100) & attended & ~is_image
    patches = len(features) // images if images else 1
    check_pairs(is_image, is_caption, pairs, patches)
    # Every row, with a picture or not: ranks of a sharded run call the LLM equally often.
    states, ids = model.text_states(input_ids, is_caption, objective.captions)
    paired = features[pairs[:, None].expand_as(is_image)[is_image]].view(-1, patches, features.shape[-1])
    return paired, states[pairs], ids[pairs]


def head_and_words(
    model: Any, objective: Any, text_labels: Tensor, text_hidden: Tensor, image: Tensor, states: Tensor, ids: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Calls the objective inside the forwards of LM head and word embeddings, rows that may learn positional.

    Raises:
        ValueError: the LLM's embedding is not a plain table (Gemma scales it).
    """
    words = model.get_input_embeddings()
    if not isinstance(words, WordEmbedding):
        raise ValueError(
            f"Assignments read the rows of a plain word-embedding table; this LLM has a {type(words).__name__}."
        )
    names: list[list[str]] = []

    # One tensor goes out of both modules: gradient checkpointing hooks the embedding's output, and expects one.
    def sums(lm_weight: Tensor, table: Tensor, image: Tensor, text: Tensor) -> Tensor:
        learned, logged = objective(
            lm_weight=lm_weight,
            words=table,
            text_hidden=text,
            text_labels=text_labels,
            image_features=image,
            caption_states=states,
            caption_ids=ids,
        )
        names.extend([list(learned), list(logged)])
        return torch.stack([*learned.values(), *logged.values()])

    def inside_lm_head(lm_weight: Tensor, text: Tensor, image: Tensor) -> Tensor:
        return words(image, text, use=lambda table, image, text: sums(lm_weight, table, image, text))

    values = model.lm_head(text_hidden, image, use=inside_lm_head).unbind()
    learned, logged = values[: len(names[0])], values[len(names[0]) :]
    return (
        dict(zip(names[0], learned, strict=True)),
        {name: value.detach() for name, value in zip(names[1], logged, strict=True)},
    )
