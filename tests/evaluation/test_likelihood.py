"""Options are scored as a plain forward pass over the whole conversation scores them."""

import pytest
import torch

from vwlmm.benchmarks import Question
from vwlmm.benchmarks.engines import Ranker
from vwlmm.evaluation.generation import Pictures
from vwlmm.evaluation.likelihood import LikelihoodRanker
from vwlmm.evaluation.prompts import render, render_answered, template_of

OPTIONS = ["red", "It is blue.", "green or red", "a", "end"]


def question(*images):
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": "\nWhat colour is this?"}]
    return Question("1", [{"role": "user", "content": content}], images)


@pytest.fixture
def pictures(toy_data):
    pictures = Pictures(toy_data / "images", 1)
    yield pictures
    pictures.close()


def plainly(loaded, asked, option, completion, pictures):
    """One forward pass over prompt and option, and the log-probabilities of what the option adds."""
    template = template_of(loaded.processor, completion)
    prompt = render(asked, loaded.processor, template)
    whole = prompt + option if completion else render_answered(asked, option, loaded.processor, template)
    images = pictures.load(asked) or None
    special = {"add_special_tokens": not prompt.startswith(loaded.processor.tokenizer.bos_token)}
    inputs = loaded.processor(text=whole, images=images, return_tensors="pt", **special)
    length = loaded.processor(text=prompt, images=images, return_tensors="pt", **special)["input_ids"].shape[1]
    with torch.no_grad():
        chances = loaded.model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    return sum(chances[place - 1, ids[place]].item() for place in range(length, len(ids)))


@pytest.mark.parametrize("completion", [False, True])
@pytest.mark.parametrize("images", [(), ("red.png",), ("red.png", "blue.png")])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_options_score_is_the_sum_over_its_tokens_in_one_plain_pass(
    loaded, pictures, completion, images, batch_size
):
    asked = question(*images)
    ranker = LikelihoodRanker(loaded.model, loaded.processor, pictures, batch_size=batch_size, completion=completion)
    assert isinstance(ranker, Ranker)
    wanted = [plainly(loaded, asked, option, completion, pictures) for option in OPTIONS]
    assert ranker.rank(asked, OPTIONS) == pytest.approx(wanted, abs=1e-4)


def test_one_option_alone_scores_as_among_others(loaded, pictures):
    ranker = LikelihoodRanker(loaded.model, loaded.processor, pictures, batch_size=4, completion=False)
    together = ranker.rank(question("red.png"), OPTIONS)
    alone = [ranker.rank(question("red.png"), [option])[0] for option in OPTIONS]
    assert alone == pytest.approx(together, abs=1e-4)


def test_options_without_text_are_refused(loaded, pictures):
    ranker = LikelihoodRanker(loaded.model, loaded.processor, pictures, batch_size=4, completion=False)
    with pytest.raises(ValueError, match="each with text"):
        ranker.rank(question("red.png"), ["red", " "])
