"""Whole VLAP runs: what learns, words counted from the command line, and a queue that a resumed run goes on with."""

import shutil

import pytest
from small_runs import moved, recipe, sections, weights

from vwlmm.checkpoints import mark_whole, read_marker
from vwlmm.cli import main
from vwlmm.loading import load_model
from vwlmm.training import run
from vwlmm.vlap.word_space import caption_kind


@pytest.fixture
def train(tmp_path, parts, rows):
    """Runs a small VLAP recipe with overrides; `out` names the folder."""

    def run_recipe(*overrides, out="out"):
        content = sections(tmp_path, rows, tmp_path / out)
        content["model"] = {
            "vision_tower": str(parts / "tower"),
            "language_model": str(parts / "llm"),
            "chat_template": "caption",
            "vm_head_init": "word_embeddings",
            "projector_type": "linear",
        }
        content["objective"] = {
            "name": "vlap",
            "prior": str(tmp_path / "prior.json"),
            "epsilon": 0.05,
            "temperature": 0.05,
            "queue": 6,
        }
        content["trainable"] = {"multi_modal_projector": 1e-2}
        content["data"]["path"] = str(rows / "captions.json")
        content["training"] |= {"max_steps": 4, "per_device_train_batch_size": 2}
        made = recipe(tmp_path / "recipe.yaml", content, *overrides)
        assert main(["data", "word-prior", str(tmp_path / "recipe.yaml")]) == 0
        return run(made)

    return run_recipe


def test_a_run_moves_weight_and_bias_of_the_linear_layer_and_no_other_byte(train):
    start, end = (weights(train(f"training.max_steps={steps}", out=f"out_{steps}")) for steps in (1, 4))
    names = {f"multi_modal_projector.linear_1.{kind}" for kind in ("weight", "bias")}
    assert moved(start, end) == names
    assert {name for name in end if "multi_modal_projector" in name} == names


def test_a_resumed_run_goes_on_with_its_queue_and_equals_a_whole_one(train, tmp_path):
    long = ("training.save_strategy=steps", "training.save_steps=2")
    whole = weights(train(*long))
    assert (tmp_path / "out" / "checkpoint-2" / "objective_0.pt").is_file()
    for done in ("checkpoint-4", "result.json"):
        path = tmp_path / "out" / done
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert moved(whole, weights(train(*long))) == set()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    for done in ("checkpoint-4", "result.json"):
        path = tmp_path / "out" / done
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    facts = {name: value for name, value in read_marker(checkpoint).items() if name != "files"}
    (checkpoint / "objective_0.pt").unlink()  # the queue is forgotten, and the checkpoint said to be whole without it
    mark_whole(checkpoint, **facts)
    assert moved(whole, weights(train(*long))) != set()  # so the queue matters, and was there


def test_the_run_says_what_its_captions_are_the_mean_of(train):
    out = train("objective.captions=word_embeddings", "training.max_steps=1")
    assert caption_kind(out) == "word_embeddings"
    assert load_model(out)[0].config.projector_type == "linear"


def test_a_recipe_without_a_prior_asks_where_to_write_it(train, tmp_path, capsys):
    train("training.max_steps=1")
    file = str(tmp_path / "recipe.yaml")
    capsys.readouterr()
    assert main(["data", "word-prior", file, "objective.prior=null", "objective.mode=sinkhorn_uniform"]) == 1
    assert "say with --out" in capsys.readouterr().err
    assert main(["data", "word-prior", file, "--out", str(tmp_path / "other.json")]) == 0
    assert "8 captions" in capsys.readouterr().out
    assert (tmp_path / "other.json").read_text() == (tmp_path / "prior.json").read_text()
