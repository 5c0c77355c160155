"""Pictures and texts in one space, for benchmarks that compare them; which space depends on the model.

A dual encoder has one of its own. A visual-word model names its patches, so a picture and a text are compared as what they
say; a LLaVA without a VM head puts pictures among the word embeddings (as VLAP trains it to), and is compared there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vwlmm.benchmarks import Question
from vwlmm.evaluation.generation import Pictures, greedy
from vwlmm.evaluation.prompts import writes_begin_token
from vwlmm.segmentation import patch_embeddings

PICTURE_OF = "A picture of"  # what the language model goes on with behind the result of image arithmetic
DESCRIPTION_TOKENS = 16


def make_embedder(model: Any, processor: Any, pictures: Pictures, *, has_words: bool) -> Any:
    """What embeds for this model: its own space, its visual words, or its word embeddings.

    Args:
        has_words: the model has a trained VM head.
    """
    if hasattr(model, "encode_image") and hasattr(model, "encode_text"):
        return DualEncoderEmbedder(model, processor, pictures)
    kind = VisualWordEmbedder if has_words else WordEmbedder
    return kind(model, processor, pictures)


class DualEncoderEmbedder:
    """The shared space of a dual encoder; fulfils `engines.Embedder` and `PatchEmbedder`."""

    def __init__(self, model: Any, processor: Any, pictures: Pictures) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures

    @torch.no_grad()
    def embed_images(self, images: Sequence[str | bytes]) -> Tensor:
        """`[images, dim]`, fp32, each of length 1."""
        pixels = self.processor.image_processor(load_all(self.pictures, images), return_tensors="pt")["pixel_values"]
        return _unit(self.model.encode_image(pixels.to(self.model.device, self.model.dtype)))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, dim]`, fp32, each of length 1."""
        tokens = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        return _unit(self.model.encode_text(tokens["input_ids"], tokens["attention_mask"]))

    @torch.no_grad()
    def embed_patches(self, image: str | bytes) -> Tensor:
        """`[rows, columns, dim]`, fp32: the projected patches as they are, which freeze-align multiplies with texts."""
        pixels = self.processor.image_processor(load_all(self.pictures, [image]), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        return patch_embeddings(self.model, pixels, cls_residual=False)[0].float().cpu()


class WordEmbedder:
    """The language model's word embeddings: a picture is the mean of its projected patches, a text that of its words.

    Fulfils `engines.Embedder`, `PatchEmbedder` and `Arithmetician`.

    Args:
        model: a LLaVA model on its device.
        processor: its processor.
        pictures: where names of pictures lead.
    """

    def __init__(self, model: Any, processor: Any, pictures: Pictures) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.words, self.num_words = words_of(processor.tokenizer, model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def features(self, images: Sequence[str | bytes]) -> Tensor:
        """What the projector makes of pictures, `[images, patches, hidden]`."""
        pixels = self.processor.image_processor(load_all(self.pictures, images), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        return torch.stack(list(self.model.get_image_features(pixels, return_dict=True).pooler_output))

    def embed_images(self, images: Sequence[str | bytes]) -> Tensor:
        """`[images, hidden]`, fp32, each of length 1."""
        return _unit(self.features(images).float().mean(1))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, hidden]`, fp32, each of length 1."""
        table = self.model.get_input_embeddings()
        ids = [torch.tensor(tokens, device=self.model.device) for tokens in self._tokens(texts)]
        return _unit(torch.stack([table(tokens).float().mean(0) for tokens in ids]))

    def embed_patches(self, image: str | bytes) -> Tensor:
        """`[rows, columns, hidden]`, fp32, each of length 1."""
        return square(_unit(self.features([image])[0]))

    def nearest_words(self, plus: Sequence[str | bytes], minus: Sequence[str | bytes], num_words: int) -> list[str]:
        """The words whose scores for Σ plus − Σ minus are highest, the mean over patches being a picture's embedding."""
        scores = self.word_scores(self._sum(plus, minus).float().mean(0))
        found: dict[int, str] = {}
        for token in scores.argsort(descending=True).tolist():
            spelt = self.processor.tokenizer.decode([token]).strip().lower()
            if any(letter.isalpha() for letter in spelt):
                found.setdefault(int(self.words[token]), spelt)
            if len(found) == num_words:
                break
        return list(found.values())

    def word_scores(self, embedding: Tensor) -> Tensor:
        """Cosine of an embedding `[hidden]` with every word embedding, `[vocab]`."""
        table = self.model.get_input_embeddings().weight.detach().float()
        return nn.functional.normalize(table, dim=-1) @ nn.functional.normalize(embedding, dim=-1)

    @torch.no_grad()
    def describe(self, plus: Sequence[str | bytes], minus: Sequence[str | bytes]) -> str:
        """What the language model writes behind Σ plus − Σ minus, patch by patch, and "A picture of"."""
        features = self._sum(plus, minus)
        tokenizer = self.processor.tokenizer
        text = (tokenizer.bos_token or "") + self.processor.image_token * len(features) + PICTURE_OF
        added = not writes_begin_token(self.processor, text)
        ids = tokenizer(text, add_special_tokens=added, return_tensors="pt")["input_ids"].to(self.model.device)
        is_image = ids == self.processor.image_token_id
        given = self.model.pseudo_image_features(features) if self.model.config.pseudo_image_features else features
        # An image token may lie outside the table; its embedding is replaced.
        words = self.model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        embeddings = words.masked_scatter(is_image.unsqueeze(-1), given.to(words.dtype))
        options = greedy(self.model, tokenizer, DESCRIPTION_TOKENS)
        mask = torch.ones_like(ids)
        written = self.model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)  # only the new tokens
        return str(tokenizer.decode(written[0], skip_special_tokens=True)).strip()

    def _sum(self, plus: Sequence[str | bytes], minus: Sequence[str | bytes]) -> Tensor:
        """Σ plus − Σ minus, patch by patch, `[patches, hidden]`."""
        total = self.features(plus).sum(0)
        return total - self.features(minus).sum(0) if minus else total

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"A text to embed needs words, got {text!r}.")
        return rows


class VisualWordEmbedder(WordEmbedder):
    """Pictures as the mean visual word of their patches, texts as the words in them.

    Both are distributions over the vocabulary, tokens that differ only in a blank or capitals taken together. The root
    of a distribution has length 1, and the cosine of two roots is their Bhattacharyya coefficient: 1 for equal
    distributions, 0 for those without a common word. The paper does no retrieval; this is our definition.
    """

    def embed_images(self, images: Sequence[str | bytes]) -> Tensor:
        """`[images, words]`, fp32, each of length 1."""
        return torch.stack([self._merged(self._chances(rows)).mean(0) for rows in self.features(images)]).sqrt().cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, words]`, fp32, each of length 1."""
        rows = torch.zeros(len(texts), self.num_words)
        for row, tokens in zip(rows, self._tokens(texts), strict=True):
            row.index_add_(0, self.words[torch.tensor(tokens)], torch.full((len(tokens),), 1 / len(tokens)))
        return rows.sqrt()

    def embed_patches(self, image: str | bytes) -> Tensor:
        """`[rows, columns, words]`, fp32, each of length 1."""
        return square(self._merged(self._chances(self.features([image])[0])).sqrt().cpu())

    @torch.no_grad()
    def word_scores(self, embedding: Tensor) -> Tensor:
        """The VM head's logits, `[vocab]`."""
        return self.model.vm_head(embedding.to(self.model.dtype)).float()

    @torch.no_grad()
    def _chances(self, features: Tensor) -> Tensor:
        return self.model.vm_head(features).float().softmax(-1)  # [patches, vocab]

    def _merged(self, chances: Tensor) -> Tensor:
        """`[patches, vocab]` -> `[patches, words]`."""
        words = self.words[: chances.shape[1]].to(chances.device)
        return chances.new_zeros(len(chances), self.num_words).index_add_(1, words, chances)


def square(patches: Tensor) -> Tensor:
    """`[patches, dim]` as `[rows, columns, dim]`."""
    side = math.isqrt(len(patches))
    if side * side != len(patches):
        raise ValueError(f"Patches form a square, but this model has {len(patches)} of them.")
    return patches.view(side, side, -1)


def words_of(tokenizer: Any, vocab_size: int) -> tuple[Tensor, int]:
    """For every token of the vocabulary the number of its word, `[vocab]`, and how many words there are."""
    spelt = tokenizer.batch_decode([[token] for token in range(min(vocab_size, len(tokenizer)))])
    spelt += [f"<unused {token}>" for token in range(len(spelt), vocab_size)]
    # A token of blanks stays itself; so do parts of letters, which all decode to the same replacement character.
    keys = [
        f"<token {token}>" if "\ufffd" in text else text.strip().lower() or text for token, text in enumerate(spelt)
    ]
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys]), len(numbers)


def load_all(pictures: Pictures, images: Sequence[str | bytes]) -> list[Any]:
    """The pictures of several names, decoded side by side."""
    asked = [Question(str(image) if isinstance(image, str) else "(embedded)", (), (image,)) for image in images]
    return [picture for future in pictures.start(asked) for picture in future.result()]


def _unit(rows: Tensor) -> Tensor:
    return nn.functional.normalize(rows.float(), dim=-1).cpu()
