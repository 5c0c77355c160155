"""Rows behind one another in one sequence: the losses and gradients of the padded batch, for every kind of LLM."""

import pytest
import torch
from small_runs import logs, recipe, sections, weights
from tiny import PATCHES, VOCAB, tiny_config, tiny_opt
from transformers import AutoConfig

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.config import read_recipe
from vwlmm.data.collator import Collator
from vwlmm.models.visual_word_llava import PADDING_FREE
from vwlmm.objectives import VisualWords
from vwlmm.training import run

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(config):
    torch.manual_seed(0)
    return VisualWordLlavaForConditionalGeneration(config).eval()


class Tokenizer:
    pad_token_id, eos_token_id = 3, 2


def rows_of_all_kinds(config):
    """A picture first, text alone, a picture in the middle, two pictures, nothing scored: each begins unlike the last ends."""
    generator = torch.Generator().manual_seed(0)
    image = [config.image_token_id] * PATCHES
    word = lambda count: torch.randint(10, 300, (count,), generator=generator).tolist()  # noqa: E731
    texts = [image + word(5), word(9), word(3) + image + word(4), word(1) + image + word(2) + image + word(3), word(4)]
    rows = []
    for number, ids in enumerate(texts):
        ids = torch.tensor(ids)
        labels = ids.masked_fill((ids == config.image_token_id) | (number == len(texts) - 1), -100)
        row = {"input_ids": ids, "labels": labels}
        images = int((ids == config.image_token_id).sum()) // PATCHES
        if images:
            row["pixel_values"] = torch.randn(images, 3, 28, 28, generator=generator)
        rows.append(row)
    return rows


def outcome(model, batch):
    model.zero_grad()
    output = model(**batch, objective=VisualWords())
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.terms, gradients, model.count_items(batch, VisualWords())


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("name", PADDING_FREE)
def test_terms_gradients_and_counts_equal_those_of_the_padded_batch(name, pseudo):
    llm = AutoConfig.for_model(name, **SIZES, num_key_value_heads=2, vocab_size=VOCAB, pad_token_id=3)
    config = tiny_config(llm, pseudo_image_features=pseudo)
    model, rows = build(config), rows_of_all_kinds(config)
    padded, free = (Collator(Tokenizer, padding_free=free)(rows) for free in (False, True))
    assert free["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    assert "attention_mask" not in free
    (terms, gradients, counts), (free_terms, free_gradients, free_counts) = (
        outcome(model, batch) for batch in (padded, free)
    )
    assert counts == free_counts
    assert (
        counts["vm"] < free["input_ids"].eq(config.image_token_id).sum()
    )  # a picture that begins a row is not predicted
    for term, value in terms.items():
        torch.testing.assert_close(free_terms[term], value, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == free_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(free_gradients[name], gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_without_positions_that_begin_anew_the_losses_would_differ():
    config = tiny_config()
    model, rows = build(config), rows_of_all_kinds(config)
    batch = Collator(Tokenizer, padding_free=True)(rows)
    right = outcome(model, batch)[0]["lm_loss"]
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    assert abs(outcome(model, batch)[0]["lm_loss"] - right) > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_without_padding_is_the_run_with_it(trained, rows, tmp_path, checkpointing):
    runs = []
    for free in (False, True):
        content = sections(trained, rows, tmp_path / f"free_{free}")
        options = (f"data.padding_free={free}", f"training.gradient_checkpointing={checkpointing}")
        sgd = ("training.optim=sgd", "training.per_device_train_batch_size=4", "training.max_steps=4")
        runs.append(run(recipe(tmp_path / f"{free}.yaml", content, *options, *sgd)))
    one, two = ([line for line in logs(out) if "loss" in line] for out in runs)
    for padded, free in zip(one, two, strict=True):
        assert free["loss"] == pytest.approx(padded["loss"], abs=2e-5)
    expected, found = (weights(out) for out in runs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_vlap_refuses_it_as_it_looks_at_pairs():
    with pytest.raises(ValueError, match=r"padding_free: vlap looks at rows as pairs"):
        read_recipe("train/vlap/embedded.yaml", ["data.padding_free=true"])


def test_an_llm_whose_rows_would_see_each_other_is_refused():
    model = build(tiny_config(tiny_opt()))
    with pytest.raises(ValueError, match=r"of opt that is not known: leave padding_free out"):
        outcome(model, Collator(Tokenizer, padding_free=True)(rows_of_all_kinds(model.config)))


def test_padding_to_a_multiple_contradicts_it():
    with pytest.raises(ValueError, match="give one"):
        Collator(Tokenizer, padding_free=True, pad_to_multiple_of=8)
