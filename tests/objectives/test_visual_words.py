"""The visual-word objective equals the released formulation, with the same weights, in both stages and on both paths."""

import pytest
import torch
import torch.nn.functional as F
from tiny import IMAGE, VOCAB, image_batch, tiny_clip, tiny_config, tiny_llama
from transformers import MistralConfig

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.objectives import VisualWords, VisualWordsConfig

MISTRAL = MistralConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    sliding_window=None,
)
LLMS = {"llama": tiny_llama(), "mistral": MISTRAL}


def released(model, batch, *, stage: int) -> dict[str, torch.Tensor]:
    """What the published code computes (papers' note, section 3): both heads over every position, nothing detached."""
    is_image = batch["input_ids"] == IMAGE
    features = torch.cat(model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output)
    words = model.get_input_embeddings().weight
    embeddings = words[batch["input_ids"]]
    if model.config.pseudo_image_features:
        visual_words = torch.zeros(*is_image.shape, VOCAB).masked_scatter(
            is_image[..., None], (features @ model.vm_head.weight.T).softmax(-1)
        )
        embeddings = embeddings.masked_scatter(is_image[..., None], visual_words[is_image] @ words)
        log_visual_words = visual_words.clamp(min=1e-45).log()
    else:
        embeddings = embeddings.masked_scatter(is_image[..., None], features)
        log_visual_words = (embeddings @ model.vm_head.weight.T).log_softmax(-1)
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    logits = hidden @ model.lm_head.weight.T
    text = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), batch["labels"][:, 1:].reshape(-1), ignore_index=-100)
    at = is_image[:, 1:]
    log_p, log_q = logits[:, :-1][at].log_softmax(-1), log_visual_words[:, 1:][at]
    if stage == 3:
        image = F.kl_div(log_q, log_p.exp(), reduction="batchmean")
    else:
        image = F.kl_div(log_p, log_q.exp(), reduction="batchmean")
    return {"loss": text + image, "lm_loss": text, "vm_loss": image, "logits": logits}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("pseudo", [False, True], ids=["normal", "pseudo-image"])
@pytest.mark.parametrize("stage", [3, 4])
def test_live_targets_equal_the_released_code_gradient_for_gradient(llm, pseudo, stage):
    model = VisualWordLlavaForConditionalGeneration(tiny_config(LLMS[llm], pseudo_image_features=pseudo)).eval()
    with torch.no_grad():
        model.vm_head.weight.mul_(20)  # peaked words: a test on nearly uniform ones would see little
        model.lm_head.weight.mul_(20)
    target = "language_model" if stage == 3 else "visual_words"
    batch = image_batch()
    ours = model(**batch, objective=VisualWords(VisualWordsConfig(target=target, detach_target=False)))
    theirs = released(model, batch, stage=stage)
    torch.testing.assert_close(ours.loss, theirs["loss"], atol=1e-5, rtol=0)
    for name in ("lm_loss", "vm_loss"):
        torch.testing.assert_close(ours.terms[name], theirs[name].detach(), atol=1e-5, rtol=0)
    expected, found = gradients(model, theirs["loss"]), gradients(model, ours.loss)
    # A key's bias has no gradient but rounding (softmax does not see it), so noise is measured against the largest one.
    noise = 1e-7 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + noise, name
    plain = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    kept = batch["attention_mask"].bool()
    assert (plain - theirs["logits"])[kept].abs().max() < 2e-4


def test_stage_3_gradients_reach_only_the_vm_head(model):
    model.requires_grad_(False)
    model.vm_head.requires_grad_(True)
    objective = VisualWords(VisualWordsConfig(target="language_model", weights={"lm": 0.0, "vm": 1.0}))
    found = gradients(model, model(**image_batch(), objective=objective).loss)
    assert set(found) == {"vm_head.weight"}
    assert found["vm_head.weight"].any()


def test_stage_4_gradients_never_reach_the_vm_head(model):
    found = gradients(model, model(**image_batch(), objective=VisualWords()).loss)
    assert not found.get("vm_head.weight", torch.zeros(1)).any()
    assert found["lm_head.weight"].any()
    assert found["model.multi_modal_projector.linear_1.weight"].any()


