"""What a run on pairs needs beside the trainer: two towers and their processor, cached features, retrieval after training.

Used by `vwlmm.training` for recipes whose objective is `freeze_align` (arXiv 2409.19425).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor, TrainerCallback, TrainingArguments, VisionTextDualEncoderProcessor

from vwlmm.data.augment import Augmentation
from vwlmm.data.bad_row import BadRow
from vwlmm.data.feature_cache import CacheKey, FeatureCache, make_cache
from vwlmm.data.pairs import PairCollator, PairDataset, Pairs, set_image_size
from vwlmm.data.pairs_config import PairDataConfig
from vwlmm.embedded import resolve
from vwlmm.encoders import load_image_processor, load_tokenizer
from vwlmm.models import DualEncoderModel
from vwlmm.models.towers import fingerprint
from vwlmm.pair_recipe import PairModelConfig
from vwlmm.retrieval import recall
from vwlmm.weights.check import refuse_damage

logger = logging.getLogger(__name__)

CACHE_BATCH = 32  # rows that pass a tower at once when features are made


def build_pair(config: PairModelConfig) -> tuple[DualEncoderModel, Any]:
    """The model and processor that a recipe's `model` section describes."""
    dtype = getattr(torch, config.dtype)
    if config.init_from is not None:
        source = str(resolve(config.init_from))
        refuse_damage(source)
        return DualEncoderModel.from_pretrained(source, dtype=dtype), build_pair_processor(config)
    assert config.vision_tower  # PairModelConfig has checked both
    assert config.text_tower
    vision, text = str(resolve(config.vision_tower)), str(resolve(config.text_tower))
    model = DualEncoderModel.from_towers(
        vision,
        text,
        vision_revision=config.vision_revision,
        text_revision=config.text_revision,
        dtype=dtype,
        **config.switches,
    )
    return model, build_pair_processor(config)


def build_pair_processor(config: PairModelConfig) -> Any:
    """The processor that `build_pair` would give, without loading weights."""
    if config.init_from is not None:
        return AutoProcessor.from_pretrained(str(resolve(config.init_from)))
    assert config.vision_tower  # PairModelConfig has checked both
    assert config.text_tower
    return VisionTextDualEncoderProcessor(
        load_image_processor(resolve(config.vision_tower), config.vision_revision),
        load_tokenizer(resolve(config.text_tower), config.text_revision),
    )


def load_pairs(
    config: PairDataConfig, model: DualEncoderModel, processor: Any, arguments: TrainingArguments
) -> tuple[Dataset, Dataset | None]:
    """Training and validation pairs of a recipe, from cached features where `data.cache` names a folder.

    Raises:
        ValueError: the cache holds something else, or towers that learn or drop out cannot be cached.
    """
    set_image_size(processor.image_processor, config)
    if config.validation_path and arguments.dataloader_drop_last:
        raise ValueError(
            "training.dataloader_drop_last would leave out validation pairs as well: leave it out, or data.validation_path."
        )
    if config.cache:
        _check_cacheable(model)
    augment = Augmentation() if config.augmentation == "freeze_align" else None
    train = _dataset(config, config.path, "train", model, processor, arguments, augment)
    if not config.validation_path:
        return train, None
    return train, _dataset(config, config.validation_path, "validation", model, processor, arguments, None)


class CachedPairs(Dataset):
    """Pairs as the towers' features; a row that could not be read when the cache was made is a `bad_row` again."""

    def __init__(self, pairs: Pairs, vision: FeatureCache, text: FeatureCache) -> None:
        self.pairs, self.vision, self.text = pairs, vision, text

    def __len__(self) -> int:
        return len(self.vision)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, caption = self.vision[index], self.text[index]
        if len(image) and len(caption):
            return {"vision_features": image, "text_features": caption}
        try:
            self.pairs.open(self.pairs[index])
        except BadRow as bad:
            return {"bad_row": bad}
        raise ValueError(
            f"Row {index} could not be read when the feature cache {self.vision.folder} was made, and now it can: delete the "
            "cache to have it made again."
        )


