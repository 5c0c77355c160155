"""The visual words of one picture: for every patch the top words, their probabilities and the entropy.

`visual_word_map` computes them, `write_json` keeps them, `text_grid` shows them in a terminal.
Source: VW-LMM (arXiv 2403.07720): softmax over the vocabulary of vm_head(projector(vision tower(picture))).
"""

import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from vwlmm.data.images import load_image

Scores = Callable[[Tensor], Tensor]  # features [patches, hidden] -> unnormalised word scores [patches, vocab]

VISIBLE = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥", "\xa0": "␣"})


@dataclass(frozen=True)
class VisualWordMap:
    """The visual words of one picture, patch by patch.

    `tokens[row][col][k]` is the k-th likeliest word of a patch as a reader sees it, `ids` and `probabilities` go with
    it, and `entropy[row][col]` is the entropy of the patch's whole word distribution in nats, 0 to log(vocab_size).
    """

    image: Path
    grid: tuple[int, int]  # rows, cols
    tokens: list[list[list[str]]]  # [rows][cols][top_k]
    ids: list[list[list[int]]]  # [rows][cols][top_k]
    probabilities: list[list[list[float]]]  # [rows][cols][top_k], largest first
    entropy: list[list[float]]  # [rows][cols], nats
    vocab_size: int
    centred: bool  # True: the picture's mean score of each word was taken off before the softmax
    picture: Image.Image  # what the model saw, RGB, cut to the area that the grid covers

    @property
    def mean_entropy(self) -> float:
        """Mean over the patches of the entropy, in nats."""
        values = [value for row in self.entropy for value in row]
        return sum(values) / len(values)

    @property
    def num_distinct_words(self) -> int:
        """How many different tokens are the top word of some patch."""
        return len({patch[0] for row in self.ids for patch in row})

    def summary(self) -> str:
        """One line: picture, grid, mean entropy against its maximum, number of distinct top words."""
        rows, cols = self.grid
        return (
            f"{self.image.name}: {rows} × {cols} patches, mean entropy {self.mean_entropy:.2f} of "
            f"{math.log(self.vocab_size):.2f} nats, {self.num_distinct_words} distinct top words"
        )


@torch.inference_mode()
def visual_word_map(
    model: Any,
    processor: Any,
    image_path: str | Path,
    *,
    top_k: int = 5,
    center: bool = False,
    scores: Scores | None = None,
) -> VisualWordMap:
    """Names every patch of a picture with the model's visual words.

    Args:
        model: a LLaVA model with `get_image_features` and, unless `scores` is given, a `vm_head`.
        processor: its processor (`LlavaProcessor`).
        image_path: a picture file that Pillow reads.
        top_k: words kept per patch.
        center: take each word's mean score over the picture off first, so that words that all patches share fall
            away and what tells the patches apart remains.
        scores: another scoring of the projected features, `[patches, hidden]` to `[patches, vocab]`; the default is
            the VM head.

    Raises:
        FileNotFoundError: no such picture file.
        ValueError: the file is no picture, the model has no VM head, `top_k` does not fit the vocabulary, or the
            features form no grid.
    """
    if scores is None:
        scores = _vm_head(model)
    pixel_values = processor.image_processor(load_picture(image_path), return_tensors="pt")["pixel_values"]
    features = model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype)).pooler_output[0]
    (rows, cols), (height, width) = patch_grid(len(features), tuple(pixel_values.shape[-2:]), processor.patch_size)
    # Class and register tokens come before the patches and have no place in the picture.
    features = features[len(features) - rows * cols :]  # [patches, hidden]

    # fp32: a bf16 softmax over the vocabulary loses the tail that the entropy is made of.
    word_scores = scores(features).float()  # [patches, vocab]
    vocab_size = word_scores.shape[-1]
    if not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k must lie between 1 and the vocabulary's {vocab_size} words, got {top_k}.")
    if center:
        word_scores = word_scores - word_scores.mean(0)
    probabilities = word_scores.softmax(-1)
    if probabilities.isnan().any():
        raise ValueError(
            "Expected finite word scores, got NaN or infinity (half precision overflows on some models): "
            "load the model in float32."
        )
    top = probabilities.topk(top_k, dim=-1)
    ids = top.indices.view(rows, cols, top_k).tolist()
    words = {token: readable_word(processor.tokenizer, token) for row in ids for patch in row for token in patch}
    picture = seen_picture(pixel_values[0], processor.image_processor)
    return VisualWordMap(
        image=Path(image_path),
        grid=(rows, cols),
        tokens=[[[words[token] for token in patch] for patch in row] for row in ids],
        ids=ids,
        probabilities=top.values.view(rows, cols, top_k).tolist(),
        entropy=torch.special.entr(probabilities).sum(-1).view(rows, cols).tolist(),
        vocab_size=vocab_size,
        centred=center,
        picture=picture.crop((0, 0, width, height)),
    )


