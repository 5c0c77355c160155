"""The model: LLaVA bit for bit without an objective, saved and loaded whole, its tables in step, padding without effect."""

import pytest
import torch
from tiny import IMAGE, VOCAB, image_batch, text_batch, tiny_clip, tiny_config, tiny_llama, tiny_opt
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from vwlmm import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration
from vwlmm.objectives import VisualWords, VisualWordsConfig

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLMS = {
    "llama": tiny_llama(),
    "smollm": tiny_llama(tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, vocab_size=VOCAB),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=VOCAB),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, vocab_size=VOCAB),
    "opt": tiny_opt(),
}
TOWERS = {
    "clip": ({}, tiny_clip()),
    "siglip": ({"vision_feature_select_strategy": "full"}, SiglipVisionConfig(**VISION, image_size=28, patch_size=14)),
    "dinov2": (
        {},
        Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14),
    ),
    "dinov2 with registers": (
        {},
        Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
            num_register_tokens=4,
        ),
    ),
}


def build(config: VisualWordLlavaConfig) -> VisualWordLlavaForConditionalGeneration:
    torch.manual_seed(0)
    return VisualWordLlavaForConditionalGeneration(config).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_and_llm_trains_saves_and_loads(llm, tower, tmp_path):
    fields, vision = TOWERS[tower]
    model = build(tiny_config(LLMS[llm], vision, **fields))
    output = model(**image_batch(), objective=VisualWords())
    output.loss.backward()
    assert output.loss.isfinite()
    assert (
        model.vm_head.weight.grad is not None or model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    )
    model.save_pretrained(tmp_path)
    loaded, report = VisualWordLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(loaded.eval(), image_batch()), logits(model, image_batch()))
    assert torch.equal(loaded.vm_head.weight, model.vm_head.weight)


@pytest.mark.parametrize("llm", ["llama", "smollm", "mistral", "qwen3"])
def test_without_an_objective_the_model_is_llava_bit_for_bit(llm, tmp_path):
    model = build(tiny_config(LLMS[llm]))
    model.save_pretrained(tmp_path)
    llava, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {"vm_head.weight"}
    assert torch.equal(logits(model, image_batch()), logits(llava.eval(), image_batch()))
    assert torch.equal(logits(model, text_batch()), logits(llava, text_batch()))


def test_a_llava_checkpoint_keeps_its_lm_head_and_lacks_only_the_vm_head(tmp_path):
    llava = LlavaForConditionalGeneration(tiny_config()).eval()
    llava.save_pretrained(tmp_path)
    ours, report = VisualWordLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"vm_head.weight"}
    assert torch.equal(ours.lm_head.weight, llava.lm_head.weight)


def test_auto_classes_read_both_kinds_of_folder(tmp_path):
    build(tiny_config()).save_pretrained(tmp_path / "plain")
    build(tiny_config(pseudo_image_features=True)).save_pretrained(tmp_path / "pseudo")
    assert AutoConfig.from_pretrained(tmp_path / "plain").model_type == "llava"
    assert AutoConfig.from_pretrained(tmp_path / "pseudo").model_type == "visual_word_llava"
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain")
    pseudo = AutoModelForImageTextToText.from_pretrained(tmp_path / "pseudo")
    assert type(plain) is LlavaForConditionalGeneration
    assert type(pseudo) is VisualWordLlavaForConditionalGeneration
    assert pseudo.config.pseudo_image_features
    ours = VisualWordLlavaConfig.from_pretrained(tmp_path / "plain")
    assert isinstance(AutoModelForImageTextToText.from_config(ours), VisualWordLlavaForConditionalGeneration)


def test_left_padded_batches_generate_what_single_prompts_generate(model):
    batch = image_batch()
    rows = [batch["input_ids"][0, :9], batch["input_ids"][1, :7]]
    alone = [
        model.generate(
            input_ids=row[None], pixel_values=batch["pixel_values"][i : i + 1], max_new_tokens=6, do_sample=False
        )
        for i, row in enumerate(rows)
    ]
    padded = torch.full((2, 9), 3)
    padded[0], padded[1, 2:] = rows[0], rows[1]
    mask = torch.ones_like(padded)
    mask[1, :2] = 0
    together = model.generate(
        input_ids=padded, attention_mask=mask, pixel_values=batch["pixel_values"], max_new_tokens=6, do_sample=False
    )
    for i, row in enumerate(rows):
        assert together[i, 9:].tolist()[: alone[i].shape[1] - len(row)] == alone[i][0, len(row) :].tolist()


@pytest.mark.parametrize("pseudo", [False, True])
def test_interleaved_images_stand_where_their_tokens_are(pseudo):
    model = build(tiny_config(pseudo_image_features=pseudo))
    pixels = image_batch()["pixel_values"]
    ids = torch.tensor([[1, 50, *[IMAGE] * 4, 60, *[IMAGE] * 4, 61, 62]])
    output = model(input_ids=ids, pixel_values=pixels, labels=ids.where(ids > 60, -100), objective=VisualWords())
    swapped = model(
        input_ids=ids, pixel_values=pixels.flip(0), labels=ids.where(ids > 60, -100), objective=VisualWords()
    )
    assert output.loss.isfinite()
    assert output.loss != swapped.loss
    # Causal: what stands before the second image does not see it.
    other = torch.cat([pixels[:1], torch.randn(1, 3, 28, 28)])
    first = logits(model, {"input_ids": ids, "pixel_values": pixels})
    second = logits(model, {"input_ids": ids, "pixel_values": other})
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.equal(first[:, 7:], second[:, 7:])


