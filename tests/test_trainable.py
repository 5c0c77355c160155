"""A recipe's `trainable` section on a model: what learns, how fast, and what cannot be meant."""

import pytest
from tiny import tiny_config, tiny_llama
from torch import nn

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.config import LoraConfig
from vwlmm.trainable import add_lora, find_module, set_trainable


@pytest.fixture
def tied():
    return VisualWordLlavaForConditionalGeneration(tiny_config(tiny_llama(tie_word_embeddings=True)))


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rates_by_name(model, rates, decay=0.1):
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    groups = rates.groups(model, decayed, decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_only_what_is_named_learns(model):
    set_trainable(model, {"vm_head": 1e-3, "multi_modal_projector": 1e-4})
    assert {name.split(".linear")[0] for name in learning(model)} == {"vm_head.weight", "model.multi_modal_projector"}


def test_every_learning_parameter_is_in_one_group_with_its_module_s_rate_and_biases_do_not_decay(model):
    rates = set_trainable(model, {"vm_head": 1e-3, "multi_modal_projector": 1e-4})
    found = rates_by_name(model, rates)
    assert found.keys() == learning(model)
    assert found["vm_head.weight"] == (1e-3, 0.1)
    assert found["model.multi_modal_projector.linear_1.weight"] == (1e-4, 0.1)
    assert found["model.multi_modal_projector.linear_1.bias"] == (1e-4, 0.0)


def test_a_longer_path_is_the_more_particular_wish_in_either_order(model):
    for names in (["language_model", "language_model.layers.0"], ["language_model.layers.0", "language_model"]):
        wish = {"language_model": 1e-5, "language_model.layers.0": 1e-6}
        found = rates_by_name(model, set_trainable(model, {name: wish[name] for name in names}))
        assert found["model.language_model.layers.0.mlp.up_proj.weight"][0] == 1e-6
        assert found["model.language_model.layers.1.mlp.up_proj.weight"][0] == 1e-5


@pytest.mark.parametrize("name", ["language_model", "model.language_model"])
def test_a_module_is_found_by_its_path_or_the_end_of_it(model, name):
    assert find_module(model, name) == "model.language_model"


def test_an_unknown_module_is_an_error_with_the_modules_there_are_and_the_nearest(model):
    with pytest.raises(ValueError, match=r"'vm_haed', but the model has: .*vision_tower\. Did you mean 'vm_head'\?"):
        set_trainable(model, {"vm_haed": 1e-3})


def test_a_name_that_fits_several_modules_asks_for_more_of_the_path(model):
    with pytest.raises(ValueError, match=r"'mlp', which could be any of .*: write more of its path"):
        set_trainable(model, {"mlp": 1e-3})


def test_a_module_without_parameters_is_an_error(model):
    with pytest.raises(ValueError, match=r"'multi_modal_projector.act', which holds no parameters"):
        set_trainable(model, {"multi_modal_projector.act": 1e-3})


def test_tied_weights_have_one_rate(tied):
    rates = set_trainable(tied, {"language_model": 1e-5, "lm_head": 1e-5})
    assert rates_by_name(tied, rates)["model.language_model.embed_tokens.weight"][0] == 1e-5


@pytest.mark.parametrize("names", [("language_model", "lm_head"), ("lm_head", "language_model")])
def test_tied_weights_with_two_rates_are_an_error(tied, names):
    with pytest.raises(ValueError, match=r"one weight two learning rates: .*Give both the same rate, or name only one"):
        set_trainable(tied, dict(zip(names, (1e-5, 1e-4), strict=True)))


def test_lora_learns_adapters_on_the_llm_and_the_named_modules_in_full(model):
    wrapped, rates = add_lora(model, LoraConfig(r=2, learning_rate=2e-4), {"vm_head": 1e-3})
    found = rates_by_name(wrapped, rates)
    assert found.keys() == learning(wrapped)
    adapters = {name for name in found if "lora_" in name}
    linear = [m for m in model.model.language_model.modules() if isinstance(m, nn.Linear) and m.in_features != 2]
    assert adapters
    assert all("language_model" in name and found[name][0] == 2e-4 for name in adapters)
    assert len(adapters) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert len(linear) >= 14
    (head,) = found.keys() - adapters
    assert "vm_head" in head
    assert found[head][0] == 1e-3


def test_lora_on_chosen_layers_and_an_unknown_one(model):
    with pytest.raises(ValueError, match=r"'qproj', but the LLM's linear layers are: down_proj, .*q_proj"):
        add_lora(model, LoraConfig(r=2, target_modules=["qproj"]), {})
    wrapped, _ = add_lora(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), {})
    assert {name.split(".lora_")[0].split(".")[-1] for name in learning(wrapped)} == {"q_proj", "v_proj"}
