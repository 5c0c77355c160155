"""A new model from two parts: processor and model agree on what an image is, for every kind of tower."""

import pytest
import torch
from PIL import Image
from small_runs import image_processor, llava_row, weights
from tiny import tiny_clip
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    pipeline,
)

from vwlmm import load_model
from vwlmm.assembly import assemble
from vwlmm.data.config import DataConfig
from vwlmm.data.dataset import load_datasets

QUESTION = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of each kind of tower, of 4×4 patches, with the image processor that its makers use."""
    folder = tmp_path_factory.mktemp("towers")
    clip = tiny_clip(image_size=56)
    square = {"height": 56, "width": 56}
    # As in DINOv2's own processor, pictures are made larger than they are cropped.
    bit = {"size": {"shortest_edge": 64}, "crop_size": square}
    made = {
        "clip": (CLIPVisionModel(clip), image_processor(56)),
        "whole clip": (CLIPModel(CLIPConfig(vision_config=clip.to_dict())), image_processor(56)),
        "siglip": (
            SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=64, image_size=56)),
            SiglipImageProcessorPil(size=square),
        ),
        "dinov2": (Dinov2Model(Dinov2Config(**SIZES, image_size=56)), BitImageProcessorPil(**bit)),
    }
    for name, (tower, processor) in made.items():
        tower.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture
def picture():
    """Wide, with a red edge."""
    image = Image.new("RGB", (60, 30), (250, 20, 20))
    image.paste((20, 20, 250), (4, 4, 56, 26))
    return image


def answer(model, processor, picture, text=QUESTION):
    inputs = processor(images=picture, text=text, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("aspect_ratio", [None, "pad"])
@pytest.mark.parametrize("tower", ["clip", "whole clip", "siglip", "dinov2"])
def test_processor_and_model_count_the_tokens_of_an_image_alike(towers, parts, picture, tower, aspect_ratio, merge):
    model, processor = assemble(
        towers / tower,
        parts / "llm",
        chat_template="chatml",
        projector_patch_merge=merge,
        image_aspect_ratio=aspect_ratio,
    )
    inputs = processor(images=picture, text=QUESTION, return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == model.config.image_seq_length == 16 // merge**2
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
def test_pad_shows_the_whole_picture_between_bars_of_the_mean_colour(towers, parts, picture, tower):
    _, processor = assemble(towers / tower, parts / "llm", chat_template="chatml", image_aspect_ratio="pad")
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]  # [3, height, width]
    assert pixels.shape == (3, 56, 56)
    assert pixels[:, :10].abs().max() < 0.05  # bars above and below: the mean, which is 0 when normalised
    assert pixels[:, -10:].abs().max() < 0.05
    assert (pixels[0, 20:36, 0] > pixels[2, 20:36, 0]).all()  # red edges left and right
    assert (pixels[0, 20:36, -1] > pixels[2, 20:36, -1]).all()


def test_an_unknown_aspect_ratio_is_an_error(parts):
    with pytest.raises(ValueError, match="image_aspect_ratio is pad or left out: got 'anyres'"):
        assemble(parts / "tower", parts / "llm", chat_template="chatml", image_aspect_ratio="anyres")


def test_a_whole_clip_gives_its_vision_half(towers, parts):
    model, _ = assemble(towers / "whole clip", parts / "llm", chat_template="chatml")
    whole = CLIPModel.from_pretrained(towers / "whole clip").vision_model.state_dict()
    half = {name.removeprefix("vision_model."): t for name, t in model.model.vision_tower.state_dict().items()}
    assert half.keys() == whole.keys()
    assert all(torch.equal(half[name], whole[name]) for name in whole)


def test_a_network_that_is_no_vision_transformer_is_an_error(parts, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetModel(ResNetConfig(**sizes, layer_type="basic")).save_pretrained(tmp_path)
    image_processor(56).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ResNetModel gives hidden states of shape .*choose a ViT"):
        assemble(tmp_path, parts / "llm", chat_template="chatml")


def test_the_llm_learns_the_word_image_and_the_three_tables_stay_in_step(parts):
    model, processor = assemble(parts / "tower", parts / "llm", chat_template="chatml")
    before = weights(parts / "llm")["model.embed_tokens.weight"]
    words = len(processor.tokenizer)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == len(before)
    assert words == len(before) + 1 == model.config.text_config.vocab_size
    for table in (model.get_input_embeddings(), model.lm_head, model.vm_head):
        assert len(table.weight) == words
    assert torch.equal(model.get_input_embeddings().weight[:-1], before)


def test_the_vm_head_starts_where_it_is_told(parts):
    def start(name):
        torch.manual_seed(7)
        return assemble(parts / "tower", parts / "llm", chat_template="chatml", vm_head_init=name)[0]

    model = start("lm_head")
    # The new word's row is drawn for each table; the LLM's own words are copies.
    assert torch.equal(model.vm_head.weight[:-1], model.lm_head.weight[:-1])
    assert model.vm_head.weight is not model.lm_head.weight
    model = start("word_embeddings")
    assert torch.equal(model.vm_head.weight[:-1], model.get_input_embeddings().weight[:-1])
    model = start("random")
    assert model.vm_head.weight.std().item() == pytest.approx(model.config.text_config.initializer_range, rel=0.1)
    assert torch.equal(model.vm_head.weight, start("random").vm_head.weight)


def test_an_unknown_start_of_the_vm_head_is_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"vm_head_init is one of random, lm_head, word_embeddings: got 'zeros'"):
        assemble(tmp_path / "none", tmp_path / "none", chat_template="chatml", vm_head_init="zeros")


@pytest.mark.parametrize("pseudo", [False, True])
def test_a_saved_model_answers_as_before(parts, picture, tmp_path, pseudo):
    model, processor = assemble(
        parts / "tower", parts / "llm", chat_template="chatml", pseudo_image_features=pseudo, projector_norm=True
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, its_processor = load_model(tmp_path)
    assert torch.equal(answer(again, its_processor, picture), answer(model, processor, picture))


def test_a_prompt_without_a_picture_is_answered(trained):
    model, processor = load_model(trained)
    inputs = processor(text="What is red?", return_tensors="pt")
    assert "pixel_values" not in inputs
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_the_pipeline_of_transformers_answers(trained, picture):
    model, processor = load_model(trained)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    (reply,) = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(reply["generated_text"], str)


def test_the_data_reader_counts_image_tokens_as_the_model_does(towers, parts, picture, tmp_path):
    import json

    model, processor = assemble(towers / "siglip", parts / "llm", chat_template="chatml", projector_patch_merge=2)
    picture.save(tmp_path / "p.png")
    row = llava_row("a", "<image>\nWhat?", "It", image="p.png")
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    rows, _ = load_datasets(DataConfig(path=str(tmp_path / "rows.json")), processor, seed=0)
    assert (rows[0]["input_ids"] == model.config.image_token_id).sum() == model.config.image_seq_length
