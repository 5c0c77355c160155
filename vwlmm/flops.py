"""How much arithmetic a training step is: floating-point operations by module, and the peak of known accelerators."""

from typing import Any

import torch
from torch import nn

# Dense bf16 peak, operations a second, from the makers' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_flops() -> float | None:
    """The dense bf16 peak of this process's accelerator, or None where it is not known (a CPU, say)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def num_weights(module: nn.Module) -> int:
    """Parameters that multiply activations: all but embedding tables, which are looked up. Works on ZeRO-3 shards."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = {id(p): p for p in module.parameters() if id(p) not in tables}
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters.values())


class StepFlops:
    """Operations of one forward and backward pass of a visual-word model, from the counts of a batch.

    A weight costs 2 operations a row forward, 2 more for its gradient, and 2 more for the gradient of its input when
    something before it learns. The vision tower is counted; attention's own products are, too.
    """

    def __init__(self, model: Any) -> None:
        inner, config = model.model, model.config
        learns = {name: any(p.requires_grad for p in getattr(inner, name).parameters()) for name in _PARTS}
        self.per_patch = num_weights(inner.vision_tower) * (6 if learns["vision_tower"] else 2)
        self.learns_tower = learns["vision_tower"]
        before_llm = learns["vision_tower"] or learns["multi_modal_projector"]
        backward = before_llm or learns["language_model"]
        self.per_feature = num_weights(inner.multi_modal_projector) * (6 if before_llm else 2)
        self.per_token = num_weights(inner.language_model) * (2 + 2 * backward + 2 * learns["language_model"])
        text, vision = config.text_config, config.vision_config
        # Scores and weighted sum: 2 products of [seq, hidden] with [seq, hidden] a layer, causal half not subtracted.
        self.attention = 4 * text.num_hidden_layers * text.hidden_size * (3 if backward else 1)
        self.vision_attention = 4 * vision.num_hidden_layers * vision.hidden_size * (3 if learns["vision_tower"] else 1)
        head = text.vocab_size * text.hidden_size
        lm_learns = model.lm_head.weight.requires_grad
        vm_learns = model.vm_head.weight.requires_grad
        self.per_text_row = head * (2 + 2 * backward + 2 * lm_learns)
        self.per_visual_row = head * (4 + 2 * backward + 2 * lm_learns + 2 * vm_learns)
        merge = config.projector_patch_merge
        self.features = config.image_seq_length
        self.patches = self.features * merge * merge

    def __call__(self, *, tokens: int, rows: int, images: int, num_items: dict[str, int]) -> float:
        """Operations for `tokens` tokens in `rows` sequences with `images` images, and `num_items` scored rows by term."""
        vision = images * self.patches * (self.per_patch + self.vision_attention * self.patches)
        llm = tokens * (self.per_token + self.attention * tokens / max(rows, 1))
        heads = num_items.get("lm", 0) * self.per_text_row + num_items.get("vm", 0) * self.per_visual_row
        return float(vision + images * self.features * self.per_feature + llm + heads)


_PARTS = ("vision_tower", "multi_modal_projector", "language_model")
