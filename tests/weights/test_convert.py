"""Every published layout converts, and gives the released code's tokens, logits and answers."""

import json
from pathlib import Path

import published
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vwlmm import load_model
from vwlmm.cli import main
from vwlmm.weights.tower import find_tower

QUESTION = "What colour is this?"


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("clip")
    return published.save_tower(folder), str(folder)


@pytest.fixture
def picture():
    image = Image.new("RGB", (40, 30), (220, 30, 30))
    image.paste((20, 40, 230), (5, 6, 20, 22))
    return image


def release(
    folder: Path, tower, *, legacy=False, inside=True, weights="bin", drop=(), **changes
) -> published.Checkpoint:
    checkpoint = published.make(*tower, **changes)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in drop}
    if inside:
        tensors |= published.tower_tensors(tower[0])
    published.save(checkpoint, folder, tensors=tensors, kind=weights)
    published.save_tokenizer(folder, legacy=legacy)
    return checkpoint


def compare(checkpoint: published.Checkpoint, source: Path, out: Path, picture, *, legacy=False) -> None:
    """Tokens, pixels, logits and greedy answer of the converted folder against the released computation."""
    model, processor = load_model(out, device="cpu", require_vm_head=False)
    text = published.prompt(checkpoint.kind, QUESTION)
    ids = published.released_ids(source, text, legacy=legacy)
    content = [{"type": "image"}, {"type": "text", "text": f"\n{QUESTION}"}]
    ours = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert ours == f"<s>{text}"
    inputs = processor(text=ours, images=picture, return_tensors="pt", add_special_tokens=False)
    merged = inputs["input_ids"][0].tolist()
    image = model.config.image_token_id
    assert merged.count(image) == 4
    place = merged.index(image)
    assert [*merged[:place], published.IMAGE, *merged[place + 4 :]] == ids
    pixels = published.clip_processor()(published.padded(picture), return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], pixels)
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits, checkpoint.logits(ids, pixels), atol=2e-4, rtol=0)
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(merged) :].tolist()
    assert answer == checkpoint.greedy(ids, pixels, 8)


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
@pytest.mark.parametrize("legacy", [True, False, None])
def test_the_released_model_gives_its_tokens_logits_and_answers(weights, legacy, tower, picture, tmp_path):
    checkpoint = release(tmp_path / "in", tower, weights=weights, legacy=legacy)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    compare(checkpoint, tmp_path / "in", tmp_path / "out", picture, legacy=legacy is not False)
    model, _ = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(model.vm_head.weight, checkpoint.tensors["vm_head.weight"])


@pytest.mark.parametrize("changes", [{"kind": "mistral"}, {"pseudo": True}])
def test_mistral_and_pseudo_image_models_are_told_apart_by_their_class(changes, tower, picture, tmp_path):
    checkpoint = release(tmp_path / "in", tower, **changes)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    compare(checkpoint, tmp_path / "in", tmp_path / "out", picture)
    model, _ = load_model(tmp_path / "out", device="cpu")
    assert model.config.text_config.model_type == checkpoint.kind
    assert model.config.pseudo_image_features == checkpoint.pseudo


def test_a_tower_that_is_not_in_the_shards_comes_from_its_own_folder(tower, picture, tmp_path, capsys):
    checkpoint = release(tmp_path / "in", tower, inside=False)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "the vision tower is not in the checkpoint" in capsys.readouterr().out
    compare(checkpoint, tmp_path / "in", tmp_path / "out", picture)


