"""Whole runs: one normaliser for every batch, what is not named stays, an interrupted run equals a whole one."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import llava_row, logs, moved, recipe, sections, weights
from tiny import image_batch, tiny_config
from transformers import LlavaForConditionalGeneration, TrainerCallback

import vwlmm.training
from vwlmm import VisualWordLlavaForConditionalGeneration, load_model
from vwlmm.checkpoints import last_whole_checkpoint
from vwlmm.data.bad_row import BadRow
from vwlmm.data.collator import Collator
from vwlmm.data.dataset import load_datasets
from vwlmm.objectives import VisualWords, VisualWordsConfig
from vwlmm.trainer import ObjectiveTrainer
from vwlmm.training import check_heads, run

LORA = {"r": 2, "alpha": 4, "learning_rate": 1e-3}
SGD = ("training.optim=sgd", "training.max_grad_norm=0", "trainable.language_model=0.1", "trainable.lm_head=0.1")


@pytest.fixture
def train(tmp_path, trained, rows):
    """Runs the small recipe with overrides; `out` names the folder."""

    def run_recipe(*overrides, out="out", **changes):
        content = sections(trained, rows, tmp_path / out)
        for section, values in changes.items():
            content[section] = values
        return run(recipe(tmp_path / f"{out}.yaml", content, *overrides))

    return run_recipe


@pytest.fixture
def train_until(train, monkeypatch):
    """As `train`, with the power cut at the end of a step."""

    def run_recipe(step, *overrides, **options):
        class PowerCut(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == step:
                    raise KeyboardInterrupt

        class CutTrainer(ObjectiveTrainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.add_callback(PowerCut())

        with monkeypatch.context() as patch:
            patch.setattr(vwlmm.training, "ObjectiveTrainer", CutTrainer)
            with pytest.raises(KeyboardInterrupt):
                train(*overrides, **options)

    return run_recipe


def batches(micro, accumulate):
    return f"training.per_device_train_batch_size={micro}", f"training.gradient_accumulation_steps={accumulate}"


@pytest.mark.parametrize("weighing", ["{lm: 1.0, vm: 1.0}", "{lm: 0.0, vm: 2.0}", "{lm: 1.0, vm: 0.0}"])
def test_eight_accumulated_rows_equal_one_batch_of_eight(train, weighing):
    options = (*SGD, f"objective.weights={weighing}")
    whole = train(*options, *batches(8, 1), out="whole")
    for micro, accumulate in ((1, 8), (3, 3)):
        parts = train(*options, *batches(micro, accumulate), out=f"parts of {micro}")
        expected, found = weights(whole), weights(parts)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)
        for term in ("loss", "lm_loss", "vm_loss", "kl", "visual_word_entropy"):
            if term in logs(whole)[0]:
                assert logs(parts)[0][term] == pytest.approx(logs(whole)[0][term], rel=1e-5), term


def test_eight_accumulated_rows_equal_one_batch_of_eight_with_adapters(train):
    options = ("training.optim=sgd", "training.max_grad_norm=0")
    learns = {"trainable": {"multi_modal_projector": 0.1}, "lora": LORA | {"dropout": 0.0, "learning_rate": 1.0}}
    folders = []
    for micro, accumulate in ((8, 1), (1, 8)):
        out = train(*options, *batches(micro, accumulate), out=f"{micro}", **learns)
        model = load_model(out)[0]
        folders.append(dict(model.named_parameters()))
    for name, parameter in folders[0].items():
        torch.testing.assert_close(folders[1][name], parameter, atol=1e-6, rtol=0)


def test_modules_not_named_in_the_recipe_do_not_move_by_a_bit(train, trained):
    out = train("training.max_steps=3", "training.weight_decay=0.1", trainable={"vm_head": 1e-2}, objective=STAGE_3)
    assert moved(weights(trained), weights(out)) == {"vm_head.weight"}


def test_a_head_that_learns_nothing_is_said(train, caplog):
    train(trainable={"multi_modal_projector": 1e-3, "vm_head": 1e-3})
    assert (
        "trainable names vm_head, but this objective gives it no gradient (target visual_words, detached)"
        in caplog.text
    )


def test_a_head_that_learns_nothing_stops_a_run_under_zero_which_would_crash(tmp_path, trained, rows):
    content = sections(trained, rows, tmp_path / "out")
    content |= {"objective": STAGE_3, "trainable": {"vm_head": 1e-3, "lm_head": 1e-3}}
    content["training"]["deepspeed"] = "zero_configs/zero2.json"
    with pytest.raises(ValueError, match="trainable names lm_head, but this objective gives it no gradient"):
        check_heads(recipe(tmp_path / "out.yaml", content), VisualWordLlavaForConditionalGeneration(tiny_config()))


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("target", ["visual_words", "language_model"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("weighing", [{"lm": 1.0, "vm": 1.0}, {"lm": 0.0, "vm": 1.0}, {"lm": 1.0, "vm": 0.0}])
def test_the_heads_said_to_learn_are_those_that_get_a_gradient(pseudo, target, detach, weighing):
    objective = VisualWords(VisualWordsConfig(target=target, detach_target=detach, weights=weighing))
    model = VisualWordLlavaForConditionalGeneration(tiny_config(pseudo_image_features=pseudo)).train()
    loss = model(**image_batch(), objective=objective).loss
    if loss.requires_grad:
        loss.backward()
    moved = {
        name
        for name in ("lm_head", "vm_head")
        if (gradient := getattr(model, name).weight.grad) is not None and gradient.abs().max() > 0
    }
    assert objective.heads_that_learn(pseudo) == moved


STAGE_3 = {"name": "visual_words", "target": "language_model", "weights": {"lm": 0.0, "vm": 1.0}}


def test_each_module_s_rate_reaches_the_optimizer(train, monkeypatch):
    seen = {}

    class Looking(ObjectiveTrainer):
        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            names = {id(p): name for name, p in self.model.named_parameters()}
            seen.update({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
            return optimizer

    monkeypatch.setattr(vwlmm.training, "ObjectiveTrainer", Looking)
    train(
        "training.learning_rate=3e-4",
        trainable={"multi_modal_projector": 1e-2, "language_model.layers.1": None, "lm_head": 1e-3},
    )
    assert {rate for name, rate in seen.items() if "projector" in name} == {1e-2}
    assert {rate for name, rate in seen.items() if "layers" in name} == {3e-4}
    assert all(".layers.1." in name for name in seen if "layers" in name)
    assert seen["lm_head.weight"] == 1e-3


LONG = ("training.max_steps=6", "training.save_strategy=steps", "training.save_steps=3", *batches(3, 1))
LONG += ("training.lr_scheduler_type=cosine", "training.logging_steps=3")


def without_clock(line):
    clock = ("per_second", "runtime", "mfu")
    return {name: value for name, value in line.items() if not any(word in name for word in clock)}


def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(train, train_until, with_dropout):
    model = {"init_from": str(with_dropout)}
    whole = train(*LONG, out="whole", model=model)
    train_until(5, *LONG, out="cut", model=model)
    cut = train(*LONG, out="cut", model=model)
    assert moved(weights(whole), weights(cut)) == set()
    assert [without_clock(line) for line in logs(cut)[:2]] == [without_clock(line) for line in logs(whole)[:2]]


def test_an_interrupted_lora_run_equals_an_uninterrupted_one_bit_for_bit(train, train_until, tmp_path):
    learns = {"trainable": {"multi_modal_projector": 1e-3}, "lora": LORA | {"dropout": 0.2}}
    whole = train(*LONG, out="whole", **learns)
    train_until(5, *LONG, out="cut", **learns)
    cut = train(*LONG, out="cut", **learns)
    assert moved(*(load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))) == set()


def test_a_run_cut_after_its_last_checkpoint_only_writes_its_result(train):
    out = train(*LONG)
    before = weights(out)
    for name in ("result.json", "model.safetensors"):
        (out / name).unlink()
    assert train(*LONG) == out
    assert moved(before, weights(out)) == set()
    assert (out / "result.json").is_file()


@pytest.mark.parametrize("state", [None, "", '{"global_step": 6, "log_hi', "\x00\x00"])
def test_a_half_written_checkpoint_is_not_used(train, train_until, tmp_path, state):
    train_until(5, *LONG)
    half = shutil.copytree(tmp_path / "out" / "checkpoint-3", tmp_path / "out" / "checkpoint-4")
    (half / "trainer_state.json").unlink()
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-3"
    assert (train(*LONG) / "result.json").is_file()


def test_resume_never_starts_from_the_first_step(train, train_until, caplog):
    train_until(5, *LONG)
    out = train(*LONG, "training.resume=never")
    assert "going on from" not in caplog.text
    assert [line["step"] for line in logs(out)] == [3, 6, 6]


def test_a_finished_run_is_left_alone(train, caplog):
    out = train()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert train() == out
    assert "finished: nothing to do" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_with_another_run_is_refused_and_the_first_different_key_named(train):
    train()
    with pytest.raises(ValueError, match=r"already holds another run \(training.max_steps: 1 there, 2 here\)"):
        train("training.max_steps=2")
    with pytest.raises(ValueError, match=r"\(training.seed: None there, 3 here\)"):
        train("training.seed=3")


def test_a_folder_with_other_files_is_refused(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files, but no run of ours \(no recipe.yaml\): choose an empty folder"):
        train()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_validation_terms_are_means_over_all_scored_rows_whatever_the_batch_size(train, trained, rows, batch_size):
    validate = (f"data.validation_path={rows / 'instruct.json'}", f"training.per_device_eval_batch_size={batch_size}")
    out = train(*validate, "objective.weights={lm: 0.5, vm: 2.0}")
    result = json.loads((out / "result.json").read_text())
    expected = textbook_means(out, rows)
    assert result["eval_lm_loss"] == pytest.approx(expected["lm"], rel=1e-5)
    assert result["eval_vm_loss"] == pytest.approx(expected["vm"], rel=1e-4)
    assert result["eval_loss"] == pytest.approx(0.5 * result["eval_lm_loss"] + 2.0 * result["eval_vm_loss"], rel=1e-6)


def textbook_means(model_folder, rows):
    """Both terms from plain logits: mean negative log-likelihood over answer tokens, mean KL(q ‖ p) over patches."""
    model, processor = load_model(model_folder)
    config = recipe(model_folder / "again.yaml", sections(model_folder, rows, model_folder)).data
    sums, counts = {"lm": 0.0, "vm": 0.0}, {"lm": 0, "vm": 0}
    for example in load_datasets(config, processor, seed=0)[0]:
        batch = Collator(processor)([example])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            p = model(**batch).logits[0, :-1].log_softmax(-1)
            scored = labels != -100
            sums["lm"] -= p[scored].gather(1, labels[scored, None]).sum().item()
            counts["lm"] += int(scored.sum())
            if "pixel_values" in batch:
                features = torch.cat(model.get_image_features(batch["pixel_values"]).pooler_output)
                q = model.vm_head(features).log_softmax(-1)
                p = p[batch["input_ids"][0, 1:] == processor.image_token_id]
                sums["vm"] += (q.exp() * (q - p)).sum().item()
                counts["vm"] += len(q)
    return {name: sums[name] / counts[name] for name in sums}


def test_a_validation_split_is_held_out_and_evaluated_while_training(train):
    out = train(
        "data.validation_split=2", "training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=2"
    )
    evaluated = [line for line in logs(out) if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [1, 2, 2]
    for line in evaluated:  # logged to six digits
        assert line["eval_loss"] == pytest.approx(line["eval_lm_loss"] + line["eval_vm_loss"], rel=1e-5)


def test_the_best_checkpoint_can_be_the_one_that_is_kept(train, rows):
    best = ("training.load_best_model_at_end=true", "training.metric_for_best_model=eval_lm_loss")
    each = ("training.eval_strategy=steps", "training.eval_steps=3", f"data.validation_path={rows / 'instruct.json'}")
    # A rate that makes the second half worse than the first.
    out = train(*LONG, *best, *each, "training.lr_scheduler_type=constant", trainable={"lm_head": 1.0})
    first, second, last = (line["eval_lm_loss"] for line in logs(out) if "eval_loss" in line)
    assert min(first, second) == first == last
    assert moved(weights(out / "checkpoint-3"), weights(out)) == set()


def test_terms_and_speed_are_logged_by_name(train):
    line = logs(train("training.max_steps=4", "training.logging_steps=2"))[1]
    assert line["step"] == 4
    assert line["loss"] == pytest.approx(line["lm_loss"] + line["vm_loss"], rel=1e-5)
    assert line["kl"] == pytest.approx(line["vm_loss"], rel=1e-5)
    assert 0 < line["visual_word_entropy"] <= math.log(301) + 1e-5
    assert line["tokens_per_second"] > line["images_per_second"] > 0


def test_terms_of_weight_0_are_not_logged(train):
    line = logs(train("objective.weights={lm: 1.0, vm: 0.0}"))[0]
    assert "lm_loss" in line
    assert not {"vm_loss", "kl", "visual_word_entropy"} & line.keys()


def test_a_nan_is_shown_and_not_hidden(train, trained, tmp_path):
    model, processor = load_model(trained)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    line = logs(train(model={"init_from": str(tmp_path / "broken")}))[0]
    assert math.isnan(line["loss"])
    assert math.isnan(line["lm_loss"])


@pytest.fixture
def plain_llava(trained, tmp_path):
    """The trained model as transformers' own LLaVA saves it: without a VM head."""
    LlavaForConditionalGeneration.from_pretrained(trained).save_pretrained(tmp_path / "llava")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(trained / name, tmp_path / "llava" / name)
    return tmp_path / "llava"


