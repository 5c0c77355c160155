"""A folder of ours as plain LLaVA: read where vwlmm cannot be imported, its logits are ours bit for bit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import published
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vwlmm import load_model
from vwlmm.assembly import assemble
from vwlmm.cli import main

# Runs in a process of its own, away from the repository, in which importing vwlmm is an error.
READER = """
import sys
sys.modules["vwlmm"] = None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
folder, picture, out = sys.argv[1:]
model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert type(model) is LlavaForConditionalGeneration
assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": "\\nWhat colour is this?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=text, images=Image.open(picture), return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    logits = model(**inputs).logits
answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
torch.save({**inputs, "text": text, "logits": logits, "answer": answer}, out)
assert not [name for name in sys.modules if name.startswith("vwlmm.")]
"""


@pytest.fixture
def picture(tmp_path):
    image = Image.new("RGB", (40, 30), (220, 30, 30))
    image.paste((20, 40, 230), (5, 6, 20, 22))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def read_plainly(folder: Path, picture: Path, tmp_path: Path) -> dict:
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", READER, str(folder), str(picture), str(tmp_path / "said.pt")]
    # As many threads as here: sums in another order are not equal bit for bit.
    threads = str(torch.get_num_threads())
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "said.pt")


def same_as_ours(model_folder: Path, picture: Path, said: dict) -> None:
    model, processor = load_model(model_folder, device="cpu")
    text = said.pop("text")
    ours = processor(text=text, images=Image.open(picture), return_tensors="pt", add_special_tokens=False)
    assert torch.equal(ours["input_ids"], said["input_ids"])
    assert torch.equal(ours["pixel_values"], said["pixel_values"])
    with torch.no_grad():
        logits = model(**ours).logits
    assert torch.equal(logits, said["logits"][..., : logits.shape[-1]])
    assert torch.equal(model.generate(**ours, max_new_tokens=6, do_sample=False), said["answer"])


def test_a_trained_model_is_a_plain_llava_where_vwlmm_cannot_be_imported(trained, picture, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "plain"), "--to", "llava"]) == 0
    assert "the VM head is left out" in capsys.readouterr().out
    before, after = load_file(trained / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    before.pop("vm_head.weight")
    assert len(before) == len(after)
    same_as_ours(trained, picture, read_plainly(tmp_path / "plain", picture, tmp_path))


@pytest.mark.parametrize("kind", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
def test_converted_and_exported_the_released_model_keeps_its_logits(kind, picture, tmp_path, capsys):
    torch.manual_seed(5)
    tower = published.save_tower(tmp_path / "clip")
    checkpoint = published.make(tower, str(tmp_path / "clip"), kind=kind)
    tensors = {**checkpoint.tensors, **published.tower_tensors(tower)}
    published.save(checkpoint, tmp_path / "in", tensors=tensors)
    published.save_tokenizer(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "plain")]) == 0
    assert "<image> is word 360 and the tables have 360 rows: they get 384" in capsys.readouterr().out
    said = read_plainly(tmp_path / "plain", picture, tmp_path)
    # The new words are never likelier than <unk>.
    assert torch.equal(said["logits"][..., 360:], said["logits"][..., :1].expand(-1, -1, 24))
    same_as_ours(tmp_path / "ours", picture, said)


@pytest.mark.slow
def test_a_linear_projector_is_written_as_two_layers_and_changes_no_bit(parts, picture, tmp_path):
    model, processor = assemble(parts / "tower", parts / "llm", chat_template="chatml", projector_type="linear")
    model.save_pretrained(tmp_path / "linear")
    processor.save_pretrained(tmp_path / "linear")
    assert main(["export", str(tmp_path / "linear"), str(tmp_path / "plain")]) == 0
    same_as_ours(tmp_path / "linear", picture, read_plainly(tmp_path / "plain", picture, tmp_path))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pseudo_image_features": True}, r"reads pseudo-image features, softmax\(vm_head\(features\)\)"),
        ({"projector_norm": True}, "standardises the vision features"),
    ],
)
def test_what_cannot_be_plain_says_why_and_what_can_be_done(fields, why, parts, tmp_path, capsys):
    model, processor = assemble(parts / "tower", parts / "llm", chat_template="chatml", **fields)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "plain")]) == 1
    said = capsys.readouterr().err.rpartition("vwlmm: ")[2]
    assert re.search(why, said)
    assert "What can be done: serve the folder as it is" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "plain").exists()


def test_a_damaged_model_is_not_exported(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (folder / "model.safetensors").write_bytes(data)
    assert main(["export", str(folder), str(tmp_path / "plain")]) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert not (tmp_path / "plain").exists()
