"""One encoder alone, with its preprocessing: any vision or text model, and a whole set embedded with it.

images = embed_images(load_vision_encoder("facebook/dinov2-base"), pictures)        # [images, width]
texts = embed_texts(load_text_encoder("sentence-transformers/all-MiniLM-L6-v2"), captions)

Used to choose a pair of encoders by CKA and to build a dual encoder. Paper: freeze-align (arXiv 2409.19425).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from vwlmm.embedded import resolve
from vwlmm.models.token_projectors import masked_mean
from vwlmm.models.towers import (
    fingerprint,
    load_tower,
    read_file,
    sentence_modules,
    text_summary,
    text_tokens,
    transformer_place,
    vision_tokens,
)

IMAGE_POOLINGS = ("mean", "cls", "patches")
TEXT_POOLINGS = ("mean", "cls")


@dataclass
class VisionEncoder:
    """A vision tower and its image processor."""

    model: PreTrainedModel
    processor: Any  # the tower's image processor
    source: str
    revision: str | None = None
    feature_layer: int = -1  # −1 is the tower's output, any other number that hidden state

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """`[images, 3, height, width]`, as the tower reads them."""
        rgb = [image.convert("RGB") for image in images]
        return self.processor(images=rgb, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def tokens(self, images: list[Image.Image]) -> Tensor:
        """The class token (or what stands for it) and the patches, `[images, 1 + patches, width]`."""
        pixels = self.preprocess(images).to(self.model.device, self.model.dtype)
        return vision_tokens(self.model, pixels, self.feature_layer)

    @property
    def fingerprint(self) -> str | None:
        """Sixteen letters that tell these weights from others."""
        return fingerprint(self.model)


@dataclass
class TextEncoder:
    """A text tower and its tokenizer; of a sentence-transformers folder also its pooling, length and last layers."""

    model: PreTrainedModel
    tokenizer: Any
    source: str
    revision: str | None = None
    pooling: str = "mean"
    max_length: int | None = None  # tokens; None: as the tokenizer says
    layers: nn.Module | None = None  # what follows the pooling in a sentence-transformers folder

    def preprocess(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, `[texts, tokens]`, padded to the longest.

        Raises:
            ValueError: a text that is not a string.
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"Text {number} is a {type(text).__name__} ({text!r}), not text: mend or remove the row."
                )
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Pooled as the encoder was trained to be, `[texts, width]`."""
        batch = {name: tensor.to(self.model.device) for name, tensor in self.preprocess(texts).items()}
        if self.pooling == "cls":
            pooled = text_summary(self.model, **batch)[:, 0]
        else:
            pooled = masked_mean(text_tokens(self.model, **batch), batch["attention_mask"])
        return pooled if self.layers is None else self.layers(pooled)

    @property
    def fingerprint(self) -> str | None:
        """Sixteen letters that tell these weights from others."""
        return fingerprint(self.model)


def load_vision_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    feature_layer: int = -1,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> VisionEncoder:
    """A vision tower by hub id or folder, of CLIP-like pairs the vision half, with its image processor.

    Raises:
        OSError: no such folder or repository, or one without a preprocessor_config.json.
    """
    source = str(resolve(source))
    processor = load_image_processor(source, revision)
    model: Any = load_tower(source, "vision", revision=revision, dtype=dtype)
    return VisionEncoder(model.to(_device(device)), processor, source, revision, feature_layer)


def load_text_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> TextEncoder:
    """A text tower by hub id or folder, of CLIP-like pairs the text half, with its tokenizer.

    Args:
        source: any text encoder. A sentence-transformers folder or repository brings its pooling, its maximal length, and
            the layers after the pooling (dense, normalising).
        revision: of a hub repository.
        pooling: `mean` over all tokens or `cls`; None: as the folder says, else mean.
        max_length: in tokens; None: as the folder says.
        dtype: of the weights.
        device: the GPU when there is one, else the CPU.

    Raises:
        OSError: no such folder or repository.
        ValueError: a pooling that is neither, or a sentence-transformers folder with layers that are not known here.
    """
    source = str(resolve(source))
    settings, layers = _sentence_settings(source, revision)
    pooling = pooling or settings.get("pooling", "mean")
    if pooling not in TEXT_POOLINGS:
        raise ValueError(f"{source} pools its tokens by {pooling!r}, but here there are {' and '.join(TEXT_POOLINGS)}.")
    model: Any = load_tower(source, "text", revision=revision, dtype=dtype)
    model = model.to(_device(device))
    tokenizer = load_tokenizer(source, revision)
    length = max_length or settings.get("max_length") or _positions(model, tokenizer)
    return TextEncoder(model, tokenizer, source, revision, pooling, length, layers.to(model.device, model.dtype))


