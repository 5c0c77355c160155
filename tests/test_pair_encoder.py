"""Pairs of towers with their preprocessing: our dual encoders and CLIP; `vwlmm data curate` and `vwlmm tsne` run on them."""

import json
import shutil

import pytest
import torch
from PIL import Image
from small_runs import image_processor, plain_tokenizer
from tiny import tiny_clip
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, VisionTextDualEncoderProcessor

from vwlmm import DualEncoderModel
from vwlmm.cli import main
from vwlmm.encoders import load_image_processor, load_tokenizer
from vwlmm.evaluation.runner import LoadedModel
from vwlmm.pair_encoder import load_pair_encoder
from vwlmm.pair_recipe import PairModelConfig
from vwlmm.pair_training import build_pair

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


@pytest.fixture(scope="module")
def dual(parts, tmp_path_factory):
    """A dual encoder of tiny towers, saved as training saves one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dual")
    DualEncoderModel.from_towers(parts / "tower", parts / "llm", embed_dim=16).save_pretrained(folder)
    towers = load_image_processor(parts / "tower"), load_tokenizer(parts / "llm")
    VisionTextDualEncoderProcessor(*towers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = plain_tokenizer()
    tokenizer.pad_token = "</s>"
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=tiny_clip().to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    from transformers import CLIPProcessor

    CLIPProcessor(image_processor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def labelled(tmp_path):
    """Twelve pictures of three colours, with captions; `labelled.jsonl` and a shard."""
    rows = []
    for i in range(12):
        name = list(COLOURS)[i % 3]
        shade = tuple(min(255, c + 2 * i) for c in COLOURS[name])
        Image.new("RGB", (40, 30), shade).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"It is {name} {i}", "label": name})
    for name in ("labelled.jsonl", "shard.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def pictures():
    return [Image.new("RGB", (40, 30), colour) for colour in COLOURS.values()]


def test_a_dual_encoder_embeds_as_its_own_methods_do(dual, parts):
    pair, model = load_pair_encoder(dual, device="cpu"), AutoModel.from_pretrained(dual)
    with torch.no_grad():
        pixels = load_image_processor(parts / "tower")(images=pictures(), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pair.embed_images(pictures(), batch_size=2), model.encode_image(pixels))
        tokenizer = AutoTokenizer.from_pretrained(dual)
        for text in ("It is red", "What colour is this? It is green."):
            ids = tokenizer([text], return_tensors="pt")
            expected = model.encode_text(ids["input_ids"], ids["attention_mask"])
            # In a batch with others, padding changes nothing.
            torch.testing.assert_close(pair.embed_texts([text, "red " * 20])[:1], expected, atol=1e-5, rtol=1e-4)


def test_a_dual_encoder_saved_without_its_processor_reads_that_of_its_towers(dual, parts, tmp_path):
    DualEncoderModel.from_pretrained(dual).save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "processor_config.json").exists()
    bare = load_pair_encoder(tmp_path / "bare", device="cpu")
    torch.testing.assert_close(
        bare.embed_images(pictures()), load_pair_encoder(dual, device="cpu").embed_images(pictures())
    )


def test_clip_embeds_both_sides_in_one_space_of_length_1(clip):
    pair = load_pair_encoder(clip, device="cpu")
    images, texts = pair.embed_images(pictures()), pair.embed_texts(["It is red", "blue"])
    assert images.shape == (3, 12)
    assert texts.shape == (2, 12)
    torch.testing.assert_close(torch.cat([images, texts]).norm(dim=1), torch.ones(5))
    with pytest.raises(ValueError, match="does not project patches"):
        pair.embed_patches(pictures())


def test_patches_come_as_a_grid(dual):
    assert load_pair_encoder(dual, device="cpu").embed_patches(pictures()).shape == (3, 2, 2, 16)


def test_models_without_a_common_space_and_texts_that_are_none_are_refused(parts, dual):
    with pytest.raises(ValueError, match="does not put pictures and texts into one space"):
        load_pair_encoder(parts / "llm", device="cpu")
    pair = load_pair_encoder(dual, device="cpu")
    with pytest.raises(ValueError, match="Expected text to embed, got int 7"):
        pair.embed_texts(["red", 7])
    with pytest.raises(ValueError, match="got none"):
        pair.embed_images([])


@pytest.mark.parametrize("model", ["dual", "clip"])
def test_the_command_curates_by_labelled_pictures_and_goes_on_where_it_was(
    model, request, labelled, capsys, monkeypatch
):
    folder = str(request.getfixturevalue(model))
    arguments = ["data", "curate", str(labelled / "shard.jsonl"), "--model", folder, "--out", str(labelled / "out")]
    options = [
        "--concepts",
        str(labelled / "labelled.jsonl"),
        "--shots",
        "2",
        "--score-range",
        "-1",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*arguments, *options, "--per-concept", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 prototypes from 6 pictures" in said
    assert "9 of 12 pairs chosen for 3 concepts" in said
    rows = [json.loads(line) for line in (labelled / "out/pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert all((labelled / "out" / row["image"]).resolve().is_file() for row in rows)

    # Fewer captions of the same scores: no picture and no caption is embedded again.
    monkeypatch.setattr("vwlmm.pair_encoder.PairEncoder.embed_images", None)
    monkeypatch.setattr("vwlmm.pair_encoder.PairEncoder.embed_texts", None)
    assert main([*arguments, *options, "--per-concept", "2"]) == 0
    assert "6 of 12 pairs chosen" in capsys.readouterr().out
    saved = [
        "--prototypes",
        str(labelled / "out/prototypes.safetensors"),
        "--device",
        "cpu",
        "--score-range",
        "-1",
        "1",
    ]
    assert main([*arguments, *saved, "--per-concept", "1"]) == 0
    assert main([*arguments, *options, "--scores", "float32"]) == 1
    assert "holds the scores of another curation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "0.png", "label": 3}, "field 'label': expected the concept's name, found 3"),
        ({"label": "red"}, "field 'image': expected a picture"),
    ],
)
def test_labelled_pictures_that_are_none_are_named(labelled, dual, row, message, capsys):
    with (labelled / "labelled.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    arguments = ["data", "curate", str(labelled / "shard.jsonl"), "--model", str(dual), "--out", str(labelled / "out")]
    assert main([*arguments, "--concepts", str(labelled / "labelled.jsonl")]) == 1
    said = capsys.readouterr().err
    assert "labelled.jsonl line 13" in said
    assert message in said
    assert not (labelled / "out").exists()


def test_zero_shot_scores_labelled_pictures_against_a_guess(labelled, dual, capsys):
    arguments = ["zero-shot", str(dual), "--data", str(labelled / "labelled.jsonl"), "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_images"], result["num_classes"], result["top5"]) == (12, 3, 1.0)
    assert result["chance"] == pytest.approx(1 / 3)

    pair = load_pair_encoder(dual, device="cpu")
    classes = pair.embed_texts([f"photo of {name}" for name in sorted(COLOURS)])
    images = pair.embed_images(Image.open(labelled / f"{i}.png") for i in range(12))
    nearest = [sorted(COLOURS)[i] for i in (images @ classes.T).argmax(1).tolist()]
    right = sum(name == list(COLOURS)[i % 3] for i, name in enumerate(nearest))
    assert result["top1"] == pytest.approx(right / 12)

    (labelled / "prompts.json").write_text(json.dumps({name: [f"It is {name}.", name] for name in COLOURS}))
    assert main([*arguments, "--prompts", str(labelled / "prompts.json"), "--released"]) == 0
    assert "2 prompts a class at most" in capsys.readouterr().out


def test_zero_shot_refuses_a_class_list_that_does_not_match(labelled, dual, capsys):
    (labelled / "names.txt").write_text("red\ngreen\n")
    arguments = [
        "zero-shot",
        str(dual),
        "--data",
        str(labelled / "labelled.jsonl"),
        "--classes",
        str(labelled / "names.txt"),
    ]
    assert main(arguments) == 1
    assert "1 labels are not in the class list of 2: 'blue'" in capsys.readouterr().err


def test_one_flipped_byte_of_a_saved_pair_is_named_by_whoever_loads_it(dual, tmp_path):
    damaged = shutil.copytree(dual, tmp_path / "damaged")
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    for load in (
        load_pair_encoder,
        LoadedModel.load,
        lambda folder: build_pair(PairModelConfig(init_from=str(folder))),
    ):
        with pytest.raises(
            ValueError, match=r"model\.safetensors is damaged: its bytes are not those that were written"
        ):
            load(damaged)
        load(dual)