def test_a_plain_llava_without_vm_head_init_is_an_error_that_names_the_key(train, plain_llava):
    with pytest.raises(ValueError, match=r"without a VM head .*model.vm_head_init"):
        train(model={"init_from": str(plain_llava)})


def test_a_plain_llava_with_vm_head_init_starts_its_vm_head_there(train, plain_llava):
    out = train(
        model={"init_from": str(plain_llava), "vm_head_init": "lm_head"}, trainable={"multi_modal_projector": 1e-3}
    )
    saved = weights(out)
    assert torch.equal(saved["vm_head.weight"], saved["language_model.lm_head.weight"])


@pytest.fixture
def with_bad_rows(rows, tmp_path):
    """The good rows with two bad ones among them."""
    good = json.loads((rows / "instruct.json").read_text())
    lost = llava_row("lost", "<image>\nWhat?", "It", image="lost.png")
    extra = llava_row("extra", "<image><image>\nWhat?", "It", image="0.png")
    (tmp_path / "bad.json").write_text(json.dumps([lost, *good, extra]))
    return tmp_path / "bad.json"


def test_a_bad_row_stops_the_run_and_is_named(train, with_bad_rows):
    with pytest.raises(BadRow, match=r"bad.json row \d .*field 'image'"):
        train(f"data.path={with_bad_rows}", "training.per_device_train_batch_size=10")


