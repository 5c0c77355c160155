"""A row → token ids and labels. Images stay unopened: each is one token that becomes as many as the model reads.

What is scored is what the chat template puts in `{% generation %}` spans; text is never split to find the answer.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import jinja2
import numpy as np
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from vwlmm.data.bad_row import BadRow
from vwlmm.data.images import ImageSource
from vwlmm.data.rows import Message, Row

IGNORE = -100  # label of a token that is not scored

_image_tokens: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class EncodedRow:
    """What the model reads of one row."""

    input_ids: list[int]  # image token ids repeated: as many as an image has features
    labels: list[int]  # the ids that are scored, −100 elsewhere; not shifted
    images: list[ImageSource]  # those whose tokens are in input_ids, in order
    num_image_tokens: int  # of one image
    truncated: bool  # the row was longer than max_length
    row: Row


def encode_row(row: Row, processor: Any, *, max_length: int, chat_template: str | None = None) -> EncodedRow:
    """Encodes one row; a long one is cut at the end, and never inside an image.

    Args:
        processor: LlavaProcessor or one like it, with `tokenizer`, `image_processor` and `image_token_id`.
        max_length: tokens at most, image tokens included.
        chat_template: Jinja text; the processor's own if None.

    Raises:
        BadRow: the template refuses the row, there is nothing to learn, or nothing is left of it within max_length.
        ValueError: the processor has no chat template, or pictures of different sizes.
    """
    image_id = processor.image_token_id
    ids, scored = _tokenize(row, processor.tokenizer, chat_template or own_template(processor))
    if ids.count(image_id) != len(row.images):
        found = f"{ids.count(image_id)} for {len(row.images)} images"
        raise BadRow(
            row.source, row.id, "messages", f"a chat template that writes one {processor.image_token} an image", found
        )
    if not any(mark and token != image_id for token, mark in zip(ids, scored, strict=True)):
        raise BadRow(row.source, row.id, "messages", "an answer inside a `{% generation %}` span", "nothing to learn")

    num_tokens = num_image_tokens(processor) if row.images else 0
    input_ids: list[int] = []
    labels: list[int] = []
    runs: list[tuple[int, int]] = []  # begin and end of each image
    for token, mark in zip(ids, scored, strict=True):
        is_image = token == image_id
        if is_image:
            runs.append((len(input_ids), len(input_ids) + num_tokens))
        input_ids += [token] * (num_tokens if is_image else 1)
        labels += [IGNORE] * num_tokens if is_image else [token if mark else IGNORE]
    return _cut(EncodedRow(input_ids, labels, row.images, num_tokens, False, row), runs, max_length)


def _cut(encoded: EncodedRow, runs: list[tuple[int, int]], max_length: int) -> EncodedRow:
    if len(encoded.input_ids) <= max_length:
        return encoded
    row, labels = encoded.row, encoded.labels
    # Half an image is no image to the model: it is left out whole, and with it what follows.
    cut = next((begin for begin, end in runs if begin < max_length < end), max_length)
    if all(label == IGNORE for label in labels[:cut]):
        first = next(place for place, label in enumerate(labels) if label != IGNORE)
        expected = f"an answer that begins within {max_length} tokens (`max_length`)"
        found = f"too long, nothing left to learn: {len(labels)} tokens, the answer begins at token {first + 1}"
        raise BadRow(row.source, row.id, "length", expected, found)
    images = row.images[: sum(end <= cut for _, end in runs)]
    return EncodedRow(encoded.input_ids[:cut], labels[:cut], images, encoded.num_image_tokens, True, row)


def own_template(processor: Any) -> str:
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if not template:
        raise ValueError(
            "The processor has no chat template: set `chat_template` to vicuna_v1, mistral, llama_2, chatml or plain."
        )
    return template


def _tokenize(row: Row, tokenizer: Any, template: str) -> tuple[list[int], list[bool]]:
    try:
        return tokenize_messages(row.messages, tokenizer, template)
    except jinja2.TemplateError as problem:
        raise BadRow(
            row.source, row.id, "messages", "a conversation that the chat template takes", str(problem)
        ) from problem


def tokenize_messages(messages: list[Message], tokenizer: Any, template: str) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, an image being one token, and which of them lie in `{% generation %}` spans.

    This is `tokenizer.apply_chat_template(..., return_assistant_tokens_mask=True)` but for two traps of the latter
    (transformers 5.23): a span that begins with a blank which belongs to no token loses this and every later answer,
    and one that ends so is scored to the end of the conversation, questions included.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
        ValueError: the tokenizer is a slow one and cannot say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot tell which text a token comes from: a fast tokenizer is needed."
        )
    conversations: list[Any] = [messages]
    # Typed by hand: transformers annotates the pair it returns as a string.
    rendered_and_spans: Any = render_jinja_template(
        conversations, chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    (rendered,), (spans,) = rendered_and_spans
    encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begin, end = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T  # [seq] each
    scored = np.zeros(len(begin), dtype=bool)
    for first, last in spans:
        scored |= (begin < last) & (end > first)
    return list(encoding["input_ids"]), scored.tolist()


def num_image_tokens(processor: Any) -> int:
    """How many tokens an image takes, by asking the processor itself with blank images of three shapes; remembered.

    Raises:
        ValueError: the number depends on the image's shape, or the image token is not one token.
    """
    if processor not in _image_tokens:
        counts = {_count_image_tokens(processor, size) for size in ((64, 32), (32, 64), (48, 48))}
        if len(counts) > 1:
            raise ValueError(
                f"An image takes {sorted(counts)} tokens depending on its shape: expected one number. "
                "Let the image processor crop (do_center_crop) or pad (do_pad) to a fixed size."
            )
        _image_tokens[processor] = counts.pop()
    return _image_tokens[processor]


def _count_image_tokens(processor: Any, size: tuple[int, int]) -> int:
    token_ids = processor.tokenizer(processor.image_token, add_special_tokens=False)["input_ids"]
    if token_ids != [processor.image_token_id]:
        raise ValueError(
            f"{processor.image_token} is {len(token_ids)} tokens to this tokenizer: expected one. "
            f"Add it: tokenizer.add_tokens([{processor.image_token!r}], special_tokens=True)."
        )
    inputs = processor(images=[Image.new("RGB", size)], text=processor.image_token)
    return sum(token == processor.image_token_id for token in np.asarray(inputs["input_ids"]).reshape(-1).tolist())