class RetrievalCallback(TrainerCallback):
    """After every evaluation: recall at 1, 5 and 10 both ways over the validation pairs, beside their loss."""

    def __init__(self, validation: Dataset, collator: Callable, batch_size: int) -> None:
        self.loader: DataLoader = DataLoader(validation, batch_size=batch_size, collate_fn=collator)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        inner = model.module if hasattr(model, "module") else model
        images, texts = embed_pairs(inner, self.loader)
        found = {f"eval_{name}": value for name, value in recall(images, texts).items()}
        metrics |= found
        state.log_history.append({**found, "step": state.global_step})
        if state.is_world_process_zero:
            logger.warning("retrieval over %d pairs: %s", len(images), {k: round(v, 4) for k, v in found.items()})


@torch.no_grad()
def embed_pairs(model: DualEncoderModel, batches: Any) -> tuple[Tensor, Tensor]:
    """All pairs of some batches in the shared space, `[pairs, dim]` each, in fp32 on the CPU."""
    was_training = model.training
    model.eval()
    images, texts = [], []
    for batch in batches:
        outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        images.append(outputs.image_embeds.float().cpu())
        texts.append(outputs.text_embeds.float().cpu())
    model.train(was_training)
    return torch.cat(images), torch.cat(texts)


def _check_cacheable(model: DualEncoderModel) -> None:
    towers = {"vision_tower": model.vision_tower, "text_tower": model.text_tower}
    learning = [name for name, tower in towers.items() if any(p.requires_grad for p in tower.parameters())]
    if learning:
        raise ValueError(
            f"data.cache keeps features of frozen towers, and {' and '.join(learning)} learns: leave it out."
        )
    if model.config.towers_in_train_mode:
        raise ValueError(
            "data.cache keeps one feature of every text, and towers_in_train_mode draws a new one every time (dropout inside "
            "the frozen tower): leave out one of the two."
        )


def _dataset(
    config: PairDataConfig,
    path: str,
    split: str,
    model: DualEncoderModel,
    processor: Any,
    arguments: TrainingArguments,
    augment: Callable | None,
) -> Dataset:
    pairs = Pairs(config, path)
    if split == "validation":
        pairs.length = len(pairs.records)  # max_rows is about training
    plain = PairDataset(pairs, processor, augment)
    if not config.cache:
        return plain
    folder, digest = Path(config.cache) / split, _digest_pairs(pairs)
    # One process of a machine makes the features, the others wait and read them.
    with arguments.main_process_first(desc="feature cache"):
        vision = _open_or_make(folder / "vision", "vision", model, plain, digest, arguments)
        text = _open_or_make(folder / "text", "text", model, plain, digest, arguments)
    return CachedPairs(pairs, vision, text)


def _open_or_make(
    folder: Path, kind: str, model: DualEncoderModel, pairs: PairDataset, digest: str, arguments: TrainingArguments
) -> FeatureCache:
    key = cache_key(kind, model, pairs, digest)
    if not (folder / "key.json").is_file():
        make = _make_vision if kind == "vision" else _make_text
        make(folder, key, model, pairs, arguments)
    return FeatureCache(folder, key)


