"""From vision features to the LLM's embedding space: LLaVA's two-layer projector, or one linear layer, with patch merging."""

import math

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vwlmm.models.configuration import VisualWordLlavaConfig


class VisualWordProjector(LlavaMultiModalProjector):
    """Projects patch features into the space of the word embeddings; with the default configuration it is LLaVA's own.

    Shapes: `[images, patches, vision]` -> `[images, patches / merge², hidden]`.

    Raises:
        ValueError: patches are to be merged but do not lie on a square grid that the merge divides.
    """

    def __init__(self, config: VisualWordLlavaConfig) -> None:
        super().__init__(config)
        self.patch_merge = config.projector_patch_merge
        # A tower with register tokens puts them between the class token, which LLaVA drops, and the patches.
        self.num_register_tokens = getattr(config.vision_config, "num_register_tokens", 0)
        vision_features = self.linear_1.in_features * self.patch_merge**2
        hidden = self.linear_1.out_features
        if self.patch_merge > 1:
            self.linear_1 = nn.Linear(vision_features, hidden, bias=config.multimodal_projector_bias)
        if config.projector_type == "linear":
            self.act = nn.Identity()
            self.linear_2 = nn.Identity()  # type: ignore[assignment]
        self.norm: nn.Module = FeatureStandardization(vision_features) if config.projector_norm else nn.Identity()
        # Without a bias: one vector added to every patch would drown what tells them apart.
        self.output_norm: nn.Module = nn.LayerNorm(hidden, bias=False) if config.projector_norm else nn.Identity()

    def forward(self, image_features: Tensor) -> Tensor:
        features = image_features[:, self.num_register_tokens :]
        if self.patch_merge > 1:
            features = merge_patches(features, self.patch_merge)
        return self.output_norm(super().forward(self.norm(features)))


class FeatureStandardization(nn.Module):
    """Every channel to mean 0 and deviation 1 over the pictures it was measured on; a fixed part of the model, not learned.

    A tower's middle layer has channels of very different size and a large common mean, which hides what tells patches apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Takes mean and deviation of every channel from features `[…, dim]`."""
        rows = features.flatten(0, -2).float()
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0).clamp(min=1e-6))


def merge_patches(features: Tensor, merge: int) -> Tensor:
    """Concatenates the features of each `merge`×`merge` square of neighbouring patches, squares in raster order.

    Shapes: `[images, side², dim]` -> `[images, (side / merge)², merge² · dim]`.
    """
    images, patches, dim = features.shape
    side = math.isqrt(patches)
    if side * side != patches or side % merge:
        raise ValueError(
            f"projector_patch_merge {merge} needs a square grid of patches whose side it divides, got {patches} patches: "
            "choose another image size or merge."
        )
    squares = features.reshape(images, side // merge, merge, side // merge, merge, dim)
    return squares.transpose(2, 3).reshape(images, (side // merge) ** 2, merge * merge * dim)
