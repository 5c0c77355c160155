"""Two frozen towers that meet in one space through small projectors: freeze-align's model.

model = DualEncoderModel.from_towers("facebook/dinov2-large", "sentence-transformers/all-roberta-large-v1")

Paper: "Harnessing Frozen Unimodal Encoders for Flexible Multimodal Alignment" (arXiv 2409.19425).
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from vwlmm.models.checksums import write_checksums
from vwlmm.models.dual_encoder_configuration import DualEncoderConfig
from vwlmm.models.token_projectors import Temperature, make_projection, masked_mean
from vwlmm.models.towers import (
    KINDS,
    find_tower,
    fingerprint,
    load_tower,
    text_summary,
    text_tokens,
    tower_class,
    tower_width,
    vision_tokens,
)


class PairObjective(Protocol):
    """What this model asks of an objective: the terms of a batch of pairs, and how they make the loss."""

    embed_rows: int | None

    def __call__(self, *, image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor) -> "Sums": ...

    def combine(self, sums: "Sums", num_items: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]: ...


Sums = tuple[dict[str, Tensor], dict[str, Tensor]]  # sums that learn, and sums that are only logged, by name


@dataclass
class DualEncoderOutput(ModelOutput):
    """What a batch of pairs gives.

    Attributes:
        loss: under an objective, or None.
        terms: detached scalars by name, each a sum over the pairs divided by the count it was given.
        logits_per_image: cosines over the temperature, `[images, texts]`; None under an objective.
        logits_per_text: the same, `[texts, images]`.
        image_embeds, text_embeds: `[images, dim]` and `[texts, dim]`, of length 1.
    """

    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class DualEncoderModel(PreTrainedModel):
    """Frozen vision and text towers, and the projectors, head and temperature that join them.

    An image is `mean(project(patches)) + project(class token)`, a text `head(masked mean(project(tokens)))`, both brought
    to length 1. Switches of `DualEncoderConfig` take parts away or exchange them.

    Towers given by hub id or folder are not saved again: `save_pretrained` writes the small parts and the towers' names,
    `from_pretrained` reads them back together. A tower that learned is saved with the model.
    """

    config: DualEncoderConfig
    config_class = DualEncoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Trainer: the objective divides by the counts of the global batch, so nothing is left to divide.
    accepts_loss_kwargs = True

    def __init__(self, config: DualEncoderConfig, leave_out: tuple[str, ...] = ()) -> None:
        """
        Args:
            config: towers and switches.
            leave_out: towers (`vision`, `text`) that are put in afterwards; by default both are built, with random weights.
        """
        super().__init__(config)
        width, dropout = config.embed_dim, config.projector_dropout
        vision, text = config.vision_width, config.text_width
        self.local_vision_projection = make_projection(config.local_vision_projection, vision, width, dropout)
        self.cls_vision_projection = make_projection(config.cls_vision_projection, vision, width, dropout)
        self.vision_projection = make_projection(config.vision_projection, width, width, dropout)
        self.local_text_projection = make_projection(config.local_text_projection, text, width, dropout)
        # The released class of the main runs gives this head the tower's width even where it reads projected tokens;
        # it only works where both are equal, and then this is the same.
        pooled = text if self.local_text_projection is None else width
        self.text_projection = make_projection(config.text_projection, pooled, width, dropout)
        self.temperature = Temperature(config.temperature_init, config.temperature_min, config.temperature_max)
        self.vision_tower: Any = None
        self.text_tower: Any = None
        for kind in KINDS:
            if kind not in leave_out:
                tower_configuration: Any = getattr(config, f"{kind}_config")
                self._put_in(kind, tower_class(tower_configuration, kind)._from_config(tower_configuration))
        self.post_init()

    @classmethod
    def from_towers(
        cls,
        vision: str | Path | PreTrainedModel,
        text: str | Path | PreTrainedModel,
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **switches: Any,
    ) -> Self:
        """An untrained pair: towers by hub id or folder (or loaded already), projectors from torch's global seed.

        Args:
            vision, text: what `load_tower` reads, or models; those have no name to come back from and are saved with the
                pair.
            vision_revision, text_revision: of hub repositories.
            dtype: of all weights.
            switches: fields of `DualEncoderConfig`. `embed_dim` is the text tower's width where it is not given.
        """
        given: dict[str, Any] = {"vision": vision, "text": text}
        revisions = {"vision": vision_revision, "text": text_revision}
        towers: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        for kind, tower in given.items():
            if isinstance(tower, PreTrainedModel):
                towers[kind] = tower
            else:
                towers[kind] = load_tower(tower, kind, revision=revisions[kind], dtype=dtype)
                fields |= {f"{kind}_tower": str(tower), f"{kind}_revision": revisions[kind]}
                fields[f"{kind}_fingerprint"] = fingerprint(towers[kind])
            # A copy: our own __init__ resets the attention implementation of the configurations it is given.
            fields[f"{kind}_config"] = copy.deepcopy(towers[kind].config)
        switches.setdefault("embed_dim", tower_width(fields["text_config"]))
        config = DualEncoderConfig(**fields, **switches)
        model: Any = cls(config, leave_out=KINDS)
        model.to(dtype)
        for kind, tower in towers.items():
            model._put_in(kind, tower.to(dtype).requires_grad_(False))
        return model.eval()

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """The vision tower's features: the class token and, if they are used, the patches, `[images, 1 + patches, width]`."""
        learns = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            tokens = vision_tokens(self.vision_tower, pixel_values, self.config.vision_feature_layer)
        return tokens if self.local_vision_projection is not None else tokens[:, :1]

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The text tower's features, `[texts, tokens, width]`; with `text_pooling: cls` the one token that is used."""
        read: Callable = text_summary if self.config.text_pooling == "cls" else text_tokens
        learns = any(parameter.requires_grad for parameter in self.text_tower.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return read(self.text_tower, input_ids, attention_mask)

    def encode_image(self, pixel_values: Tensor | None = None, *, tokens: Tensor | None = None) -> Tensor:
        """Images in the shared space, of length 1, `[images, dim]`.

        Args:
            pixel_values: `[images, 3, height, width]`.
            tokens: the tower's features instead, as `vision_tokens` gives them: from a cache.
        """
        return nn.functional.normalize(self._project_image(self._vision_tokens_of(pixel_values, tokens)), dim=-1)

    def encode_text(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Texts in the shared space, of length 1, `[texts, dim]`.

        Args:
            input_ids: `[texts, tokens]`.
            attention_mask: `[texts, tokens]`, True or 1 where there is a token; None means everywhere.
            tokens: the tower's features instead, as `text_tokens` gives them: from a cache.
        """
        tokens, mask = self._text_tokens_of(input_ids, attention_mask, tokens)
        return nn.functional.normalize(self._project_text(tokens, mask), dim=-1)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """As transformers' dual encoders: the tower's tokens, and as `pooler_output` the projected image before scaling."""
        tokens = self.vision_tokens(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self._project_image(tokens))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """As transformers' dual encoders: the tower's tokens, and as `pooler_output` the projected text before scaling."""
        tokens, mask = self._text_tokens_of(input_ids, attention_mask, None)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self._project_text(tokens, mask))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        text_features: Tensor | None = None,
        objective: PairObjective | None = None,
        num_items: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> DualEncoderOutput:
        """Pairs: image i belongs to text i. Returns both similarity matrices, or with an objective its loss and terms.

        Args:
            pixel_values, input_ids, attention_mask: as in `encode_image` and `encode_text`.
            vision_features, text_features: the towers' features instead (`vision_tokens`, `text_tokens`).
            objective: an objective of `vwlmm.objectives`.
            num_items: by term, how many pairs the global batch has; this batch's own when None.
        """
        rows = getattr(objective, "embed_rows", None)
        images = _in_pieces(self._embed_images, rows, pixel_values, vision_features)
        texts = _in_pieces(self._embed_texts, rows, input_ids, attention_mask, text_features)
        temperature = self.temperature()
        if objective is None:
            logits = images @ texts.T / temperature
            return DualEncoderOutput(
                logits_per_image=logits, logits_per_text=logits.T, image_embeds=images, text_embeds=texts
            )
        sums = objective(image_embeds=images, text_embeds=texts, temperature=temperature)
        counts = {"contrastive": torch.tensor(len(images), device=images.device)} if num_items is None else num_items
        loss, terms = objective.combine(sums, counts)
        return DualEncoderOutput(loss=loss, terms=terms, image_embeds=images, text_embeds=texts)

    def count_items(self, batch: dict[str, Tensor], objective: PairObjective) -> dict[str, Tensor]:
        """How many pairs this batch has: what the trainer sums over micro-batches and ranks."""
        return {"contrastive": torch.tensor(len(batch["attention_mask"]))}

    def train(self, mode: bool = True) -> Self:
        """Training mode for the projectors; a frozen tower stays in eval mode, without dropout, unless the configuration
        wants the released code's behaviour (`towers_in_train_mode`)."""
        super().train(mode)
        for tower in (self.vision_tower, self.text_tower):
            frozen = tower is not None and not any(parameter.requires_grad for parameter in tower.parameters())
            if mode and frozen and not self.config.towers_in_train_mode:
                tower.eval()
        return self

    def save_pretrained(  # type: ignore[override]  # the arguments not named here are in kwargs
        self,
        save_directory: str | os.PathLike[Any],
        is_main_process: bool = True,
        state_dict: dict[Any, Any] | None = None,
        *,
        include_towers: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Saves projectors, temperature and towers' names; of the towers' weights only those that lie nowhere else.

        Args:
            save_directory, is_main_process, state_dict, kwargs: as in transformers; `push_to_hub=True` publishes.
            include_towers: save both towers as well, so that the folder is whole by itself: for towers that others do not
                have under the same name.
        """
        stored = [kind for kind in KINDS if include_towers or self._must_store(kind)]
        self.config.stored_towers = stored
        left_out = tuple(f"{kind}_tower." for kind in KINDS if kind not in stored)
        whole = self.state_dict() if state_dict is None else state_dict
        kept = {name: tensor for name, tensor in whole.items() if not name.startswith(left_out)} if left_out else whole
        written = super().save_pretrained(save_directory, is_main_process, kept, **kwargs)
        if is_main_process:
            write_checksums(Path(save_directory))
        return written

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads a pair: its own folder or hub repository, and the towers from where its configuration says.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote.
            vision_tower, text_tower: hub id or folder of a tower that has moved since.
            args, kwargs: as in transformers.

        Raises:
            OSError: a tower is not where the configuration says.
            ValueError: a tower has other weights than the one the projectors were trained on; tensors are missing.
        """
        config = kwargs.pop("config", None)
        moved = {f"{kind}_tower": str(kwargs.pop(f"{kind}_tower")) for kind in KINDS if f"{kind}_tower" in kwargs}
        if config is None:
            hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            config = DualEncoderConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        config.update(moved)
        elsewhere = tuple(kind for kind in KINDS if kind not in (config.stored_towers or []))
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, leave_out=elsewhere, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if info["missing_keys"] or info["unexpected_keys"]:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold the tensors of this pair. Missing: "
                f"{sorted(info['missing_keys']) or 'none'}. Unexpected: {sorted(info['unexpected_keys']) or 'none'}."
            )
        for kind in elsewhere:
            tower: Any = find_tower(config, kind, pretrained_model_name_or_path)
            model._put_in(kind, tower.to(model.dtype).to(model.device))
        for kind in KINDS:  # whoever trains says what learns
            getattr(model, f"{kind}_tower").requires_grad_(False)
        model.eval()
        return (model, info) if with_info else model

    def _must_store(self, kind: str) -> bool:
        learns = any(parameter.requires_grad for parameter in getattr(self, f"{kind}_tower").parameters())
        return learns or kind in (self.config.stored_towers or []) or getattr(self.config, f"{kind}_tower") is None

    def _put_in(self, kind: str, tower: PreTrainedModel) -> None:
        setattr(self, f"{kind}_tower", tower)
        setattr(self.config, f"{kind}_config", tower.config)

    def _init_weights(self, module: Any) -> None:
        if hasattr(module, "reset_parameters"):  # torch's own defaults, as in the released code
            module.reset_parameters()

    def _vision_tokens_of(self, pixel_values: Tensor | None, tokens: Tensor | None) -> Tensor:
        if (pixel_values is None) == (tokens is None):
            raise ValueError("An image is given either as pixel_values or as the tower's tokens: got both or neither.")
        return self.vision_tokens(pixel_values) if pixel_values is not None else tokens.to(self.dtype)  # type: ignore[union-attr]

    def _text_tokens_of(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if (input_ids is None) == (tokens is None):
            raise ValueError("A text is given either as input_ids or as the tower's tokens: got both or neither.")
        if attention_mask is None:
            given: Any = input_ids if tokens is None else tokens
            attention_mask = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        tokens = self.text_tokens(input_ids, attention_mask) if input_ids is not None else tokens.to(self.dtype)  # type: ignore[union-attr]
        if self.config.text_pooling == "cls":
            return tokens, tokens.new_ones(tokens.shape[:2])
        return tokens, attention_mask

    def _project_image(self, tokens: Tensor) -> Tensor:
        parts = []
        if self.local_vision_projection is not None:
            patches = self.local_vision_projection(tokens[:, 1:])  # [images, patches, dim]
            pooled = patches.mean(1) if self.config.vision_pooling == "mean" else patches.amax(1)
            parts.append(self.config.local_vision_weight * pooled)
        if self.cls_vision_projection is not None:
            parts.append(self.config.cls_vision_weight * self.cls_vision_projection(tokens[:, 0]))
        image = torch.stack(parts).sum(0)
        return image if self.vision_projection is None else self.vision_projection(image)

    def _project_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        projected = tokens if self.local_text_projection is None else self.local_text_projection(tokens)
        text = masked_mean(projected, mask)  # [texts, dim]
        return text if self.text_projection is None else self.text_projection(text)

    def _embed_images(self, pixel_values: Tensor | None, tokens: Tensor | None) -> Tensor:
        return self.encode_image(pixel_values, tokens=tokens)

    def _embed_texts(self, input_ids: Tensor | None, mask: Tensor | None, tokens: Tensor | None) -> Tensor:
        return self.encode_text(input_ids, mask, tokens=tokens)


_HUB_ARGUMENTS = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")


def _in_pieces(embed: Callable[..., Tensor], rows: int | None, *inputs: Tensor | None) -> Tensor:
    """`embed(*inputs)`, or a few rows at a time, whose activations are dropped and made again in the backward.

    That is what GradCache (arXiv 2101.06983) does by hand: the loss sees all embeddings, the memory holds one piece.
    """
    count = next(len(tensor) for tensor in inputs if tensor is not None)
    if rows is None or rows >= count:
        return embed(*inputs)
    pieces = [[None if t is None else t[start : start + rows] for t in inputs] for start in range(0, count, rows)]
    if not torch.is_grad_enabled():
        return torch.cat([embed(*piece) for piece in pieces])
    return torch.cat([checkpoint(embed, *piece, use_reentrant=False) for piece in pieces])


AutoConfig.register(DualEncoderConfig.model_type, DualEncoderConfig, exist_ok=True)
AutoModel.register(DualEncoderConfig, DualEncoderModel, exist_ok=True)