def load_image_processor(source: str | Path, revision: str | None = None) -> Any:
    """The image processor of a vision tower, in its PIL form."""
    return AutoImageProcessor.from_pretrained(str(source), revision=revision, backend="pil")


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a text tower, with some padding token."""
    tokenizer = AutoTokenizer.from_pretrained(str(source), **transformer_place(source, revision))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # masked, so any known token serves
    return tokenizer


def embed_images(
    encoder: VisionEncoder, images: Iterable[Image.Image], *, pooling: str = "mean", batch_size: int = 32
) -> Tensor:
    """A set of pictures by one encoder, `[images, width]` on the CPU in fp32.

    Args:
        encoder: from `load_vision_encoder`.
        images: PIL pictures, also from a generator: only a batch of them is held.
        pooling: `mean` over class token and patches (freeze-align's choice of a pair), `cls`, or `patches` without the
            class token.
        batch_size: pictures at once.

    Raises:
        ValueError: an unknown pooling, or no picture.
    """
    if pooling not in IMAGE_POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(IMAGE_POOLINGS)}: got {pooling!r}.")
    pick = {"mean": slice(None), "cls": slice(0, 1), "patches": slice(1, None)}[pooling]
    rows = [encoder.tokens(batch)[:, pick].mean(1).float().cpu() for batch in _batches(images, batch_size)]
    if not rows:
        raise ValueError("embed_images: expected at least one picture, got none.")
    return torch.cat(rows)


def embed_texts(encoder: TextEncoder, texts: Iterable[str], *, batch_size: int = 64) -> Tensor:
    """A set of texts by one encoder, pooled as it was trained to be, `[texts, width]` on the CPU in fp32.

    Raises:
        ValueError: a text that is not a string, or none.
    """
    rows = [encoder.embed(batch).float().cpu() for batch in _batches(texts, batch_size)]
    if not rows:
        raise ValueError("embed_texts: expected at least one text, got none.")
    return torch.cat(rows)


class Unit(nn.Module):
    """Brings every row to length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=-1)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _sentence_settings(source: str, revision: str | None) -> tuple[dict[str, Any], nn.Sequential]:
    """Pooling and length of a sentence-transformers folder, and what follows the pooling; empty for any other folder."""
    settings: dict[str, Any] = {}
    layers = nn.Sequential()
    for module in sentence_modules(source, revision):
        kind, path = module.get("type", "").rsplit(".", 1)[-1], module.get("path", "")
        if kind == "Transformer":
            length = _json(source, f"{path}/sentence_bert_config.json".lstrip("/"), revision).get("max_seq_length")
            settings["max_length"] = length
        elif kind == "Pooling":
            settings["pooling"] = _pooling(_json(source, f"{path}/config.json", revision))
        elif kind == "Dense":
            layers.append(_dense(source, path, revision))
        elif kind == "Normalize":
            layers.append(Unit())
        else:
            raise ValueError(
                f"{source} ends with a layer of kind {kind!r}; known are Transformer, Pooling, Dense and Normalize: take "
                "another encoder, or its transformer alone."
            )
    return settings, layers


def _pooling(config: dict[str, Any]) -> str:
    """The one pooling that is switched on; `mean` and `cls` are known here, others are named for the error."""
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    on = [modes.get(name, name) for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return on[0] if len(on) == 1 else " + ".join(on) or str(config.get("pooling_mode", "none"))


def _dense(source: str, path: str, revision: str | None) -> nn.Module:
    from safetensors.torch import load_file

    config = _json(source, f"{path}/config.json", revision)
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    file = read_file(source, f"{path}/model.safetensors", revision)
    if file is not None:
        weights = load_file(file)
    else:
        pickled = read_file(source, f"{path}/pytorch_model.bin", revision)
        if pickled is None:
            raise OSError(f"{source} names a dense layer in {path}, but holds no weights for it.")
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
    linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    name = config.get("activation_function", "torch.nn.modules.linear.Identity").rsplit(".", 1)[-1]
    return nn.Sequential(linear, getattr(nn, name)())


def _json(source: str, name: str, revision: str | None) -> dict[str, Any]:
    file = read_file(source, name, revision)
    return {} if file is None else json.loads(file.read_text())


def _positions(model: PreTrainedModel, tokenizer: Any) -> int | None:
    """The most tokens a tower takes: the tokenizer's own limit, or the positions it has; None if neither says."""
    # Tokenizers without a limit say 10^30. RoBERTa counts positions from its padding token on.
    known = [tokenizer.model_max_length] if tokenizer.model_max_length < 10**9 else []
    positions = getattr(model.config, "max_position_embeddings", None)
    offset = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
    return min([*known, *([positions - offset] if positions else [])], default=None)


def _device(name: str | torch.device | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
