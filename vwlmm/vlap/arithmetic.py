"""Arithmetic with pictures: the words nearest to plus and minus of projected features, and a caption of the result.

Sources: VLAP (arXiv 2404.09632), whose exact procedure is not published; the task is ZeroCap's (arXiv 2111.14447).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.data.images import ImageSource
from vwlmm.vlap.captions import PROMPT, end_tokens
from vwlmm.vlap.word_space import WordSpace


@dataclass(frozen=True)
class Arithmetic:
    """One sum of pictures, and for scoring the words of which one is expected among the nearest."""

    plus: tuple[Path, ...]
    minus: tuple[Path, ...]
    expected: tuple[str, ...] = ()
    note: str = ""


def read_triples(path: str | Path, images: str | Path | None = None) -> list[Arithmetic]:
    """Reads a JSONL of `{"plus": […], "minus": […], "expected": […], "note": "…"}`, pictures relative to `images`.

    Raises:
        FileNotFoundError: no such file, or a picture that is not there.
        ValueError: a line that is not of this form, with its number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Sums of pictures were expected at {path}: there is no such file.")
    folder = Path(images) if images is not None else path.parent
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            lists = {name: row[name] for name in ("plus", "minus", "expected")}
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            raise ValueError(
                f"{path} line {number}: expected plus, minus and expected in JSON, found {problem!r}."
            ) from None
        for name, values in lists.items():
            is_list = isinstance(values, list) and all(isinstance(value, str) and value for value in values)
            if not is_list or (not values and name != "minus"):
                raise ValueError(f"{path} line {number}: {name} is a list of at least one text, got {values!r}.")
        plus, minus = (tuple(folder / name for name in lists[side]) for side in ("plus", "minus"))
        for file in (*plus, *minus):
            if not file.is_file():
                raise FileNotFoundError(f"{path} line {number}: no picture at {file}. Give the folder with --images.")
        found.append(Arithmetic(plus, minus, tuple(lists["expected"]), str(row.get("note", ""))))
    if not found:
        raise ValueError(f"{path} holds no sums of pictures.")
    return found


def solve(space: WordSpace, plus: Sequence[ImageSource], minus: Sequence[ImageSource] = ()) -> Tensor:
    """The projected features of the pictures added and subtracted place by place, `[patches, hidden]`.

    With more plus than minus the sum is divided by the difference, with as many by nothing: a sum of two is their mean,
    a − b + c keeps the size of a picture.

    Raises:
        ValueError: no picture to add.
    """
    if not plus:
        raise ValueError("Arithmetic with pictures needs at least one to add (--plus).")
    features = space.features([*plus, *minus])
    total = features[: len(plus)].sum(0) - features[len(plus) :].sum(0)
    return total / max(1, len(plus) - len(minus))


@torch.inference_mode()
def write_caption(
    model: Any, processor: Any, features: Tensor, *, prompt: str = PROMPT, max_new_tokens: int = 20
) -> str:
    """Greedy text after features `[patches, hidden]` that need not come from one picture."""
    tokenizer, ends = processor.tokenizer, end_tokens(model, processor)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    words = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    image = [model.config.image_token_id] * len(features)
    ids = torch.tensor([[*start, *image, *words]], device=model.device)
    first = ids.shape[1]
    features = features.to(model.device, model.dtype)
    # Read anew for every word: a caption is short, and a contextual text changes with every word.
    for _ in range(max_new_tokens):
        is_image = (ids == model.config.image_token_id)[..., None]
        embeddings = model.embed_text(ids).masked_scatter(is_image, features)
        word = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)
        if int(word) in ends:
            break
        ids = torch.cat([ids, word[:, None]], 1)
    return tokenizer.decode(ids[0, first:], skip_special_tokens=True).strip()


def rank_of(space: WordSpace, direction: Tensor, expected: Sequence[str], most: int = 1000) -> int | None:
    """The place of the first expected word among the nearest (1 is the nearest), None beyond `most` words."""
    wanted = {word.strip().lower() for word in expected}
    (words,) = space.nearest(direction[None], most)
    return next((place for place, (word, _) in enumerate(words, start=1) if word in wanted), None)
