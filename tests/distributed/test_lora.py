"""Adapters under ZeRO-2 and 3: the adapters of one process, every module that learned beside them, equal logits when merged."""

import pytest
import torch
from ranks import on_ranks
from runs import train as train_rank
from runs import write_recipe
from safetensors.torch import load_file
from small_runs import logs, weights

from vwlmm import load_model

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "learning_rate": 2e-3}
LEARNS = {"lora": LORA, "trainable": {"multi_modal_projector": 1e-3, "vm_head": 1e-3}}
# A live target, so that the VM head learns in this stage as well.
RECIPE = LEARNS | {"objective__detach_target": False, "training__max_steps": 8}


@pytest.fixture(scope="module")
def one(tmp_path_factory, trained, rows):
    folder = tmp_path_factory.mktemp("one")
    assert on_ranks(1, train_rank, write_recipe(folder, "one", trained, rows, **RECIPE)) == ["finished"]
    return folder / "one"


@pytest.mark.parametrize("level", ["zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_adapters_on_two_ranks_are_those_of_one_process_and_their_merged_logits_equal(
    tmp_path, trained, rows, one, level, question
):
    assert (
        on_ranks(2, train_rank, write_recipe(tmp_path, "two", trained, rows, level=level, **RECIPE)) == ["finished"] * 2
    )
    two = tmp_path / "two"
    losses = [[line["loss"] for line in logs(folder) if "loss" in line] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=5e-5)
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    for module in ("lora_A", "lora_B", "multi_modal_projector.linear_1.weight", "vm_head.weight"):
        assert any(module in name for name in found), module
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=name)
    merged = {folder: load_model(folder)[0].eval() for folder in (one, two)}
    adapted = with_adapters(trained, two)
    with torch.no_grad():
        logits = {key: model(**question).logits for key, model in merged.items()}
        torch.testing.assert_close(logits[two], logits[one], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[two], adapted(**question).logits, atol=2e-5, rtol=0)
        start = load_model(trained)[0].eval()
        assert not torch.allclose(logits[two], start(**question).logits, atol=1e-3)
    assert merged[two].vm_head.weight.shape == weights(trained)["vm_head.weight"].shape


def with_adapters(base, adapters):
    """PEFT's own reading: the adapters beside the weights, not merged."""
    import peft

    return peft.PeftModel.from_pretrained(load_model(base)[0], str(adapters)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["zero2", "zero3"])
def test_a_lora_run_cut_on_two_ranks_equals_a_whole_one(tmp_path, trained, rows, level):
    saves = {"training__save_strategy": "steps", "training__save_steps": 2}
    for name, rank in (("whole", train_rank), ("cut", cut_at_5)):
        on_ranks(2, rank, write_recipe(tmp_path, name, trained, rows, level=level, **RECIPE, **saves))
    assert on_ranks(2, train_rank, tmp_path / "cut.yaml") == ["finished"] * 2
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def cut_at_5(file):
    return train_rank(file, cut_after=5)


@pytest.mark.slow
def test_a_stage_that_begins_from_adapters_is_made_whole_and_then_partitioned(tmp_path, trained, rows, one):
    """Full training under ZeRO-3 from a LoRA run: the adapters are merged on the way in."""
    results = []
    for name, ranks, level in (("from one", 1, None), ("from two", 2, "zero3")):
        file = write_recipe(tmp_path, name, one, rows, level=level, training__max_steps=4)
        assert set(on_ranks(ranks, train_rank, file)) == {"finished"}
        results.append(weights(tmp_path / name))
    assert results[0].keys() == results[1].keys()
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-4, rtol=0, msg=key)
