"""The comparison page says what was measured, paired by seed, and the demo's recipes move to the folder that is asked for."""

from pathlib import Path

import pytest

from vwlmm.demo.compare import LAST, page
from vwlmm.demo.run import STAGES, stage_recipe


def score(value: float) -> dict:
    return {kind: {"accuracy": value} for kind in ("overall", "yes/no", "colour and shape")}


def scores(**by_form: list[float]) -> dict:
    pictures = {"blank": score(0.6), "shuffled": score(0.6), "blind": score(0.67)}
    return {
        name.replace("_", " "): {seed: {"real": score(value), **pictures} for seed, value in enumerate(values)}
        for name, values in by_form.items()
    }


MEASURED = scores(visual_words=[0.95, 0.93], plain_LLaVA=[0.94, 0.94]) | {
    "pseudo-image features": scores(x=[0.90, 0.80])["x"]
}
TERMS = {name: {0: {"lm_loss": 0.1}, 1: {"lm_loss": 0.3}} for name in LAST}


def test_the_page_gives_means_spreads_and_differences_paired_by_seed():
    text = page(MEASURED, TERMS)
    assert "| visual words | 0.940 ± 0.014 |" in text
    assert "visual words minus plain LLaVA, paired by seed: +0.000 ± 0.014 (+0.010, -0.010)" in text
    assert "pseudo-image features minus plain LLaVA, paired by seed: -0.090 ± 0.071" in text
    assert "| the commonest answer, without looking | 0.670 |" in text


def test_a_term_that_a_form_does_not_have_is_a_dash_and_not_a_number():
    assert "| plain LLaVA | 0.200 | – | – |" in page(MEASURED, TERMS)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_the_demo_starts_from_the_one_before_it(stage, tmp_path):
    recipe = stage_recipe(stage, tmp_path, [])
    number = list(STAGES).index(stage)
    assert Path(recipe.training["output_dir"]) == tmp_path / stage
    expected = None if number == 0 else str(tmp_path / list(STAGES)[number - 1])
    assert recipe.model.init_from == expected
