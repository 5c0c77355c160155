"""`vwlmm plan`: counts equal those of the real model, and memory follows from them."""

import re

import pytest
from small_runs import recipe, sections

from vwlmm.cli import main
from vwlmm.plan import GIB, activation_bytes, describe_data, describe_model, plan
from vwlmm.trainable import set_trainable
from vwlmm.training import build_model


@pytest.fixture
def planned(trained, rows, tmp_path):
    def make(*overrides):
        return recipe(tmp_path / "recipe.yaml", sections(trained, rows, tmp_path / "out"), *overrides)

    return make


def test_parameters_are_those_of_the_model_that_will_be_trained(planned):
    described = describe_model(planned())
    model, _ = build_model(planned().model)
    set_trainable(model, planned().trainable)
    assert sum(described.by_part.values()) == sum(p.numel() for p in model.parameters())
    assert described.learned == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_new_model_is_counted_from_its_parts_configurations(parts, rows, tmp_path):
    content = sections(tmp_path, rows, tmp_path / "out")
    content["model"] = {
        "vision_tower": str(parts / "tower"),
        "language_model": str(parts / "llm"),
        "chat_template": "chatml",
    }
    new = recipe(tmp_path / "recipe.yaml", content)
    model, _ = build_model(new.model)
    words = 3 * (model.config.text_config.vocab_size - describe_model(new).config.text_config.vocab_size)
    counted = sum(describe_model(new).by_part.values())
    assert counted + words * model.config.text_config.hidden_size == sum(p.numel() for p in model.parameters())


def test_lora_counts_the_adapters_and_what_learns_beside_them(trained, rows, tmp_path):
    content = sections(trained, rows, tmp_path / "out")
    content |= {
        "trainable": {"multi_modal_projector": 1e-3},
        "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj"]},
    }
    described = describe_model(recipe(tmp_path / "recipe.yaml", content))
    model, _ = build_model(recipe(tmp_path / "recipe.yaml", content).model)
    width, layers = model.config.text_config.hidden_size, model.config.text_config.num_hidden_layers
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert described.learned == projector + layers * 4 * (width + width)


def test_lengths_and_images_are_those_of_the_rows(planned):
    data = describe_data(planned(), 200)
    assert (data.num_rows, data.sampled, data.bad, data.most_images) == (8, 8, 0, 2)
    assert data.images == (5 + 2) / 8
    assert data.longest >= data.tokens > data.scored > 0


@pytest.mark.parametrize(("gpus", "epochs", "steps"), [(1, 3, 12), (2, 1, 2)])
def test_steps_follow_from_rows_batch_and_gpus(planned, gpus, epochs, steps):
    changed = planned(
        "training.max_steps=-1", "training.per_device_train_batch_size=2", f"training.num_train_epochs={epochs}"
    )
    assert f"Steps: {steps} of {2 * gpus} rows" in plan(changed, num_gpus=gpus)


def table(text):
    return {
        line[:18].strip(): [float(value) for value in re.findall(r"\d+\.\d+", line)]
        for line in text.splitlines()
        if re.match(r"  (no ZeRO|ZeRO-)", line)
    }


def test_memory_by_level_is_the_states_shared_out(planned, monkeypatch):
    monkeypatch.setattr("vwlmm.plan.GIB", 1.0)  # bytes: a tiny model shows no GiB
    described = describe_model(planned())
    levels = table(plan(planned(), num_gpus=4))
    weights, gradients, states = (4 * sum(described.by_part.values()), 4 * described.learned, 8 * described.learned)
    assert levels["no ZeRO"][:3] == [weights, gradients, states]
    assert levels["ZeRO-1"][:3] == [weights, gradients, states / 4]
    assert levels["ZeRO-2"][:3] == [weights, gradients / 4, states / 4]
    assert weights / 4 < levels["ZeRO-3"][0] < weights
    assert levels["ZeRO-3, offload"][2] == 0


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(planned):
    described, data = describe_model(planned()), describe_data(planned(), 8)
    loss = activation_bytes(described, data, {"per_device_train_batch_size": 0})
    one = activation_bytes(described, data, {"per_device_train_batch_size": 1}) - loss
    assert activation_bytes(described, data, {"per_device_train_batch_size": 4}) - loss == pytest.approx(4 * one)
    checkpointed = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    assert activation_bytes(described, data, checkpointed) - loss < one
    assert one < GIB


def test_the_command_says_what_fits(planned, tmp_path, capsys):
    planned()
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--gpus", "2", "--gpu-memory", "8"]) == 0
    shown = capsys.readouterr().out
    assert "on 2 GPUs of 8 GiB" in shown
    assert shown.count("   fits") == 5
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--gpu-memory", "0.0001"]) == 0
    assert capsys.readouterr().out.count("does not fit") == 5
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--gpus", "0"]) == 1
    assert "--gpus is at least 1: got 0" in capsys.readouterr().err


def test_a_stream_needs_a_number_of_steps(planned):
    streamed = planned("data.streaming=true", "training.max_steps=-1")
    with pytest.raises(ValueError, match=r"training\.max_steps: a stream has no known end"):
        plan(streamed)
