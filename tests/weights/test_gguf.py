"""GGUF: llama.cpp's converter makes the LLM's file, the tower's file is ours, and both are compared with the model."""

import stat
from pathlib import Path

import gguf
import published
import pytest
import torch

from vwlmm.cli import main

# Does what llama.cpp's converter does to a Llama: its names, and queries and keys in its order.
CONVERTER = """
import os, sys
from pathlib import Path
import gguf, torch
from safetensors.torch import load_file
folder, _, out, _, outtype = sys.argv[1:]
if os.environ.get("BREAK") == "fail":
    sys.exit("Model LlavaForConditionalGeneration is not supported")
assert "{% generation" not in (Path(folder) / "chat_template.jinja").read_text()
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
writer = gguf.GGUFWriter(out, "llama")
for name, tensor in load_file(Path(folder) / "model.safetensors").items():
    if not name.startswith("language_model."):
        continue
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
    if heads and os.environ.get("BREAK") != "order":
        tensor = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
    if "v_proj" in name and os.environ.get("BREAK") == "missing":
        continue
    found = names.get_name(name.removeprefix("language_model."), try_suffixes=(".weight",))
    half = outtype == "f16" and tensor.ndim > 1
    writer.add_tensor(found, (tensor.half() if half else tensor).contiguous().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    torch.manual_seed(5)
    tower = published.save_tower(folder / "clip")
    checkpoint = published.make(tower, str(folder / "clip"))
    tensors = {**checkpoint.tensors, **published.tower_tensors(tower)}
    published.save(checkpoint, folder / "in", tensors=tensors)
    published.save_tokenizer(folder / "in")
    assert main(["convert", str(folder / "in"), str(folder / "model")]) == 0
    return folder / "model"


@pytest.fixture
def converter(tmp_path) -> Path:
    path = tmp_path / "convert_hf_to_gguf.py"
    path.write_text(CONVERTER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def export(model, out, converter, *more) -> int:
    return main(["export", str(model), str(out), "--to", "gguf", "--converter", str(converter), *more])


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_both_files_hold_the_model(outtype, model, converter, tmp_path, capsys):
    assert export(model, tmp_path / "out", converter, "--outtype", outtype) == 0
    assert "read back and equal to the model's" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mmproj.gguf", "model.gguf"]
    reader = gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "clip"
    assert fields["clip.projector_type"] == "mlp"
    # Read after two of three blocks; clip.cpp finds the same whether it knows the key or stops before the last block.
    assert fields["clip.vision.feature_layer"] == [2]
    assert fields["clip.vision.block_count"] == 3
    names = {tensor.name for tensor in reader.tensors}
    assert {"mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias", "v.class_embd", "v.patch_embd.weight"} <= names
    assert not [name for name in names if "post_ln" in name]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("order", "attn_k.weight differs from the model's tensor"),
        ("missing", "Missing: ['blk.0.attn_v.weight', 'blk.1.attn_v.weight']"),
        ("fail", "llama.cpp's converter failed: Model LlavaForConditionalGeneration is not supported"),
    ],
)
def test_a_file_that_differs_is_no_export(broken, told, model, converter, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BREAK", broken)
    assert export(model, tmp_path / "out", converter) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_converter_it_says_where_to_get_it(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model), str(tmp_path / "out"), "--to", "gguf"]) == 1
    assert "name the file with --converter" in capsys.readouterr().err
    assert export(model, tmp_path / "out", tmp_path / "none.py") == 1
    assert "there is no such file" in capsys.readouterr().err