def test_quarantine_goes_on_and_lists_the_bad_rows(train, with_bad_rows):
    out = train(f"data.path={with_bad_rows}", "data.on_bad_row=quarantine", "training.num_train_epochs=2")
    out = train(
        f"data.path={with_bad_rows}", "data.on_bad_row=quarantine", "training.max_steps=4", out="all rows seen twice"
    )
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["row_id"] for row in listed) == ["extra", "lost"]
    assert (out / "result.json").is_file()


def test_a_streamed_source_trains(train, rows, tmp_path):
    lines = [json.dumps(row) for row in json.loads((rows / "instruct.json").read_text())]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    out = train(f"data.path={tmp_path / 'rows.jsonl'}", "data.streaming=true", *batches(2, 2))
    assert logs(out)[0]["lm_loss"] > 0


def test_an_interrupted_streamed_run_equals_an_uninterrupted_one_bit_for_bit(train, train_until, rows, tmp_path):
    lines = [json.dumps(row) for row in json.loads((rows / "instruct.json").read_text())]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    options = (f"data.path={tmp_path / 'rows.jsonl'}", "data.streaming=true", "data.num_workers=2", *LONG)
    whole = weights(train(*options, out="whole"))
    train_until(5, *options, out="cut")
    assert moved(whole, weights(train(*options, out="cut"))) == set()


def test_a_module_that_the_model_lacks_is_an_error(train):
    with pytest.raises(ValueError, match="Did you mean 'vm_head'"):
        train(trainable={"vm_haed": 1e-3})


def test_training_arguments_that_contradict_each_other_are_an_error_of_that_section(train):
    with pytest.raises(ValueError, match="training: "):
        train("training.load_best_model_at_end=true", "training.eval_strategy=steps")
