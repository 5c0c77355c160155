"""The three VQA accuracies agree with the published evaluators on every collected case."""

import pytest
from scoring import cases

from vwlmm.benchmarks.vqa_accuracy import (
    evalai_accuracy,
    evalai_normalise,
    normalisation_applies,
    normalise,
    official_accuracy,
    on_one_line,
    vizwiz_accuracy,
    without_punctuation,
)

CASES = cases("vqa")["cases"]


def annotators(case):
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(case["answers"], start=1)]


@pytest.mark.parametrize("case", cases("vqa_norm")["cases"], ids=lambda case: repr(case["text"]))
def test_string_steps_are_the_official_ones(case):
    assert without_punctuation(on_one_line(case["text"])) == case["official_after_punctuation"]
    assert normalise(case["text"]) == case["official_normalised"]
    assert evalai_normalise(case["text"]) == case["evalai_normalised"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['tag']}")
def test_each_rule_gives_its_evaluators_accuracy(case):
    text, answers = case["prediction"], case["answers"]
    assert normalisation_applies(annotators(case)) == case["official_applies_normalisation"]
    assert official_accuracy(text, annotators(case)) == pytest.approx(case["official_accuracy"], abs=1e-6)
    submitted = official_accuracy(evalai_normalise(text), annotators(case))
    assert submitted == pytest.approx(case["submission_then_official_accuracy"], abs=1e-6)
    assert evalai_accuracy(text, answers) == pytest.approx(case["evalai_accuracy"], abs=1e-6)
    assert vizwiz_accuracy(text, answers) == pytest.approx(case["vizwiz_api_accuracy"], abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['tag']}")
def test_without_answer_ids_equal_answers_drop_out_together_as_officially(case):
    bare = [{"answer": answer} for answer in case["answers"]]
    expected = case["official_accuracy_without_answer_id"]
    assert official_accuracy(case["prediction"], bare) == pytest.approx(expected, abs=1e-6)


def test_only_the_first_32_full_stops_go():
    assert normalise("." * 33 + "red") == ".red"


def test_scoring_one_answer_does_not_change_the_next():
    assert normalise("seven") == "7"
    assert normalise("something new") == "something new"
    assert normalise("seven") == "7"
