"""Pictures and texts in one space, for benchmarks that compare them; which space depends on the model.

A dual encoder has one. A visual-word model names its patches, so a picture and a text are compared as what they say.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vwlmm.benchmarks import Question
from vwlmm.evaluation.generation import Pictures


class VisualWordEmbedder:
    """Pictures as the mean visual word of their patches, texts as the words in them; fulfils `engines.Embedder`.

    Both are distributions over the vocabulary, tokens that differ only in a blank or capitals taken together. The root
    of a distribution has length 1, and the cosine of two roots is their Bhattacharyya coefficient: 1 for equal
    distributions, 0 for those without a common word. The paper does no retrieval; this is our definition.

    Args:
        model: a visual-word model with a trained VM head.
        processor: its processor.
        pictures: where names of pictures lead.
    """

    def __init__(self, model: Any, processor: Any, pictures: Pictures) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.words, self.num_words = words_of(processor.tokenizer, model.vm_head.weight.shape[0])

    @torch.no_grad()
    def embed_images(self, images: Sequence[str | bytes]) -> Tensor:
        """`[images, words]`, fp32, each of length 1."""
        opened = self.pictures.load(Question("(picture to embed)", (), tuple(images)))
        pixels = self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        rows = []
        for features in self.model.get_image_features(pixels, return_dict=True).pooler_output:
            chances = self.model.vm_head(features).float().softmax(-1).mean(0)  # [vocab]
            rows.append(chances.new_zeros(self.num_words).index_add_(0, self.words.to(chances.device), chances))
        return torch.stack(rows).sqrt().cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, words]`, fp32, each of length 1."""
        rows = torch.zeros(len(texts), self.num_words)
        for row, text in zip(rows, texts, strict=True):
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"A text to embed needs words, got {text!r}.")
            row.index_add_(0, self.words[torch.tensor(ids)], torch.full((len(ids),), 1 / len(ids)))
        return rows.sqrt()


def words_of(tokenizer: Any, vocab_size: int) -> tuple[Tensor, int]:
    """For every token of the vocabulary the number of its word, `[vocab]`, and how many words there are."""
    spelt = tokenizer.batch_decode([[token] for token in range(min(vocab_size, len(tokenizer)))])
    spelt += [f"<unused {token}>" for token in range(len(spelt), vocab_size)]
    numbers: dict[str, int] = {}
    # A token of blanks only stays itself; so do parts of letters, which all decode to the same replacement character.
    keys = [text.strip().lower() or text for text in spelt]
    keys = [f"<token {token}>" if "\ufffd" in key else key for token, key in enumerate(keys)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys]), len(numbers)
