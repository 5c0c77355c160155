"""What the miniature of freeze-align is compared with: transformers' dual encoder, pooled outputs and a linear layer each."""

from typing import Any

import torch
from torch import Tensor
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel, get_scheduler, set_seed
from transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder import image_text_contrastive_loss

from vwlmm.config import Recipe
from vwlmm.models import DualEncoderModel
from vwlmm.models.towers import load_tower


class PooledPair:
    """The pooled outputs that `VisionTextDualEncoderModel` reads, made from what is cached, and checked against its own.

    Raises:
        ValueError: what is made from the cache is not what the towers give.
    """

    def __init__(self, model: DualEncoderModel, bank: Any, pairs: Any) -> None:
        self.model, self.bank = model, bank
        self.seen: dict[str, Tensor] = {}  # by cache folder: all seeds share the towers
        pair = pairs.pairs[0]
        pixels = _pixels(model, pairs.pairs.open(pair))
        with torch.no_grad():
            expected = model.vision_tower(pixel_values=pixels).pooler_output
        difference = (self.image(pairs.vision[0].float()[None]) - expected).abs().max() / expected.abs().max()
        if difference > 0.02:  # the cache is in fp16
            raise ValueError(f"Pooled outputs made from the cache differ from the tower's own by {difference:.3f}.")

    @torch.no_grad()
    def image(self, tokens: Tensor) -> Tensor:
        """`pooler_output` of the vision tower from cached tokens: of a ViT read at an inner layer, by the layers left."""
        layer = self.model.config.vision_feature_layer
        if layer == -1:
            return tokens[:, 0]
        for block in self.model.vision_tower.encoder.layer[layer:]:
            tokens = block(tokens)
        return self.model.vision_tower.layernorm(tokens)[:, 0]

    def images(self, pairs: Any) -> Tensor:
        """Pooled outputs of a cached set, `[images, width]`."""
        folder = str(pairs.vision.folder)
        if folder not in self.seen:
            self.seen[folder] = self._images(pairs)
        return self.seen[folder]

    def _images(self, pairs: Any) -> Tensor:
        chunks = [range(start, min(start + 32, len(pairs))) for start in range(0, len(pairs), 32)]
        return torch.cat([self.image(torch.stack([pairs.vision[i].float() for i in chunk])) for chunk in chunks])

    def texts(self, texts: list[str]) -> Tensor:
        """Pooled outputs of texts, `[texts, width]`."""
        self.bank.learn(texts)
        return torch.stack([self.bank.pooled[text] for text in texts])


def _pixels(model: DualEncoderModel, image: Any) -> Tensor:
    from vwlmm.encoders import load_image_processor

    processor = load_image_processor(str(model.config.vision_tower), model.config.vision_revision)
    return processor(images=image, return_tensors="pt")["pixel_values"]


class Baseline:
    """A trained `VisionTextDualEncoderModel` that reads pooled outputs."""

    def __init__(self, model: VisionTextDualEncoderModel, pooled: PooledPair) -> None:
        self.model, self.pooled = model, pooled

    @torch.no_grad()
    def images(self, pairs: Any) -> Tensor:
        """Pictures of a cached set, of length 1, `[images, dim]`."""
        return torch.nn.functional.normalize(self.model.visual_projection(self.pooled.images(pairs)), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Texts, of length 1, `[texts, dim]`."""
        return torch.nn.functional.normalize(self.model.text_projection(self.pooled.texts(texts)), dim=-1)


def train_baseline(pooled: PooledPair, pairs: Any, recipe: Recipe, seed: int) -> Baseline:
    """transformers' dual encoder over the same towers, frozen: as many steps, batch, rate, decay and schedule as the recipe."""
    config = pooled.model.config
    towers = {kind: load_tower(getattr(config, f"{kind}_tower"), kind) for kind in ("vision", "text")}
    set_seed(seed)
    settings = VisionTextDualEncoderConfig.from_vision_text_configs(towers["vision"].config, towers["text"].config)
    model = VisionTextDualEncoderModel(settings, towers["vision"], towers["text"])
    images = pooled.images(pairs)
    texts = pooled.texts([pairs.pairs[index].caption for index in range(len(pairs))])
    training = recipe.training
    matrices = [model.visual_projection.weight, model.text_projection.weight]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training["weight_decay"]},
            {"params": [model.logit_scale], "weight_decay": 0.0},
        ],
        lr=training["learning_rate"],
    )
    steps, size = training["max_steps"], training["per_device_train_batch_size"]
    schedule = get_scheduler(
        training["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=training["warmup_steps"],
        num_training_steps=steps,
        scheduler_specific_kwargs=training["lr_scheduler_kwargs"],
    )
    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = torch.randperm(len(pairs)).tolist()
        rows, order = order[:size], order[size:]
        optimizer.zero_grad()
        contrastive(model, images[rows], texts[rows]).backward()
        optimizer.step()
        schedule.step()
    return Baseline(model.eval(), pooled)


def contrastive(model: VisionTextDualEncoderModel, images: Tensor, texts: Tensor) -> Tensor:
    """The loss that `VisionTextDualEncoderModel` returns with `return_loss=True`, from its towers' pooled outputs."""
    images, texts = model.visual_projection(images), model.text_projection(texts)
    images, texts = images / images.norm(dim=-1, keepdim=True), texts / texts.norm(dim=-1, keepdim=True)
    return image_text_contrastive_loss(texts @ images.T * model.logit_scale.exp())
