"""Two ranks, however sharded, are one process: losses, weights and the model that is left behind."""

import json
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from runs import LEVELS, write_recipe
from runs import train as train_rank
from small_runs import logs, weights

from vwlmm import load_model
from vwlmm.cli import main

TERMS = ("loss", "lm_loss", "vm_loss", "kl", "visual_word_entropy", "assignment_loss", "assignment_entropy")
TOLERANCE = 2e-5
REFERENCES: dict = {}


@pytest.fixture
def compare(tmp_path, trained, rows, tmp_path_factory):
    """Runs one process and two ranks, and holds their logs and weights against each other."""

    def run_both(level, *, rows_at_once=2, **recipe):
        alone = recipe | {"training__per_device_train_batch_size": rows_at_once}
        key = json.dumps(alone, sort_keys=True, default=str)
        if key not in REFERENCES:  # one process serves all levels
            folder = tmp_path_factory.mktemp("one")
            assert on_ranks(1, train_rank, write_recipe(folder, "one", trained, rows, **alone)) == ["finished"]
            REFERENCES[key] = folder / "one"
        assert on_ranks(2, train_rank, write_recipe(tmp_path, "two", trained, rows, level=level, **recipe)) == [
            "finished",
            "finished",
        ]
        one, two = REFERENCES[key], tmp_path / "two"
        hold(one, two)
        return one, two

    return run_both


def hold(one, two):
    lines = [line for line in logs(one) if "loss" in line]
    assert len(lines) >= 10
    found = [line for line in logs(two) if "loss" in line]
    for expected, line in zip(lines, found, strict=True):
        for term in TERMS:
            if term in expected:
                assert line[term] == pytest.approx(expected[term], abs=TOLERANCE), (expected["step"], term)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4, abs=1e-6)
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0, msg=name)
    # A wrong gradient moves Adam's weights by far more than this on the whole.
    distance = sum(float((found[name] - expected[name]).norm() ** 2) for name in expected) ** 0.5
    assert distance < 1e-3


def logits(folder, processor_batch):
    model = load_model(folder)[0].eval()
    with torch.no_grad():
        return model(**processor_batch).logits


@pytest.mark.parametrize("level", LEVELS)
def test_twenty_steps_of_stage_4_equal_one_process_and_the_folder_gives_equal_logits(compare, level, question):
    one, two = compare(level)
    torch.testing.assert_close(logits(two, question), logits(one, question), atol=5e-5, rtol=0)


PSEUDO = {"model__pseudo_image_features": True, "trainable__vm_head": 1e-3}


def test_pseudo_image_features_equal_one_process_under_zero3(compare):
    compare("zero3", **PSEUDO, training__max_steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("level", LEVELS)
def test_every_stage_and_level_equals_one_process(compare, level, stage, pseudo, accumulate, gradient_checkpointing):
    changes = {
        "training__gradient_checkpointing": gradient_checkpointing,
        "training__global_batch_size": 4 * accumulate,
    }
    if pseudo:
        changes["model__pseudo_image_features"] = True
    compare(level, stage=stage, **changes)


@pytest.fixture(scope="session")
def two_kinds(rows, tmp_path_factory):
    """Rows in the order picture, picture, text, text: read in order, one rank sees only pictures and the other only text."""
    instruct = json.loads((rows / "instruct.json").read_text())
    pictures = [row for row in instruct if isinstance(row.get("image"), str)][:4]
    text = [row for row in instruct if "image" not in row]
    file = tmp_path_factory.mktemp("kinds") / "rows.json"
    file.write_text(json.dumps([*pictures[:2], *text, *pictures[2:], *reversed(text)]))
    return file


KINDS = {"training__max_steps": 10, "training__train_sampling_strategy": "sequential"}


@pytest.mark.parametrize(
    "level", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in LEVELS if name != "zero3")]
)
@pytest.mark.parametrize("pseudo", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_rank_with_pictures_only_beside_one_with_text_only_equals_one_process(compare, two_kinds, level, pseudo):
    changes = KINDS | {"data__path": str(two_kinds)} | (PSEUDO if pseudo else {})
    compare(level, **changes)


@pytest.mark.parametrize("captions", ["word_embeddings", pytest.param("contextual", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "level", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in LEVELS if name != "zero3")]
)
def test_vlap_shares_words_out_over_both_ranks_as_one_process_does(compare, parts, rows, tmp_path, level, captions):
    """The words' masses are those of the batch of all ranks: with those of a rank alone the losses would differ."""
    objective = {"name": "vlap", "prior": str(tmp_path / "prior.json"), "epsilon": 0.05, "temperature": 0.05}
    changes = {
        "model": {
            "vision_tower": str(parts / "tower"),
            "language_model": str(parts / "llm"),
            "chat_template": "caption",
            "vm_head_init": "word_embeddings",
            "projector_type": "linear",
        },
        "objective": objective | {"captions": captions, "weights": {"lm": 1.0, "assignment": 1.0}},
        "trainable": {"multi_modal_projector": 1e-3},
        "data__path": str(rows / "captions.json"),
        "training__max_steps": 10,
    }
    counted = write_recipe(tmp_path, "counted", Path(), rows, **changes)
    assert main(["data", "word-prior", str(counted)]) == 0
    # One process without accumulation: words are shared out over what is seen at once.
    one, _ = compare(level, rows_at_once=4, **changes)
    first, *_, last = (line["assignment_loss"] for line in logs(one) if "assignment_loss" in line)
    assert last < first


def test_more_ranks_than_rows_in_the_last_batch_count_no_row_twice(compare, rows, tmp_path):
    seven = json.loads((rows / "instruct.json").read_text())[:7]
    (tmp_path / "seven.json").write_text(json.dumps(seven))
    compare("zero2", data__path=str(tmp_path / "seven.json"), training__max_steps=10)


def test_without_padding_two_ranks_equal_one_process(compare):
    compare("zero3", data__padding_free=True, training__max_steps=10)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_streamed_source_is_read_in_the_order_of_one_process(compare, rows, tmp_path, workers):
    seven = json.loads((rows / "instruct.json").read_text())[:7]  # 4 + 3: in the last step one rank has one row
    (tmp_path / "seven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seven))
    stream = {"data__path": str(tmp_path / "seven.jsonl"), "data__images": str(rows / "images")}
    # Workers are started by the fork server and import everything: once a run, not once an epoch.
    lasting = {"data__num_workers": workers, "training__dataloader_persistent_workers": workers > 0}
    compare("zero2", **stream, **lasting, data__streaming=True, training__max_steps=10)


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_on_two_ranks_counts_every_row_once(tmp_path, trained, rows, streaming):
    lines = [json.dumps(row) + "\n" for row in json.loads((rows / "instruct.json").read_text())]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    validate = {"data__validation_path": str(tmp_path / "rows.jsonl"), "training__per_device_eval_batch_size": 3}
    if streaming:
        validate |= {"data__streaming": True, "data__path": str(tmp_path / "rows.jsonl")}
    steps = {"training__max_steps": 1}
    results = []
    for name, ranks, level in (("one", 1, None), ("two", 2, "zero3")):
        file = write_recipe(tmp_path, name, trained, rows, level=level, **validate, **steps)
        assert set(on_ranks(ranks, train_rank, file)) == {"finished"}
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    for term in ("eval_lm_loss", "eval_vm_loss", "eval_loss", "eval_kl"):
        assert results[1][term] == pytest.approx(results[0][term], rel=1e-5), term
