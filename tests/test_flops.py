"""The arithmetic of a training step, against counts made by hand."""

import pytest
import torch
from tiny import HIDDEN, PATCHES, VOCAB, tiny_clip, tiny_config, tiny_llama
from torch import nn

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.flops import StepFlops, num_weights, peak_flops
from vwlmm.trainable import set_trainable

COUNTS = {"tokens": 40, "rows": 2, "images": 3, "num_items": {"lm": 10, "vm": 12}}
EVERYTHING = dict.fromkeys(("vision_tower", "multi_modal_projector", "language_model", "lm_head", "vm_head"), 0.001)


def test_a_step_that_trains_projector_and_llm_costs_what_a_count_by_hand_says(model):
    set_trainable(model, {"multi_modal_projector": 1e-3, "language_model": 1e-3})
    # CLIP, 32 wide, 3 layers: 4 square matrices and an MLP of 64 each, with biases, 2 norms; patches of 3·14·14.
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64
    tower = 3 * layer + 3 * 14 * 14 * 32 + 32 + 2 * 64  # with the class token and the norms before and after
    projector = (32 * 64 + 64) + (64 * 64 + 64)
    # Llama, 64 wide, 2 layers: q and o, k and v of half the width, a gated MLP of 96, 2 norms; 1 norm at the end.
    llm = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64
    head = VOCAB * HIDDEN
    assert num_weights(model.model.vision_tower) == tower
    assert num_weights(model.model.language_model) == llm
    expected = (
        3 * PATCHES * tower * 2  # frozen, nothing before it: forward only
        + 3 * PATCHES * (4 * 3 * 32) * PATCHES  # its attention: scores and sum, over 4 patches
        + 3 * PATCHES * projector * 6
        + 40 * llm * 6
        + 40 * (4 * 2 * 64) * 3 * 20  # attention over 20 tokens a row, forward and backward
        + 10 * head * (2 + 2)  # the LM head is frozen, but what is before it learns
        + 12 * head * (2 + 2 + 2)  # both heads read a patch, one gradient flows on
    )
    assert StepFlops(model)(**COUNTS) == expected


def test_a_frozen_part_costs_less_than_one_that_learns(model):
    set_trainable(model, EVERYTHING)
    everything = StepFlops(model)(**COUNTS)
    costs = []
    for part in ("language_model", "vision_tower", "lm_head", "vm_head", "multi_modal_projector"):
        set_trainable(model, {name: rate for name, rate in EVERYTHING.items() if name != part})
        costs.append(StepFlops(model)(**COUNTS))
    assert all(cost < everything for cost in costs[:-1])
    set_trainable(model, {"vm_head": 1e-3})
    assert StepFlops(model)(**COUNTS) < 0.6 * everything


def test_merged_patches_are_counted_in_the_tower_before_and_in_the_llm_after_merging():
    vision = tiny_clip(image_size=56)
    build = VisualWordLlavaForConditionalGeneration
    plain = StepFlops(build(tiny_config(vision=vision, image_seq_length=16)))
    merged = StepFlops(build(tiny_config(vision=vision, image_seq_length=4, projector_patch_merge=2)))
    assert plain.patches == merged.patches == 16
    assert (plain.features, merged.features) == (16, 4)


def test_word_tables_are_looked_up_and_not_multiplied():
    tied = VisualWordLlavaForConditionalGeneration(tiny_config(tiny_llama(tie_word_embeddings=True)))
    table = tied.get_input_embeddings().weight
    everything = sum(parameter.numel() for parameter in tied.model.language_model.parameters())
    assert num_weights(tied.model.language_model) == everything - table.numel()
    assert num_weights(nn.Linear(3, 4, bias=False)) == 12


def test_the_peak_of_an_accelerator_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops() == pytest.approx(989e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Something new")
    assert peak_flops() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_flops() is None
