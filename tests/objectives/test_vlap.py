"""The VLAP objective in a model: what it reads, what learns, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from tiny import IMAGE, image_batch, make_tokenizer, text_batch, tiny_clip, tiny_config, tiny_llama, tiny_opt

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.functional import assign_words
from vwlmm.objectives import VLAP, VLAPConfig
from vwlmm.objectives.word_prior import count_words, fingerprint, read_word_prior, word_mask, write_word_prior

LLMS = {"llama": tiny_llama(), "opt": tiny_opt()}


def linear_model(text=None, **changes):
    model = VisualWordLlavaForConditionalGeneration(tiny_config(text, projector_type="linear", **changes))
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    return model.train()


def vlap(**fields):
    return VLAP(VLAPConfig(**{"mode": "sinkhorn_uniform", "epsilon": 0.05, "temperature": 0.05, **fields}))


@pytest.fixture
def prior_file(tmp_path):
    tokenizer = make_tokenizer()
    path = tmp_path / "prior.json"
    captions = ["A picture of a shape", "It is red", "It is green or blue"]
    write_word_prior(count_words((tokenizer(caption)["input_ids"] for caption in captions), tokenizer), path)
    return path


def by_hand(model, batch, *, captions, epsilon=0.05, temperature=0.05):
    """Picture and caption of every row one by one: unit means, assignments, swapped prediction, captioning."""
    words = model.get_input_embeddings().weight
    image, text, caption_loss, tokens = [], [], 0.0, 0
    for row in range(len(batch["input_ids"])):
        keep = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][keep], batch["labels"][row][keep]
        features = model.get_image_features(batch["pixel_values"][row : row + 1], return_dict=True).pooler_output[0]
        image.append(F.normalize(features.mean(0), dim=0))
        caption = ids[labels != -100]
        bos = torch.tensor([model.config.text_config.bos_token_id])
        with torch.no_grad():
            read = model.model.language_model(input_ids=torch.cat([bos, caption])[None]).last_hidden_state[0, 1:]
        states = read if captions == "contextual" else words[caption]
        text.append(F.normalize(states.mean(0), dim=0))
        embeddings = words[ids].masked_scatter((ids == IMAGE)[:, None], features)
        logits = model.lm_head(model.model.language_model(inputs_embeds=embeddings[None]).last_hidden_state[0, :-1])
        caption_loss = caption_loss + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        tokens += int((labels != -100).sum())
    image, text = torch.stack(image), torch.stack(text)
    log_p = [(rows @ F.normalize(words, dim=1).T / temperature).log_softmax(1) for rows in (image, text)]
    setting = vlap(epsilon=epsilon).config.assignment
    q = [assign_words(rows.detach(), words, assignment=setting) for rows in (image, text)]
    halves = -(q[1] * log_p[0]).sum() / len(image), -(q[0] * log_p[1]).sum() / len(image)
    return caption_loss / tokens, halves


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("captions", ["contextual", "word_embeddings"])
def test_the_loss_of_a_padded_batch_is_that_of_its_pairs_one_by_one(llm, captions):
    model, batch = linear_model(LLMS[llm]), image_batch()
    ours = model(**batch, objective=vlap(captions=captions))
    caption, halves = by_hand(model, batch, captions=captions)
    torch.testing.assert_close(ours.terms["lm_loss"], caption.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.terms["image_to_caption"], halves[0].detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.terms["caption_to_image"], halves[1].detach(), atol=1e-4, rtol=1e-5)
    plain = caption + 0.1 * 0.5 * sum(halves)
    torch.testing.assert_close(ours.loss, plain, atol=1e-5, rtol=1e-5)
    learned = [model.model.multi_modal_projector.linear_1.weight, model.model.multi_modal_projector.linear_1.bias]
    expected, found = torch.autograd.grad(plain, learned), torch.autograd.grad(ours.loss, learned)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_exactly_the_linear_layer_learns_and_the_half_from_captions_adds_no_gradient():
    model, batch = linear_model(), image_batch()
    gradients = []
    for both in (True, False):
        model.zero_grad()
        model(**batch, objective=vlap(both_directions=both)).loss.backward()
        learned = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert set(learned) == {f"model.multi_modal_projector.linear_1.{kind}" for kind in ("weight", "bias")}
        gradients.append(learned)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_a_batch_without_pictures_gives_a_loss_and_zero_gradients_to_the_layer():
    model = linear_model()
    out = model(**text_batch(), objective=vlap())
    out.loss.backward()
    assert out.terms["assignment_loss"] == 0
    assert out.terms["lm_loss"] > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() == 0


def test_a_row_without_a_picture_takes_no_part_in_the_assignment():
    model, batch = linear_model(), image_batch()
    padded = {name: F.pad(batch[name], (0, 0, 0, 1)) for name in ("input_ids", "labels", "attention_mask")}
    padded["input_ids"][2, :8], padded["attention_mask"][2, :8] = text_batch()["input_ids"][0], 1
    padded["labels"][2] = -100
    padded["labels"][2, 5:8] = padded["input_ids"][2, 5:8]
    with_text = model(**padded, pixel_values=batch["pixel_values"], objective=vlap()).terms
    without = model(**batch, objective=vlap()).terms
    torch.testing.assert_close(with_text["assignment_loss"], without["assignment_loss"])
    assert with_text["lm_loss"] != without["lm_loss"]


def test_captioning_alone_is_the_language_loss():
    model, batch = linear_model(), image_batch()
    alone = model(**batch, objective=vlap(weights={"assignment": 0.0}))
    plain = model(**batch).loss
    torch.testing.assert_close(alone.loss, plain, atol=1e-5, rtol=1e-5)
    assert set(alone.terms) == {"lm_loss"}


def test_contextual_text_feeds_the_llm_its_own_states_and_generates_from_them():
    model, batch = linear_model(contextual_text=True).eval(), image_batch()
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    row = 1
    text = ids[row][attended[row] & (ids[row] != IMAGE)]
    states = model.model.language_model(input_ids=text[None]).last_hidden_state[0]
    embedded = model.embed_text(ids, batch["attention_mask"])[row]
    torch.testing.assert_close(embedded[attended[row] & (ids[row] != IMAGE)], states, atol=1e-5, rtol=1e-4)
    prompt = {
        "input_ids": ids[:1, :9],
        "attention_mask": batch["attention_mask"][:1, :9],
        "pixel_values": batch["pixel_values"][:1],
    }
    made = model.generate(**prompt, max_new_tokens=3, do_sample=False, use_cache=False, eos_token_id=[])
    for count in range(3):  # word by word through the plain forward
        seen = {"input_ids": made[:, : 9 + count], "attention_mask": torch.ones(1, 9 + count, dtype=torch.long)}
        assert model(**seen, pixel_values=prompt["pixel_values"]).logits[0, -1].argmax() == made[0, 9 + count]
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**prompt, max_new_tokens=3, use_cache=True, eos_token_id=[])


def test_the_queue_remembers_the_newest_pairs_only_while_training():
    model, objective = linear_model(), vlap(queue=3)
    with torch.no_grad():
        model(**image_batch(), objective=objective)
    assert objective.state_dict() == {}
    first = model(**image_batch(), objective=objective).terms["assignment_loss"]
    assert len(objective.state_dict()["images"]) == 2
    model(**image_batch(seed=5), objective=objective)
    state = objective.state_dict()
    assert len(state["images"]) == len(state["texts"]) == 3
    other = vlap(queue=3)
    other.load_state_dict(state)
    again = [model(**image_batch(seed=7), objective=o).terms["assignment_loss"] for o in (objective, other)]
    assert again[0] == again[1]
    assert model(**image_batch(), objective=vlap()).terms["assignment_loss"] == first


def test_ids_that_are_no_words_are_those_without_readable_text():
    tokenizer = make_tokenizer()
    mask = word_mask(tokenizer, len(tokenizer) + 5)
    assert not mask[len(tokenizer) :].any()
    assert not mask[torch.tensor(tokenizer.all_special_ids)].any()
    (blank,) = tokenizer(" ", add_special_tokens=False)["input_ids"]
    (red,) = tokenizer(" red", add_special_tokens=False)["input_ids"][-1:]
    assert not mask[blank]
    assert mask[red]
    half_a_letter = tokenizer("é", add_special_tokens=False)["input_ids"][0]
    assert not mask[half_a_letter]


def test_a_word_that_a_caption_repeats_counts_once_and_special_tokens_do_not_count():
    tokenizer = make_tokenizer()
    ids = tokenizer("red red<|im_end|>", add_special_tokens=False)["input_ids"]
    prior = count_words([ids, ids], tokenizer)
    assert prior.num_captions == 2
    assert prior.counts.max() == 2
    assert prior.counts[torch.tensor(tokenizer.all_special_ids)].sum() == 0
    torch.testing.assert_close(prior.masses(500, smoothing=1.0, power=0.5)[ids[0]], torch.tensor(3.0) ** 0.5)
    with pytest.raises(ValueError, match="at least one caption"):
        count_words([], tokenizer)


def test_a_prior_is_read_for_the_tokenizer_it_was_counted_with(prior_file):
    tokenizer = make_tokenizer()
    assert read_word_prior(prior_file, tokenizer).num_captions == 3
    before = fingerprint(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]}, replace_extra_special_tokens=False)
    assert fingerprint(tokenizer) == before
    tokenizer.add_tokens(["newword"])
    with pytest.raises(ValueError, match="counted with another tokenizer"):
        read_word_prior(prior_file, tokenizer)


def test_a_prior_trains_and_masks_what_is_no_word(prior_file):
    objective = vlap(mode="sinkhorn_prior", prior=str(prior_file))
    objective.prepare(make_tokenizer())
    loss = linear_model()(**image_batch(), objective=objective).terms["assignment_loss"]
    assert loss.isfinite()
    other = vlap(mode="sinkhorn_prior", prior=str(prior_file), prior_power=0.0)
    other.prepare(make_tokenizer())
    assert linear_model()(**image_batch(), objective=other).terms["assignment_loss"] != loss


def test_a_missing_or_foreign_prior_says_how_to_write_one(tmp_path):
    objective = vlap(mode="released", prior=str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match="vwlmm data word-prior RECIPE"):
        objective.prepare(make_tokenizer())
    (tmp_path / "none.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a file of `vwlmm data word-prior`"):
        objective.prepare(make_tokenizer())


def test_a_picture_without_a_caption_and_a_row_of_two_pictures_are_refused():
    model, batch = linear_model(), image_batch()
    silent = {**batch, "labels": batch["labels"].clone()}
    silent["labels"][1] = -100
    with pytest.raises(ValueError, match="Row 1 of the batch has a picture and no caption"):
        model(**silent, objective=vlap())
    ids = torch.tensor([[1, *[IMAGE] * 8, 60, 61, 6]])
    labels = ids.where(ids > 59, -100)
    with pytest.raises(ValueError, match="has 8 image tokens, and one picture has 4"):
        model(input_ids=ids, labels=labels, pixel_values=batch["pixel_values"], objective=vlap())


def test_a_batch_of_one_pair_is_refused_unless_a_queue_joins_it():
    model, batch = linear_model(), image_batch(num_images=1)
    one = {name: value[:1] for name, value in batch.items()}
    with pytest.raises(ValueError, match="of one single pair it would give the prior back"):
        model(**one, objective=vlap())
    objective = vlap(queue=4)
    model(**image_batch(), objective=objective)
    model(**one, objective=objective)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "ot"}, "objective.mode is one of .sinkhorn_prior"),
        ({"epsilon": 0.0}, "objective.epsilon is positive, got 0.0"),
        ({"temperature": 0.0}, "objective.temperature is a number above 0"),
        ({"iterations": 0}, "objective.iterations is at least 1"),
        ({"captions": "mean"}, "objective.captions is one of contextual, word_embeddings"),
        ({"queue": -1}, "objective.queue is a number of at least 0"),
        ({"weights": {"vm": 1.0}}, "gives lm and assignment a weight"),
        ({"weights": {"lm": 0, "assignment": 0}}, "nothing would be learned"),
        ({"mode": "sinkhorn_prior"}, "objective.prior: mode sinkhorn_prior"),
        ({"mode": "released", "prior": "x", "queue": 9}, "mode released looks at every pair by itself"),
    ],
)
def test_a_wrong_setting_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        VLAPConfig(**{"mode": "sinkhorn_uniform", **fields})


def test_a_class_token_can_be_kept(parts):
    from vwlmm.assembly import assemble
    from vwlmm.data.encode import num_image_tokens

    model, processor = assemble(
        parts / "tower",
        parts / "llm",
        chat_template="caption",
        projector_type="linear",
        keep_class_token=True,
        contextual_text=True,
    )
    pixels = torch.zeros(1, 3, 28, 28)
    assert len(model.get_image_features(pixels, return_dict=True).pooler_output[0]) == num_image_tokens(processor) == 5
    assert model.generation_config.use_cache is False
    with pytest.raises(ValueError, match="keep_class_token needs a tower with one class token and no patch merging"):
        assemble(
            parts / "tower", parts / "llm", chat_template="caption", keep_class_token=True, projector_patch_merge=2
        )


def test_an_encoder_decoder_is_refused_in_words(parts, tmp_path):
    from transformers import T5Config

    from vwlmm.assembly import assemble

    T5Config(vocab_size=300, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8).save_pretrained(tmp_path)
    for file in (parts / "llm").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"is an encoder and a decoder \(t5\); expected a decoder LLM"):
        assemble(parts / "tower", tmp_path, chat_template="caption")


def test_the_tower_of_the_released_code_fits(tmp_path, parts):
    from transformers import BeitConfig, BeitModel

    from vwlmm.assembly import assemble

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BeitModel(BeitConfig(**sizes, image_size=28, patch_size=14)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((parts / "tower" / "preprocessor_config.json").read_bytes())
    model, _ = assemble(
        tmp_path, parts / "llm", chat_template="caption", vision_feature_layer=-1, keep_class_token=True
    )
    tower = model.model.vision_tower(torch.zeros(1, 3, 28, 28), return_dict=True)
    assert tower.last_hidden_state.shape == (1, 5, 32)
    assert len(model.get_image_features(torch.zeros(1, 3, 28, 28), return_dict=True).pooler_output[0]) == 5


def test_a_clip_without_its_last_norm_is_what_layer_minus_one_gives():
    model = linear_model(vision=tiny_clip(), vision_feature_layer=-1, vision_feature_select_strategy="full")
    pixels = torch.randn(1, 3, 28, 28)
    states = model.model.vision_tower(pixels, return_dict=True).last_hidden_state
    features = torch.stack(list(model.get_image_features(pixels, return_dict=True).pooler_output))
    torch.testing.assert_close(features, model.model.multi_modal_projector(states))