def _vm_head(model: Any) -> Scores:
    head = getattr(model, "vm_head", None)
    if head is None:
        raise ValueError(
            f"Visual words need a model with a VM head, got a plain {type(model).__name__}: "
            "take a checkpoint that a visual-words recipe trained."
        )
    return cast(Scores, head)


def load_picture(path: str | Path) -> Image.Image:
    """Opens a picture as training does: RGB, upright, transparency on white.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read as a picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a picture file, found none at {path}: check the path.")
    return load_image(path)


def patch_grid(
    num_features: int, image_size: tuple[int, int], patch_size: int | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid that a picture's features form, and the part of the picture that it covers.

    Args:
        num_features: features of one picture; class and register tokens, if any, come first.
        image_size: height and width of the pixels that the tower read.
        patch_size: side in pixels of the square that one feature stands for, None when it is not known.

    Returns:
        `(rows, cols)` and `(height, width)` in pixels, counted from the top left corner.

    Raises:
        ValueError: the features form no grid in the picture's proportions.
    """
    height, width = image_size
    if patch_size:
        rows, cols = height // patch_size, width // patch_size
        if 0 < rows * cols <= num_features <= rows * cols + 16:  # 16: room for class and register tokens
            return (rows, cols), (rows * patch_size, cols * patch_size)
    for patches in (num_features, num_features - 1):  # as they are, or after one class token
        for rows in range(1, patches + 1):
            cols = patches // rows
            # A cell may be a little off square: 7 rows over 230 pixels and 8 columns over 256.
            if rows * cols == patches and 0.8 <= (height / rows) / (width / cols) <= 1.25:
                return (rows, cols), (height, width)
    raise ValueError(
        f"Expected features that form a grid over a picture of {height} × {width} pixels, got {num_features}: "
        "check that the processor and the vision tower belong together."
    )


def readable_word(tokenizer: Any, token_id: int) -> str:
    """One token as a reader sees it: no marker for the leading space, blanks as ␣, line breaks as ⏎.

    A token that is part of a character (a single byte) has no text of its own and is shown as the tokenizer writes it.
    An id beyond the tokenizer's words, as in a padded vocabulary, is shown as `#id`.
    """
    piece = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if piece is None:
        return f"#{token_id}"
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        return str(piece)
    word = text.strip(" ") or "␣"
    return "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in word.translate(VISIBLE))


def seen_picture(pixel_values: Tensor, image_processor: Any) -> Image.Image:
    """The picture as the model saw it, after resizing, cropping and padding: `[channels, height, width]` to RGB.

    Undoing the normalisation shows it more truthfully than repeating the processor's steps on the file.
    """
    pixels = pixel_values.detach().float().cpu()
    if getattr(image_processor, "do_normalize", False):
        mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
        pixels = pixels * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    if getattr(image_processor, "do_rescale", True):
        pixels = pixels / getattr(image_processor, "rescale_factor", 1 / 255)
    array = pixels.round().clamp(0, 255).byte().permute(1, 2, 0).squeeze(-1)  # [height, width, channels]
    return Image.fromarray(array.numpy()).convert("RGB")


def write_json(maps: Sequence[VisualWordMap], out: str | Path) -> None:
    """Writes `{"images": [{image, grid, …, tokens, ids, probabilities, entropy}]}`; lists are `[rows][cols](…)`."""
    images = [
        {
            "image": str(word_map.image),
            "grid": list(word_map.grid),
            "picture_size": list(word_map.picture.size),  # width, height in pixels
            "vocab_size": word_map.vocab_size,
            "centred": word_map.centred,
            "mean_entropy": word_map.mean_entropy,
            "num_distinct_words": word_map.num_distinct_words,
            "tokens": word_map.tokens,
            "ids": word_map.ids,
            "probabilities": word_map.probabilities,
            "entropy": word_map.entropy,
        }
        for word_map in maps
    ]
    Path(out).write_text(json.dumps({"images": images}, ensure_ascii=False) + "\n", encoding="utf-8")


def text_grid(word_map: VisualWordMap, *, max_width: int | None = None) -> str:
    """The top word of every patch in aligned columns, one line a row of patches.

    Args:
        word_map: the words.
        max_width: characters per line to stay within, by cutting long words with "…" (never below 3 a column);
            None for no limit.
    """
    rows = [[patch[0] for patch in row] for row in word_map.tokens]
    column = max(_columns(word) for row in rows for word in row)
    if max_width is not None:
        column = min(column, max(3, (max_width + 1) // word_map.grid[1] - 1))
    return "\n".join(" ".join(_fit(word, column) for word in row).rstrip() for row in rows)


def _columns(text: str) -> int:
    """Terminal columns of a text: two for East Asian wide letters, none for combining marks."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _fit(word: str, columns: int) -> str:
    """The word cut and padded to exactly so many terminal columns."""
    if _columns(word) > columns:
        while _columns(word) > columns - 1:
            word = word[:-1]
        word += "…"
    return word + " " * (columns - _columns(word))
