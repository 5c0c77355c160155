"""Configuration of a freeze-align pair: two towers, which projections stand on them, how tokens are pooled."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vwlmm.models.token_projectors import POOLINGS, PROJECTIONS
from vwlmm.models.towers import tower_width


@strict
class DualEncoderConfig(PreTrainedConfig):
    """Two frozen towers and the small projections between them (arXiv 2409.19425); the defaults are the published model.

    Args:
        vision_config, text_config: of the towers.
        vision_tower, text_tower: hub id or folder the towers' weights come from; None when they are saved with the model.
        vision_revision, text_revision: of those hub repositories.
        vision_fingerprint, text_fingerprint: of those weights, so that other ones are noticed.
        stored_towers: the towers (`vision`, `text`) whose weights lie in this model's own folder, because they learned or
            came from nowhere else.
        embed_dim: width of the shared space; 1024 with all-roberta-large-v1, 768 with multilingual MpNet.
        local_vision_projection: of every patch, before pooling: `token`, `mlp`, `linear`, or `identity`, which leaves
            the patches out.
        cls_vision_projection: of the class token, the same choices; `identity` leaves it out. The sum of both is the image.
        vision_projection: of that sum; `identity` in the published model.
        local_text_projection: of every text token, before pooling; `identity` pools the tower's own tokens.
        text_projection: of the pooled text.
        local_vision_weight, cls_vision_weight: factors of the two parts of the image, 1 in the published model.
        vision_pooling: over projected patches: `mean` or `max`.
        text_pooling: over projected tokens: `mean` of all but padding, or `cls`, the one token that stands for the text
            (the first; in CLIP's and SigLIP's text towers the pooled last).
        vision_feature_layer: −1 reads the tower's output, any other number that hidden state.
        projector_dropout: in the projectors.
        towers_in_train_mode: run the frozen towers with their dropout while training, as the released code does; then
            their features cannot be cached.
        temperature_init, temperature_min, temperature_max: the divisor of the cosines, learned and kept in this range.

    What the released configurations call `patch` is `token` here, as in the paper's tables.
    """

    model_type = "dual_encoder"
    sub_configs_defaults: ClassVar = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
    }

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    vision_tower: str | None = None
    text_tower: str | None = None
    vision_revision: str | None = None
    text_revision: str | None = None
    vision_fingerprint: str | None = None
    text_fingerprint: str | None = None
    stored_towers: list[str] | None = None
    embed_dim: int = 1024
    local_vision_projection: str = "token"
    cls_vision_projection: str = "token"
    vision_projection: str = "identity"
    local_text_projection: str = "token"
    text_projection: str = "mlp"
    local_vision_weight: float | int = 1.0
    cls_vision_weight: float | int = 1.0
    vision_pooling: str = "mean"
    text_pooling: str = "mean"
    vision_feature_layer: int = -1
    projector_dropout: float | int = 0.1
    towers_in_train_mode: bool = False
    temperature_init: float | int = 0.07
    temperature_min: float | int = 0.001
    temperature_max: float | int = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("local_vision", "cls_vision", "vision", "local_text", "text"):
            _check(f"{name}_projection", getattr(self, f"{name}_projection"), PROJECTIONS)
        _check("vision_pooling", self.vision_pooling, POOLINGS)
        _check("text_pooling", self.text_pooling, ("mean", "cls"))
        if self.local_vision_projection == self.cls_vision_projection == "identity":
            raise ValueError(
                "local_vision_projection and cls_vision_projection are both identity, which leaves patches and class token "
                "out: give at least one of them token, mlp or linear."
            )
        if not 0 < self.temperature_min <= self.temperature_init <= self.temperature_max:
            raise ValueError(
                "The temperature divides the cosines: expected 0 < temperature_min <= temperature_init <= temperature_max, "
                f"got {self.temperature_min}, {self.temperature_init}, {self.temperature_max}."
            )
        text_width = self.text_width
        if self.local_text_projection == self.text_projection == "identity" and text_width != self.embed_dim:
            raise ValueError(
                f"Without a text projection the text tower's own width ({text_width}) must be embed_dim ({self.embed_dim}): "
                "set embed_dim, or a text_projection."
            )

    @property
    def vision_width(self) -> int:
        """How wide the vision tower's tokens are."""
        return tower_width(self.vision_config)  # type: ignore[arg-type]  # a configuration by now

    @property
    def text_width(self) -> int:
        """How wide the text tower's tokens are."""
        return tower_width(self.text_config)  # type: ignore[arg-type]


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}: got {value!r}.")
