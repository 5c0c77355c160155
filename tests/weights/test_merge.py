"""Adapters and all that was trained beside them become a whole model; what does not fit is an error with the list."""

import json
import shutil
from pathlib import Path

import published
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_runs import sections

from vwlmm import load_model
from vwlmm.cli import main


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, trained, rows):
    """A finished LoRA run of the VM head, the projector and adapters."""
    folder = tmp_path_factory.mktemp("lora")
    content = sections(trained, rows, folder / "run")
    content |= {"lora": {"r": 2}, "trainable": {"multi_modal_projector": 1e-2, "vm_head": 1e-2}}
    content["objective"]["detach_target"] = False  # both heads move
    content["training"]["max_steps"] = 2
    (folder / "lora.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(folder / "lora.yaml")]) == 0
    return folder / "run"


@pytest.fixture
def copy(adapters, tmp_path):
    return shutil.copytree(adapters, tmp_path / "copy")


def changed(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_a_merged_run_is_the_run_with_every_weight_that_learned(adapters, trained, tmp_path, capsys):
    assert main(["merge", str(adapters), str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert "14 weights changed by their adapters" in said
    assert "vm_head.weight" in said
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    base, run, whole = (
        load_model(folder, device="cpu")[0].state_dict() for folder in (trained, adapters, tmp_path / "whole")
    )
    assert all(torch.equal(run[name], whole[name]) for name in run)
    moved = {name for name in base if not torch.equal(base[name], whole[name])}
    assert "vm_head.weight" in moved
    assert sum("multi_modal_projector" in name for name in moved) == 4
    assert sum("self_attn" in name or "mlp" in name for name in moved if "language_model" in name) == 14
    assert (tmp_path / "whole" / "recipe.yaml").is_file()


def test_a_base_that_has_moved_can_be_named(copy, trained, tmp_path):
    config = json.loads((copy / "adapter_config.json").read_text())
    gone = {**config, "base_model_name_or_path": str(tmp_path / "gone")}
    (copy / "adapter_config.json").write_text(json.dumps(gone))
    assert main(["merge", str(copy), str(tmp_path / "whole")]) == 1
    assert not (tmp_path / "whole").exists()
    assert main(["merge", str(copy), str(tmp_path / "whole"), "--base", str(trained)]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("base_model.model.vm_head.weight"), "Missing: base_model.model.vm_head.weight"),
        (lambda t: t.update({"base_model.model.other": torch.ones(2)}), "Unexpected: base_model.model.other"),
        (
            lambda t: t.update({"base_model.model.vm_head.weight": torch.ones(2, 2)}),
            r"vm_head.weight (2, 2), not (301, 64)",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_listed(change, said, copy, tmp_path, capsys):
    changed(copy, change)
    assert main(["merge", str(copy), str(tmp_path / "whole")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_a_flipped_byte_in_the_adapters_is_found(copy, tmp_path, capsys):
    data = bytearray((copy / "adapter_model.safetensors").read_bytes())
    data[-2] ^= 8
    (copy / "adapter_model.safetensors").write_bytes(data)
    assert main(["merge", str(copy), str(tmp_path / "whole")]) == 1
    assert "adapter_model.safetensors is damaged" in capsys.readouterr().err


def test_a_whole_model_has_nothing_to_merge(trained, tmp_path, capsys):
    assert main(["merge", str(trained), str(tmp_path / "whole")]) == 1
    assert "holds no adapter_config.json, so there is nothing to merge" in capsys.readouterr().err


def test_the_folder_of_llavas_lora_script_is_merged_with_its_projector(tmp_path, capsys):
    torch.manual_seed(5)
    tower = published.save_tower(tmp_path / "clip")
    base = published.make(tower, str(tmp_path / "clip"), architectures=["LlamaForCausalLM"], model_type="llama")
    trained = {name: tensor for name, tensor in base.tensors.items() if "mm_projector" in name}
    llm = {n: t for n, t in base.tensors.items() if n not in trained and n != "vm_head.weight"}
    published.save(base, tmp_path / "llm", tensors=llm)
    published.save_tokenizer(tmp_path / "llm")
    lora = tmp_path / "lora"
    lora.mkdir()
    target = "model.layers.1.self_attn.q_proj"
    pair = {"A": torch.randn(3, 64), "B": torch.randn(64, 3)}
    adapters = {f"base_model.model.{target}.lora_{letter}.weight": tensor for letter, tensor in pair.items()}
    torch.save(adapters, lora / "adapter_model.bin")
    torch.save({f"base_model.model.{n}": t for n, t in trained.items()}, lora / "non_lora_trainables.bin")
    config = {"r": 3, "lora_alpha": 6, "base_model_name_or_path": str(tmp_path / "llm"), "peft_type": "LORA"}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    released = {**base.config, "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava"}
    (lora / "config.json").write_text(json.dumps(released))
    assert main(["merge", str(lora), str(tmp_path / "whole")]) == 0
    assert "1 weights changed by their adapters" in capsys.readouterr().out
    model = load_model(tmp_path / "whole", require_vm_head=False)[0].state_dict()
    expected = base.tensors[f"{target}.weight"] + pair["B"] @ pair["A"] * 2.0
    torch.testing.assert_close(model["model.language_model.layers.1.self_attn.q_proj.weight"], expected)
    assert torch.equal(model["model.multi_modal_projector.linear_2.bias"], trained["model.mm_projector.2.bias"])
    adapters["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(3, 64)
    torch.save(adapters, lora / "adapter_model.bin")
    assert main(["merge", str(lora), str(tmp_path / "again")]) == 1
    assert "adapters to weights that" in capsys.readouterr().err
