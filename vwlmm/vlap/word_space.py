"""Pictures and texts as points among the LLM's word embeddings: nearest words, and retrieval in both directions.

Source: VLAP (arXiv 2404.09632): a picture is the mean of its projected features, a caption the mean of its states.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vwlmm.data.images import ImageSource, load_image
from vwlmm.objectives.vlap import mean_word
from vwlmm.objectives.word_prior import word_mask


@torch.inference_mode()
def image_features(model: Any, processor: Any, images: Sequence[ImageSource], batch_size: int = 32) -> Tensor:
    """The projected features of pictures, `[images, patches, hidden]`, fp32."""
    parts = []
    for start in range(0, len(images), batch_size):
        pictures = [load_image(image) for image in images[start : start + batch_size]]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        parts.append(torch.stack(list(model.get_image_features(pixels, return_dict=True).pooler_output)).float())
    return torch.cat(parts)


class WordSpace:
    """A model's word embeddings as directions, and where pictures and texts lie among them.

    Args:
        model, processor: from `load_model`.
        captions: what a text is the mean of: `contextual` states or `word_embeddings`; as the model was trained.
        centred: take the mean word off every word, and off pictures and texts: some words are near everything.
    """

    def __init__(self, model: Any, processor: Any, *, captions: str = "contextual", centred: bool = False) -> None:
        self.model, self.processor, self.captions = model, processor, captions
        words = model.get_input_embeddings().weight.detach().float()
        self.is_word = word_mask(processor.tokenizer, len(words)).to(words.device)
        self.mean = words[self.is_word].mean(0) if centred else words.new_zeros(words.shape[1])
        self.directions = F.normalize(words - self.mean, dim=-1)  # [vocab, hidden]

    def features(self, images: Sequence[ImageSource], batch_size: int = 32) -> Tensor:
        """The projected features of pictures, `[images, patches, hidden]`, fp32."""
        return image_features(self.model, self.processor, images, batch_size)

    def images(self, images: Sequence[ImageSource], batch_size: int = 32) -> Tensor:
        """Pictures as unit vectors, `[images, hidden]`."""
        return self.point(self.features(images, batch_size).mean(1))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Texts as unit vectors, `[texts, hidden]`.

        Raises:
            ValueError: a text is empty.
        """
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(f"Text {empty[0]} is empty: a caption has at least one word.")
        tokenizer, parts = self.processor.tokenizer, []
        for start in range(0, len(texts), batch_size):
            # As in the caption template, where a blank stands between "A picture of" and the caption.
            batch = [" " + text.strip() for text in texts[start : start + batch_size]]
            encoded = tokenizer(batch, add_special_tokens=False, padding=True, return_tensors="pt").to(
                self.model.device
            )
            states, ids = self.model.text_states(encoded["input_ids"], encoded["attention_mask"], self.captions)
            # The mean is not divided, so that the words' mean counts once a word: take the length off first.
            length = (ids >= 0).sum(1, keepdim=True)
            parts.append(mean_word(states.float(), ids, self.is_word) / length)
        return self.point(torch.cat(parts))

    def point(self, vectors: Tensor) -> Tensor:
        """Vectors of the embedding space as directions, `[…, hidden]`."""
        return F.normalize(vectors - self.mean, dim=-1)

    def cosines(self, directions: Tensor) -> Tensor:
        """Cosine to every word, `[…, vocab]`; −1 for ids that are no words."""
        return (directions @ self.directions.T).masked_fill(~self.is_word, -1.0)

    def nearest(self, directions: Tensor, count: int = 10) -> list[list[tuple[str, float]]]:
        """The `count` nearest different words of each row of `[rows, hidden]`, with their cosines.

        Tokens that differ in case or in the blank before them are one word here.
        """
        found = []
        for row in self.cosines(directions):
            words: dict[str, float] = {}
            top = row.topk(min(len(row), 8 * count))
            for token, cosine in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                words.setdefault(self.processor.tokenizer.decode([token]).strip().lower(), cosine)
            found.append(list(words.items())[:count])
        return found

    def word_scores(self, temperature: float = 0.01) -> Callable[[Tensor], Tensor]:
        """For `visual_word_map(scores=…)`: cosine over temperature of projected features `[patches, hidden]`."""
        return lambda features: self.cosines(self.point(features.float())) / temperature


def retrieval_scores(images: Tensor, texts: Tensor, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k in both directions by cosine, row i of one belonging to row i of the other.

    Args:
        images, texts: unit vectors, `[pairs, hidden]`. A text that occurs twice is right both times.

    Raises:
        ValueError: different numbers of images and texts, or none.
    """
    if len(images) != len(texts) or not len(images):
        raise ValueError(f"Retrieval needs pairs, as many images as texts: got {len(images)} and {len(texts)}.")
    return recall(images @ texts.T, texts @ texts.T > 1 - 1e-6, at)


def recall(table: Tensor, same: Tensor, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k in both directions from scores `[images, texts]`; `same[i, j]` is True where text j is right for image i."""
    scores = {}
    for name, ranked, right in (("image_to_text", table, same), ("text_to_image", table.T, same.T)):
        for k in at:
            best = ranked.topk(min(k, ranked.shape[1]), dim=1).indices
            scores[f"{name}_r{k}"] = float(right.gather(1, best).any(1).float().mean())
    return scores


def caption_kind(model_folder: str | Path) -> str:
    """What captions are the mean of in the run that left a folder, by the recipe beside its weights; else contextual."""
    import yaml

    recipe = Path(model_folder) / "recipe.yaml"
    if not recipe.is_file():
        return "contextual"
    return (yaml.safe_load(recipe.read_text()).get("objective") or {}).get("captions", "contextual")