def test_an_original_llava_gets_a_vm_head(tower, picture, tmp_path, capsys):
    checkpoint = release(tmp_path / "in", tower, drop=["vm_head.weight"], architectures=["LlavaLlamaForCausalLM"])
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--vm-head-init", "lm_head"]) == 0
    assert "created vm_head.weight: a copy of the lm_head table" in capsys.readouterr().out
    compare(checkpoint, tmp_path / "in", tmp_path / "out", picture)
    model, _ = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(model.vm_head.weight, checkpoint.tensors["lm_head.weight"])
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "random")]) == 0
    drawn = load_model(tmp_path / "random", device="cpu")[0].vm_head.weight
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_projector_alone_is_joined_to_its_llm_and_tower(tower, picture, tmp_path):
    checkpoint = published.make(*tower)
    llm = {n: t for n, t in checkpoint.tensors.items() if "mm_projector" not in n and "vm_head" not in n}
    alone = published.make(*tower, architectures=["LlamaForCausalLM"], model_type="llama")
    published.save(alone, tmp_path / "llm", tensors=llm, kind="safetensors")
    published.save_tokenizer(tmp_path / "llm")
    (tmp_path / "stage1").mkdir()
    projector = {n: t for n, t in checkpoint.tensors.items() if "mm_projector" in n}
    torch.save(projector, tmp_path / "stage1" / "mm_projector.bin")
    config = {**checkpoint.config, "_name_or_path": str(tmp_path / "llm"), "architectures": ["LlavaLlamaForCausalLM"]}
    (tmp_path / "stage1" / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(tmp_path / "stage1"), str(tmp_path / "out")]) == 0
    compare(checkpoint, tmp_path / "llm", tmp_path / "out", picture)
    (tmp_path / "stage1" / "config.json").unlink()
    parts = ["--language-model", str(tmp_path / "llm"), "--vision-tower", tower[1]]
    file = str(tmp_path / "stage1" / "mm_projector.bin")
    assert main(["convert", file, str(tmp_path / "again"), *parts]) == 0
    before, after = (load_model(tmp_path / name, require_vm_head=False)[0].state_dict() for name in ("out", "again"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_report_has_every_key_of_the_source_once(tower, tmp_path):
    checkpoint = published.make(*tower)
    tensors = {**checkpoint.tensors, **published.tower_tensors(tower[0])}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    published.save(checkpoint, tmp_path / "in", tensors=tensors)
    published.save_tokenizer(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert sorted([*report["mapped"], *report["ignored"]]) == sorted(tensors)
    assert report["ignored"] == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "a buffer that the model computes itself"
    }
    assert report["created"] == {}
    assert "mm_use_im_patch_token" in report["config_ignored"]


def test_shards_are_as_small_as_asked(tower, tmp_path):
    release(tmp_path / "in", tower)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--max-shard-gb", "0.0002"]) == 0
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 210_000 for shard in shards)
    load_model(tmp_path / "out")


def test_a_llava_hf_folder_keeps_its_logits_and_gets_a_vm_head(trained, picture, tmp_path):
    plain = LlavaForConditionalGeneration.from_pretrained(trained).eval()
    plain.save_pretrained(tmp_path / "in")
    AutoProcessor.from_pretrained(trained).save_pretrained(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--vm-head-init", "word_embeddings"]) == 0
    model, processor = load_model(tmp_path / "out", device="cpu")
    inputs = processor(text="<image>\nWhat?", images=picture, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert torch.equal(model.vm_head.weight, plain.get_input_embeddings().weight)
    # A second time it is one of ours, and nothing is made.
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again"), "--dtype", "bfloat16"]) == 0
    report = json.loads((tmp_path / "again" / "conversion.json").read_text())
    assert report["layout"] == "visual-word LLaVA folder"
    assert report["created"] == {}
    again = load_model(tmp_path / "again", device="cpu")[0]
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.vm_head.weight, model.vm_head.weight.bfloat16())


def test_a_linear_projector_is_read_as_one(tower, picture, tmp_path):
    checkpoint = published.make(*tower, mm_projector_type="linear")
    first = {name: checkpoint.tensors.pop(f"model.mm_projector.0.{name}") for name in ("weight", "bias")}
    for name in ("weight", "bias"):
        checkpoint.tensors.pop(f"model.mm_projector.2.{name}")
        checkpoint.tensors[f"model.mm_projector.{name}"] = first[name]
    published.save(checkpoint, tmp_path / "in", tensors={**checkpoint.tensors, **published.tower_tensors(tower[0])})
    published.save_tokenizer(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    compare(checkpoint, tmp_path / "in", tmp_path / "out", picture)


def test_start_and_end_of_a_picture_are_written_when_the_checkpoint_learned_so(tower, tmp_path):
    checkpoint = release(tmp_path / "in", tower, mm_use_im_start_end=True)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 1  # its tokenizer does not know the words
    tables = ("model.embed_tokens.weight", "lm_head.weight", "vm_head.weight")
    longer = {name: torch.cat([checkpoint.tensors[name], torch.zeros(2, 64)]) for name in tables}
    tensors = {**checkpoint.tensors, **longer, **published.tower_tensors(tower[0])}
    checkpoint.config["vocab_size"] = 362
    published.save(checkpoint, tmp_path / "in", tensors=tensors)
    (tmp_path / "in" / "added_tokens.json").write_text('{"<im_start>": 360, "<im_end>": 361}')
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    _, processor = load_model(tmp_path / "out")
    said = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    assert "<im_start><image><im_end>" in said


def test_the_tower_of_llava_is_known_without_a_network_when_its_weights_are_there(tmp_path):
    name = "openai/clip-vit-large-patch14-336"
    tower = find_tower(name, source=tmp_path, image_aspect_ratio="pad", has_weights=True)
    assert (tower.config.image_size, tower.config.num_attention_heads) == (336, 16)
    pixels = tower.image_processor(Image.new("RGB", (40, 20)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 336, 336)
    with pytest.raises(FileNotFoundError, match="Give its folder as --vision-tower FOLDER"):
        find_tower(name, source=tmp_path, image_aspect_ratio=None, has_weights=False)


def test_generation_defaults_that_transformers_would_not_save_again_are_left_out(tower, tmp_path, capsys):
    release(tmp_path / "in", tower)
    (tmp_path / "in" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "temperature, top_p left out" in capsys.readouterr().out
    model, _ = load_model(tmp_path / "out")
    assert model.generation_config.eos_token_id == 2
    model.save_pretrained(tmp_path / "saved")
