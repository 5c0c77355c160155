"""CLIP-S and RefCLIP-S (Hessel et al. 2021, arXiv 2104.08718): how well a caption fits its picture, and its references.

Any CLIP folder can be used; the paper's figures are those of CLIP ViT-B/32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

PREFIX = "A photo depicts "  # the paper's, for captions and references alike
WEIGHT = 2.5


class ClipScores(NamedTuple):
    """One figure a picture."""

    clip: list[float]
    ref_clip: list[float]


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP model with its preprocessing."""

    model: Any
    image_processor: Any
    tokenizer: Any
    batch_size: int = 32

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> "ClipScorer":
        """Loads a folder or hub id, in fp32.

        Raises:
            ValueError: it is not a model with image and text embeddings in one space.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModel.from_pretrained(source, dtype=torch.float32).to(device).eval()
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(f"CLIP-S: expected a CLIP model, {source} holds a {type(model).__name__}.")
        # The PIL version: its pixels are the same on every machine.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        # On the right, as CLIP was trained: its positions count from the left, and it reads the text at its end token.
        return cls(model, processor, AutoTokenizer.from_pretrained(source, padding_side="right"))

    def score(
        self, pictures: Sequence[Path], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> ClipScores:
        """CLIP-S: 2.5·max(cos(picture, caption), 0). RefCLIP-S: its harmonic mean with the best reference's cosine."""
        images, texts = self.embed_images(pictures), self.embed_texts(captions)
        clip = WEIGHT * (images * texts).sum(-1).clamp(min=0)  # [pictures]
        flat = self.embed_texts([reference for group in references for reference in group])
        groups = flat.split([len(group) for group in references])
        best = torch.stack([(group @ text).max() for group, text in zip(groups, texts, strict=True)]).clamp(min=0)
        both = clip + best
        # Both zero has no harmonic mean; a caption that fits neither earns nothing.
        ref_clip = torch.where(both > 0, 2 * clip * best / both.clamp(min=torch.finfo(both.dtype).tiny), both)
        return ClipScores(clip.tolist(), ref_clip.tolist())

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Path]) -> Tensor:
        """`[pictures, dim]`, each of length 1."""
        batches = []
        for start in range(0, len(pictures), self.batch_size):
            opened = [Image.open(path).convert("RGB") for path in pictures[start : start + self.batch_size]]
            pixels = self.image_processor(images=opened, return_tensors="pt")["pixel_values"]
            batches.append(self._unit(self.model.get_image_features(pixel_values=pixels.to(self.model.device))))
        return torch.cat(batches)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[texts, dim]`, each of length 1; the prefix is put in front, long captions are cut at the model's length."""
        batches = []
        for start in range(0, len(texts), self.batch_size):
            prefixed = [PREFIX + text for text in texts[start : start + self.batch_size]]
            inputs = self.tokenizer(prefixed, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            batches.append(self._unit(self.model.get_text_features(**inputs)))
        return torch.cat(batches)

    @staticmethod
    def _unit(output: Any) -> Tensor:
        # transformers 5 returns an output object, earlier versions the tensor itself.
        features = output if isinstance(output, Tensor) else output.pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
