"""One encoder alone: pooling, sentence-transformers folders, EfficientNet-Lite, sets embedded batch by batch."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import AutoModel

from vwlmm.encoders import embed_images, embed_texts, load_text_encoder, load_vision_encoder
from vwlmm.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, rename_published


def pictures(count=5):
    return [Image.new("RGB", (20 + n, 30), (40 * n, 90, 120)) for n in range(count)]


def test_pictures_are_pooled_over_the_tokens_asked_for(towers):
    encoder = load_vision_encoder(towers / "vision", device="cpu")
    tokens = encoder.tokens(pictures())
    for pooling, expected in {"mean": tokens.mean(1), "cls": tokens[:, 0], "patches": tokens[:, 1:].mean(1)}.items():
        found = embed_images(encoder, iter(pictures()), pooling=pooling, batch_size=2)
        torch.testing.assert_close(found, expected)


def test_an_inner_layer_can_be_read(towers):
    encoder = load_vision_encoder(towers / "vision", feature_layer=1, device="cpu")
    pixels = encoder.preprocess(pictures())
    expected = encoder.model(pixels, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(encoder.tokens(pictures()), expected)


def test_batches_and_padding_do_not_change_a_text(towers):
    encoder = load_text_encoder(towers / "text", device="cpu")
    texts = ["a picture", "a picture of a shape that is red, green or blue", "red"]
    one_by_one = torch.cat([embed_texts(encoder, [text]) for text in texts])
    torch.testing.assert_close(embed_texts(encoder, texts), one_by_one)
    torch.testing.assert_close(embed_texts(encoder, texts, batch_size=2), one_by_one)


def sentence_folder(towers, folder, *, inner="", pooling="mean", normalise=True, dense=False):
    shutil.copytree(towers / "text", folder / inner)
    modules = [{"idx": 0, "path": inner, "type": "sentence_transformers.models.Transformer"}]
    (folder / inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    modules.append({"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    if dense:
        (folder / "2_Dense").mkdir()
        settings = {
            "in_features": 16,
            "out_features": 3,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
        weights = {"linear.weight": torch.ones(3, 16), "linear.bias": torch.zeros(3)}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
        modules.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    if normalise:
        modules.append({"idx": 3, "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_a_sentence_transformers_folder_brings_its_pooling_length_and_normalising(towers, tmp_path, inner):
    plain = load_text_encoder(towers / "text", device="cpu", max_length=7, pooling="cls")
    encoder = load_text_encoder(sentence_folder(towers, tmp_path / "st", inner=inner, pooling="cls"), device="cpu")
    texts = ["a picture of a shape that is red, green or blue", "red"]
    assert (encoder.pooling, encoder.max_length) == ("cls", 7)
    torch.testing.assert_close(embed_texts(encoder, texts), normalize(embed_texts(plain, texts), dim=-1))


def test_a_dense_layer_behind_the_pooling_is_applied(towers, tmp_path):
    encoder = load_text_encoder(sentence_folder(towers, tmp_path / "st", dense=True, normalise=False), device="cpu")
    plain = load_text_encoder(towers / "text", device="cpu", max_length=7)
    expected = embed_texts(plain, ["red"]).sum().tanh().expand(1, 3)
    torch.testing.assert_close(embed_texts(encoder, ["red"]), expected)


def test_a_pooling_that_is_not_known_is_refused(towers, tmp_path):
    folder = sentence_folder(towers, tmp_path / "st", pooling="max")
    with pytest.raises(ValueError, match="pools its tokens by 'none'"):
        load_text_encoder(folder, device="cpu")


def test_a_caption_that_is_not_text_is_refused(towers):
    encoder = load_text_encoder(towers / "text", device="cpu")
    with pytest.raises(ValueError, match=r"Text 1 is a float \(nan\), not text"):
        embed_texts(encoder, ["red", float("nan")])


def test_an_empty_set_and_an_unknown_pooling_are_refused(towers):
    encoder = load_vision_encoder(towers / "vision", device="cpu")
    with pytest.raises(ValueError, match="at least one picture"):
        embed_images(encoder, [])
    with pytest.raises(ValueError, match="pooling is one of mean, cls, patches"):
        embed_images(encoder, pictures(), pooling="max")
    with pytest.raises(ValueError, match="at least one text"):
        embed_texts(load_text_encoder(towers / "text", device="cpu"), [])


def test_efficientnet_lite_is_read_by_automodel_and_pools_its_feature_map(tmp_path):
    model = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 96)
    output = again(pixel_values=pixels)
    assert output.last_hidden_state.shape == (1, 1280, 2, 3)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean((2, 3)))
    torch.testing.assert_close(output.last_hidden_state, model(pixel_values=pixels).last_hidden_state)


def test_efficientnet_lite_has_the_published_number_of_weights():
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    # 4,652,008 as published, of which 1,281,000 are the classifier.
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000


def test_published_names_become_ours():
    published = {"_conv_stem.weight": 1, "_blocks.3._bn1.running_mean": 2, "_bn1.bias": 3, "_fc.weight": 4}
    assert set(rename_published(published)) == {"stem.0.weight", "blocks.3.depthwise.1.running_mean", "head.1.bias"}
