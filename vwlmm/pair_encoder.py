"""A trained pair of towers with its preprocessing: pictures and texts as vectors of one space.

pair = load_pair_encoder("checkpoints/freeze_align/embedded"); pair.embed_texts(["a cat"]) @ pair.embed_images([picture]).T

Reads our dual encoders and any CLIP-like model that transformers knows. Used by curation and zero-shot evaluation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel

from vwlmm.embedded import resolve
from vwlmm.encoders import load_image_processor, load_tokenizer
from vwlmm.models import DualEncoderConfig, DualEncoderModel
from vwlmm.segmentation import patch_embeddings
from vwlmm.weights.check import refuse_damage

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
MAX_LENGTH = 77  # tokens, as in freeze-align and CLIP


@dataclass
class PairEncoder:
    """Both sides of a model that puts pictures and texts into one space."""

    model: PreTrainedModel
    image_processor: Any
    tokenizer: Any
    source: str
    max_length: int = MAX_LENGTH

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image], *, batch_size: int = 32) -> Tensor:
        """Pictures in the shared space, of length 1, `[images, dim]` in fp32 on the CPU.

        Raises:
            ValueError: no picture.
        """
        rows = [self._embed_images(batch) for batch in _batches(images, batch_size)]
        if not rows:
            raise ValueError("Expected at least one picture to embed, got none.")
        return torch.cat(rows)

    @torch.no_grad()
    def embed_texts(self, texts: Iterable[str], *, batch_size: int = 64) -> Tensor:
        """Texts in the shared space, of length 1, `[texts, dim]` in fp32 on the CPU.

        Raises:
            ValueError: a text that is not a string, or none.
        """
        rows = [self._embed_texts(batch) for batch in _batches(texts, batch_size)]
        if not rows:
            raise ValueError("Expected at least one text to embed, got none.")
        return torch.cat(rows)

    @torch.no_grad()
    def embed_patches(self, images: list[Image.Image], *, cls_residual: bool = True) -> Tensor:
        """Every patch in the shared space, not scaled, `[images, rows, columns, dim]`: for zero-shot segmentation.

        Raises:
            ValueError: not a dual encoder of ours that projects patches, or patches that form no grid.
        """
        return patch_embeddings(self.model, self.pixels(images), cls_residual=cls_residual).float().cpu()

    def pixels(self, images: list[Image.Image]) -> Tensor:
        """Pictures as the model reads them, `[images, 3, height, width]`."""
        rgb = [image.convert("RGB") for image in images]
        pixels = self.image_processor(images=rgb, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and, where the tokenizer makes one, `attention_mask`, `[texts, tokens]`.

        Raises:
            ValueError: a text that is not a string.
        """
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise ValueError(f"Expected text to embed, got {type(wrong[0]).__name__} {wrong[0]!r}.")
        # SigLIP was trained on texts padded to their full length and reads shorter ones differently.
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        batch = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        return _unit(self.model.get_image_features(pixel_values=self.pixels(images)))  # type: ignore[operator]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return _unit(self.model.get_text_features(**self.tokens(texts)))  # type: ignore[operator]


def load_pair_encoder(
    source: str | Path, *, dtype: str | torch.dtype = torch.float32, device: str | torch.device | None = None
) -> PairEncoder:
    """A pair by folder or hub id: one of our dual encoders, or CLIP, SigLIP and their like.

    A dual encoder's preprocessing is read from its own folder, or else from its towers'.

    Raises:
        OSError: no such folder or repository.
        ValueError: a model without both `get_image_features` and `get_text_features`.
    """
    source = str(resolve(source))
    config = AutoConfig.from_pretrained(source)
    refuse_damage(source)
    model: Any
    if isinstance(config, DualEncoderConfig):
        model = DualEncoderModel.from_pretrained(source, dtype=dtype)
    else:
        model = AutoModel.from_pretrained(source, dtype=dtype)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(
            f"{source} ({config.model_type}) does not put pictures and texts into one space: expected a dual encoder from "
            "a freeze_align recipe, or a CLIP-like model."
        )
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    image_processor, tokenizer = _preprocessing(source, config)
    return PairEncoder(model, image_processor, tokenizer, source, min(MAX_LENGTH, tokenizer.model_max_length))


def _preprocessing(source: str, config: Any) -> tuple[Any, Any]:
    """Image processor and tokenizer: of the pair's own folder, or of its towers where it was saved without."""
    local = Path(source)
    has_none = local.is_dir() and not any((local / name).is_file() for name in PROCESSOR_FILES)
    if has_none and isinstance(config, DualEncoderConfig) and config.vision_tower and config.text_tower:
        vision, text = str(resolve(config.vision_tower)), str(resolve(config.text_tower))
        return load_image_processor(vision, config.vision_revision), load_tokenizer(text, config.text_revision)
    processor = AutoProcessor.from_pretrained(source, backend="pil")
    return processor.image_processor, processor.tokenizer


def _unit(features: Any) -> Tensor:
    """The pooled features of length 1; transformers returns them in an output object, older models as a tensor."""
    return normalize(getattr(features, "pooler_output", features).float(), dim=-1).cpu()


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