def test_adding_words_keeps_all_three_tables_in_step(model, tmp_path):
    before = model.vm_head.weight.detach().clone()
    model.resize_token_embeddings(VOCAB + 5)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 5
    assert model.lm_head.weight.shape == model.vm_head.weight.shape == (VOCAB + 5, 64)
    assert torch.equal(model.vm_head.weight[:VOCAB], before)
    assert model.config.text_config.vocab_size == VOCAB + 5
    assert model(**image_batch(), objective=VisualWords()).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert VisualWordLlavaForConditionalGeneration.from_pretrained(tmp_path).vm_head.weight.shape[0] == VOCAB + 5


def test_a_tied_head_stays_tied_when_words_are_added():
    model = build(tiny_config(LLMS["opt"]))
    model.resize_token_embeddings(VOCAB + 3)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.vm_head.weight is not model.lm_head.weight


def test_the_image_token_may_lie_outside_the_tables():
    inside, outside = build(tiny_config()), build(tiny_config(image_token_index=VOCAB + 7))
    outside.load_state_dict(inside.state_dict())
    batch = image_batch()
    moved = {**batch, "input_ids": batch["input_ids"].where(batch["input_ids"] != IMAGE, VOCAB + 7)}
    assert inside(**batch, objective=VisualWords()).loss == outside(**moved, objective=VisualWords()).loss
    assert torch.equal(logits(inside, batch), logits(outside, moved))


def test_pseudo_feature_of_a_certain_patch_is_that_words_embedding(model):
    with torch.no_grad():
        model.vm_head.weight.zero_()
        model.vm_head.weight[17] = 100.0
        pseudo = model.pseudo_image_features(torch.ones(3, 64))
    assert torch.allclose(pseudo, model.get_input_embeddings().weight[17].expand(3, -1))


def test_pseudo_image_features_change_the_input_and_not_the_targets():
    model = build(tiny_config(pseudo_image_features=True))
    batch = image_batch()
    features = torch.cat(model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output)
    mixed = model.vm_head(features).softmax(-1) @ model.get_input_embeddings().weight
    assert torch.allclose(model.pseudo_image_features(features), mixed, atol=1e-6)
    assert not torch.equal(logits(model, batch), logits(build(tiny_config()), batch))


def test_a_text_only_batch_and_an_image_batch_can_follow_each_other(model):
    for batch in (text_batch(), image_batch(), text_batch()):
        model.zero_grad()
        output = model(**batch, objective=VisualWords())
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(value.isfinite() for value in output.terms.values())
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        # Every rank of a sharded run has every gradient: a blank picture went through tower and projector.
        assert model.model.multi_modal_projector.linear_1.weight.grad is not None


def test_nothing_scored_gives_a_connected_zero(model):
    batch = text_batch()
    batch["labels"].fill_(-100)
    output = model(**batch, objective=VisualWords())
    output.loss.backward()
    assert output.loss == 0
    assert model.lm_head.weight.grad is not None
    assert not model.lm_head.weight.grad.any()


def test_image_tokens_without_pictures_and_too_many_pictures_are_errors(model):
    batch = image_batch()
    with pytest.raises(ValueError, match="8 image tokens and no pixel_values"):
        model(**{**batch, "pixel_values": None}, objective=VisualWords())
    with pytest.raises(ValueError, match="8 image tokens for 12 image features"):
        model(**{**batch, "pixel_values": torch.randn(3, 3, 28, 28)}, objective=VisualWords())


def test_merged_patches_keep_raster_order_and_make_fewer_tokens():
    config = tiny_config(vision=tiny_clip(image_size=56), projector_patch_merge=2)
    model = build(config)
    features = model.get_image_features(torch.randn(2, 3, 56, 56), return_dict=True).pooler_output
    assert [tuple(f.shape) for f in features] == [(4, 64), (4, 64)]
    from vwlmm.models.projector import merge_patches

    patches = torch.arange(16.0).reshape(1, 16, 1)
    assert merge_patches(patches, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    with pytest.raises(ValueError, match="square grid"):
        merge_patches(torch.zeros(1, 9, 1), 2)


def test_the_linear_projector_is_one_linear_layer(tmp_path):
    model = build(tiny_config(projector_type="linear"))
    names = [name for name, _ in model.model.multi_modal_projector.named_parameters()]
    assert names == ["linear_1.weight", "linear_1.bias"]
    model.save_pretrained(tmp_path)
    loaded = VisualWordLlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, image_batch()), logits(model, image_batch()))


def test_frozen_modules_stay_in_eval_mode_while_others_train(model):
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    model.train()
    assert model.model.multi_modal_projector.training
    assert not model.model.vision_tower.training
    assert not model.model.language_model.training


def test_an_unmixable_llm_says_so():
    with pytest.raises(ValueError, match="must be equally wide"):
        tiny_config(tiny_opt().__class__(hidden_size=64, word_embed_proj_dim=32, vocab_size=VOCAB))


def test_gradient_checkpointing_changes_nothing(model):
    model.train()
    batch = image_batch()
    plain = model(**batch, objective=VisualWords(VisualWordsConfig(detach_target=False)))
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**batch, objective=VisualWords(VisualWordsConfig(detach_target=False))).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_standardised_features_have_no_mean_and_unit_deviation_and_are_saved(tmp_path):
    from vwlmm.assembly import measure_features

    model = build(tiny_config(projector_norm=True))
    pixels = torch.randn(20, 3, 28, 28)
    measure_features(model, pixels)
    seen = []
    model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.get_image_features(pixels, return_dict=True)
    rows = seen[0].flatten(0, 1)
    torch.testing.assert_close(rows.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(32), atol=1e-3, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = VisualWordLlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, image_batch()), logits(model, image_batch()))
