"""Reading a model folder: whole or an error that says what is wrong, never a silently random tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import weights
from transformers import LlavaForConditionalGeneration

from vwlmm import load_model
from vwlmm.loading import has_vm_head


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def plain_llava(copy):
    """The folder as transformers' own LLaVA saves it."""
    model = LlavaForConditionalGeneration.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy)
    return copy


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_folder_is_read_bit_for_bit(trained, tmp_path):
    model, processor = load_model(trained, device="cpu")
    model.save_pretrained(tmp_path)
    before, after = weights(trained), weights(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert processor.image_token_id == model.config.image_token_id


def test_the_dtype_of_the_weights_can_be_chosen(trained):
    assert load_model(trained, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(trained)[0].dtype == torch.float32


def test_configuration_can_be_overridden(trained):
    assert load_model(trained, pseudo_image_features=True)[0].config.pseudo_image_features


@pytest.mark.parametrize("name", ["none", "none/at/all"])
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"A model folder was expected at {tmp_path / name}: there is none"):
        load_model(tmp_path / name)


def test_a_missing_folder_below_this_one_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="A model folder was expected at checkpoints/demo/nothing"):
        load_model("checkpoints/demo/nothing")


def test_a_folder_without_configuration_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json, so it is not a model folder"):
        load_model(tmp_path)


def test_a_plain_llava_is_an_error_that_says_how_to_get_a_vm_head(plain_llava):
    assert not has_vm_head(plain_llava)
    with pytest.raises(
        ValueError, match=r"plain LLaVA without a VM head \(no tensor vm_head.weight\).*model.vm_head_init"
    ):
        load_model(plain_llava)
    assert load_model(plain_llava, require_vm_head=False)[0].vm_head.weight.isfinite().all()


def test_a_missing_tensor_is_an_error_with_its_name(copy):
    change_weights(copy, lambda tensors: tensors.pop("multi_modal_projector.linear_1.weight"))
    with pytest.raises(ValueError, match=r"Missing: model.multi_modal_projector.linear_1.weight. Unexpected: none"):
        load_model(copy)


def test_an_unexpected_tensor_is_an_error_with_its_name(copy):
    change_weights(copy, lambda tensors: tensors.update(another_head=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"Missing: none. Unexpected: another_head"):
        load_model(copy)


def test_a_tensor_of_another_size_is_an_error(copy):
    change_weights(copy, lambda tensors: tensors.update({"vm_head.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=r"another size .*vm_head.weight \(3, 3\), not \(301, 64\)"):
        load_model(copy)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_that_names_the_kinds(trained, device):
    with pytest.raises(ValueError, match=rf"\(cpu, cuda, cuda:0\), got '{device}'"):
        load_model(trained, device=device)


def test_has_vm_head_reads_names_and_the_index_of_shards(trained, copy):
    assert has_vm_head(trained)
    load_model(copy)[0].save_pretrained(copy / "sharded", max_shard_size="200KB")
    assert not (copy / "sharded" / "model.safetensors").exists()
    assert has_vm_head(copy / "sharded")


def test_adapters_of_an_unknown_model_say_so(tmp_path):
    content = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone"), "modules_to_save": ["vm_head"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    assert has_vm_head(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"LoRA adapters to the model in .*gone.*put it back"):
        load_model(tmp_path)


def test_a_published_checkpoint_is_told_to_be_converted_first(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava", "hidden_size": 64}')
    with pytest.raises(ValueError, match=f"`vwlmm convert {tmp_path} OUT`"):
        load_model(tmp_path)


def test_a_model_of_another_kind_is_not_taken_for_a_llava(parts):
    with pytest.raises(ValueError, match="is a 'llama' model: expected a LLaVA"):
        load_model(parts / "llm")
