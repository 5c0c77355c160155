"""EfficientNet-Lite0 as an `AutoModel` vision tower: a small convolutional network, which transformers does not have.

Architecture: the EfficientNet-Lite release of tensorflow/tpu (EfficientNet, arXiv 1905.11946, without squeeze-and-excite
and with ReLU6).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Kernel, stride, expansion, channels, repeats of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32


class EfficientNetLiteConfig(PreTrainedConfig):
    """Nothing varies but the width of the output."""

    model_type = "efficientnet_lite"

    hidden_size: int = 1280


class EfficientNetLiteModel(PreTrainedModel):
    """`pixel_values` `[images, 3, height, width]` → a feature map `[images, 1280, height / 32, width / 32]` and its mean."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _convolution(3, STEM, 3, stride=2)
        blocks, channels = [], STEM
        for kernel, stride, expansion, out, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if repeat == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = _convolution(channels, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool = True, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The feature map as `last_hidden_state` and its mean as `pooler_output`."""
        features = self.stem(pixel_values)
        for block in self.blocks:
            features = block(features)
        features = self.head(features)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean((2, 3)))

    def _init_weights(self, module: Any) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


class _Block(nn.Module):
    """Expand, depthwise, project; added to its input where it keeps the shape."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _convolution(channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _convolution(inner, out, 1, activation=False)
        self.keeps_shape = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.keeps_shape else out


class _SamePadding(nn.Conv2d):
    """TensorFlow's padding: what is missing to `ceil(size / stride)`, the odd pixel on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        padded = nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(padded)


def _convolution(
    channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    parts = [
        _SamePadding(channels, out, kernel, stride=stride, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*parts, *([nn.ReLU6()] if activation else []))


def rename_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the published checkpoint → ours, without the classifier."""
    top = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    inner = {
        "_expand_conv": "expand.0",
        "_bn0": "expand.1",
        "_depthwise_conv": "depthwise.0",
        "_bn1": "depthwise.1",
        "_project_conv": "project.0",
        "_bn2": "project.1",
    }
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            renamed[f"blocks.{parts[1]}.{inner[parts[2]]}.{parts[3]}"] = tensor
        elif parts[0] in top:
            renamed[f"{top[parts[0]]}.{parts[1]}"] = tensor
    return {name: torch.as_tensor(tensor) for name, tensor in renamed.items()}


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