def cache_key(kind: str, model: DualEncoderModel, pairs: PairDataset, digest: str) -> CacheKey:
    """What the features of these pairs (`digest` of their rows) by one tower of this model are of."""
    config, processor = model.config, pairs.processor
    if kind == "vision":
        tokens = "class token" if model.local_vision_projection is None else "class token and patches"
        reading = f"layer {config.vision_feature_layer}, {tokens}"
        preprocessing = _digest(json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str))
    else:
        reading = f"pooling {config.text_pooling}"
        tokenizer = processor.tokenizer
        probe = tokenizer("The quick brown fox, 12 jumps – über the lazy dog's back!")["input_ids"]
        preprocessing = _digest(f"{type(tokenizer).__name__} {len(tokenizer)} {probe} {pairs.pairs.config.max_length}")
    return CacheKey(
        tower=str(getattr(config, f"{kind}_tower")),
        revision=getattr(config, f"{kind}_revision"),
        fingerprint=fingerprint(getattr(model, f"{kind}_tower")),
        reading=reading,
        preprocessing=preprocessing,
        dtype=pairs.pairs.config.cache_dtype,
        pairs=digest,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_pairs(pairs: Pairs) -> str:
    """Of captions and pictures in order; a picture in a file counts by its name and size, so that none is opened."""
    digest = hashlib.sha256()
    for pair in _readable(pairs):
        if isinstance(pair, BadRow):
            digest.update(f"bad {pair.row_id}".encode())
            continue
        image = pair.image
        if isinstance(image, dict):
            image = image.get("bytes") or Path(str(image.get("path")))
        if isinstance(image, Path):
            image = f"{image.name} {image.stat().st_size if image.is_file() else None}".encode()
        digest.update(hashlib.sha256(image).digest() + pair.caption.encode())
    return digest.hexdigest()[:16]


def _readable(pairs: Pairs) -> Iterator[Any]:
    for index in range(len(pairs)):
        try:
            yield pairs[index]
        except BadRow as bad:
            if pairs.config.on_bad_row == "stop":
                raise
            yield bad


def _make_vision(
    folder: Path, key: CacheKey, model: DualEncoderModel, pairs: PairDataset, arguments: TrainingArguments
) -> None:
    loader: DataLoader = DataLoader(
        pairs,
        batch_size=CACHE_BATCH,
        num_workers=arguments.dataloader_num_workers,
        collate_fn=partial(_column, "pixel_values"),
    )
    batches = iter(loader)
    device, width = arguments.device, model.config.vision_width
    tower = model.vision_tower.to(device)
    first = next(batches)
    blank = next((pixels for pixels in first if pixels is not None), None)
    if blank is None:
        raise ValueError(f"The first {len(first)} pictures cannot be read: are data.path and data.images right?")

    def embed(pixels: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return model.vision_tokens(torch.stack(pixels).to(device, tower.dtype))

    tokens = embed([blank]).shape[1]

    def rows() -> Iterator[Tensor]:
        for batch in [first], batches:
            for pixels in batch:
                good = [image for image in pixels if image is not None]
                features = iter(embed(good)) if good else iter(())
                yield from (torch.empty(0, width) if image is None else next(features) for image in pixels)

    make_cache(folder, key, np.full(len(pairs), tokens), width, rows())


def _make_text(
    folder: Path, key: CacheKey, model: DualEncoderModel, pairs: PairDataset, arguments: TrainingArguments
) -> None:
    tokenizer, length = pairs.processor.tokenizer, pairs.pairs.config.max_length
    device, width = arguments.device, model.config.text_width
    model.text_tower.to(device)
    captions = [None if isinstance(pair, BadRow) else pair.caption for pair in _readable(pairs.pairs)]
    ids = [None if c is None else tokenizer(c, truncation=True, max_length=length)["input_ids"] for c in captions]
    single = model.config.text_pooling == "cls"
    tokens = np.array([0 if row is None else 1 if single else len(row) for row in ids])

    @torch.no_grad()
    def rows() -> Iterator[Tensor]:
        for start in range(0, len(ids), CACHE_BATCH):
            chunk = ids[start : start + CACHE_BATCH]
            good = [{"input_ids": row} for row in chunk if row is not None]
            features: Iterator[Tensor] = iter(())
            if good:
                batch = tokenizer.pad(good, return_tensors="pt", padding_side="right").to(device)
                states = model.text_tokens(batch["input_ids"], batch["attention_mask"])
                features = iter(states)
            for row, count in zip(chunk, tokens[start : start + CACHE_BATCH], strict=True):
                yield torch.empty(0, width) if row is None else next(features)[: int(count)]

    make_cache(folder, key, tokens, width, rows())


def _column(name: str, examples: list[dict[str, Any]]) -> list[Tensor | None]:
    return [example.get(name) for example in examples]


def make_collator(processor: Any, config: PairDataConfig, output_dir: Path) -> PairCollator:
    """The collator of a run; bad rows go to a list in its folder where the recipe says so."""
    return PairCollator(processor, quarantine=output_dir if config.on_bad_row == "quarantine" else None)