def test_a_detached_target_gives_its_features_no_gradient_through_the_visual_word(model):
    batch = image_batch()
    batch["labels"].fill_(-100)
    model.requires_grad_(False)
    model.vm_head.requires_grad_(True)
    live = VisualWordsConfig(detach_target=False)
    assert (
        not gradients(model, model(**batch, objective=VisualWords()).loss).get("vm_head.weight", torch.zeros(1)).any()
    )
    assert gradients(model, model(**batch, objective=VisualWords(live)).loss)["vm_head.weight"].any()


def test_without_the_vm_term_the_loss_is_llavas(model):
    batch = image_batch()
    ours = model(**batch, objective=VisualWords(VisualWordsConfig(weights={"vm": 0.0})))
    assert set(ours.terms) == {"lm_loss"}
    torch.testing.assert_close(ours.loss, model(**batch).loss)


def test_the_token_before_an_image_predicts_its_first_patch_and_an_image_at_the_start_loses_it():
    is_image = torch.tensor([[False, True, True, False, True, True], [True, True, False, False, False, False]])
    attended = torch.tensor([[True] * 6, [True, True, True, True, False, False]])
    positions = VisualWords().positions(torch.full((2, 6), -100), is_image, attended)
    assert positions["vm"].tolist() == [[True, True, False, True, True], [True, False, False, False, False]]


def test_left_padding_does_not_predict_a_patch():
    is_image = torch.tensor([[False, False, True, True]])
    attended = torch.tensor([[False, False, True, True]])
    positions = VisualWords().positions(torch.full((1, 4), -100), is_image, attended)
    assert positions["vm"].tolist() == [[False, False, True]]


def test_cross_entropy_and_kl_differ_by_the_entropy_of_the_target_and_log_the_same_kl(model):
    batch = image_batch()
    kl = model(**batch, objective=VisualWords(VisualWordsConfig()))
    ce = model(**batch, objective=VisualWords(VisualWordsConfig(divergence="cross_entropy")))
    torch.testing.assert_close(ce.terms["vm_loss"] - kl.terms["vm_loss"], kl.terms["visual_word_entropy"])
    torch.testing.assert_close(ce.terms["kl"], kl.terms["kl"])


def test_a_collapsed_vm_head_shows_as_zero_entropy(model):
    with torch.no_grad():
        model.vm_head.weight.zero_()
        model.model.multi_modal_projector.linear_2.bias.fill_(1.0)
        model.model.multi_modal_projector.linear_2.weight.zero_()
        model.vm_head.weight[9] = 10.0
    output = model(**image_batch(), objective=VisualWords())
    assert output.terms["visual_word_entropy"] < 1e-6


def test_weights_scale_their_terms(model):
    batch = image_batch()
    terms = model(**batch, objective=VisualWords()).terms
    weighed = model(**batch, objective=VisualWords(VisualWordsConfig(weights={"lm": 0.5, "vm": 3.0})))
    torch.testing.assert_close(weighed.loss.detach(), 0.5 * terms["lm_loss"] + 3.0 * terms["vm_loss"])


def test_no_rows_by_vocabulary_matrix_is_ever_made(model):
    """The whole objective, pseudo-image path included, on many rows: no tensor as large as [rows, vocab] appears."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.most = max(self.most, tensor.numel())
            return result

    rows, patches, vocab = 8, 196, 16384
    llm = tiny_llama(hidden_size=16, num_hidden_layers=1, vocab_size=vocab)
    config = tiny_config(llm, tiny_clip(patch_size=2), pseudo_image_features=True, image_seq_length=patches)
    big = VisualWordLlavaForConditionalGeneration(config)
    ids = torch.tensor([[1, *[IMAGE] * patches, 60, 61, 62]]).repeat(rows, 1)
    batch = {"input_ids": ids, "labels": ids.where(ids > 59, -100), "pixel_values": torch.randn(rows, 3, 28, 28)}
    with Largest() as largest:
        big(**batch, objective=VisualWords()).loss.backward()
    assert largest.most < rows * patches * vocab // 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "image"}, "objective.target is one of visual_words, language_model"),
        ({"divergence": "l2"}, "objective.divergence is one of kl, cross_entropy"),
        ({"weights": {"text": 1.0}}, "lm and vm"),
        ({"weights": {"lm": 0.0, "vm": 0.0}}, "nothing would be learned"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(fields, message):
    with pytest.raises(ValueError, match=message):
        VisualWordsConfig(**fields)


def test_cross_entropy_with_a_live_target_warns_of_collapse():
    with pytest.warns(UserWarning, match="collapses"):
        VisualWordsConfig(divergence="cross_entropy", detach_target=False)
