"""Dual encoders: benchmarks that compare embeddings, after training and while it goes on."""

import pytest
from small_pairs import pair_sections
from small_runs import logs, recipe

from vwlmm.benchmarks import get_benchmark
from vwlmm.evaluation.runner import LoadedModel, evaluate
from vwlmm.evaluation.settings import EvaluationConfig
from vwlmm.training import run


@pytest.fixture
def pair(towers, pairs, easy_vqa, tmp_path):
    """A pair trained for a few steps, with retrieval asked while it trains."""
    content = pair_sections(towers, pairs, tmp_path / "pair")
    content["evaluation"] = {"benchmark": "embedded_retrieval", "data": str(easy_vqa), "every": 2, "batch_size": 7}
    return run(recipe(tmp_path / "pair.yaml", content))


def test_a_pair_is_asked_while_it_trains_and_afterwards_with_the_same_figure(pair, easy_vqa, tmp_path):
    logged = [line["eval_embedded_retrieval_R_mean"] for line in logs(pair) if "eval_embedded_retrieval_R_mean" in line]
    benchmark = get_benchmark("embedded_retrieval")
    loaded = LoadedModel.load(pair)
    result = evaluate(loaded, benchmark, benchmark.files(easy_vqa), tmp_path / "out", EvaluationConfig(batch_size=24))
    assert logged[-1] == pytest.approx(result.metrics["R_mean"], rel=1e-5)
    assert result.num_questions == 24


def test_a_pair_cannot_be_asked_for_text(pair, easy_vqa, tmp_path):
    benchmark = get_benchmark("embedded_vqa")
    with pytest.raises(ValueError, match="DualEncoderModel only embeds pictures and texts"):
        evaluate(
            LoadedModel.load(pair), benchmark, benchmark.files(easy_vqa), tmp_path / "out", EvaluationConfig(limit=2)
        )
