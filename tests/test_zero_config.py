"""`training.deepspeed` is completed from the recipe, and what contradicts it is an error before a model is loaded."""

import json
from pathlib import Path

import pytest
from small_runs import recipe, sections

from vwlmm.training import run
from vwlmm.zero_config import fsdp_config, share_batch, zero_config

FILES = sorted((Path(__file__).parents[1] / "zero_configs").glob("*.json"))
TRAINING = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "bf16": True}


def read(source, **training):
    return zero_config(source, TRAINING | training, processes=8, on_cpu=False)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_leave_to_the_recipe_what_it_says_and_write_gradient_clipping(file):
    config = read(str(file))
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert json.loads(file.read_text())[key] == config[key] == "auto"
    zero = config["zero_optimization"]
    assert zero["stage"] == int(file.stem[4])
    assert zero.get("stage3_gather_16bit_weights_on_model_save", zero["stage"] < 3)


def test_there_is_one_file_for_each_level():
    assert [file.stem for file in FILES] == ["zero1", "zero2", "zero3", "zero3_offload"]


def test_a_short_configuration_is_completed():
    config = read({"zero_optimization": {"stage": 3}})
    # DeepSpeed's own default would clip at 1.0 whatever the recipe says.
    assert config["gradient_clipping"] == "auto"
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 16}, r"train_micro_batch_size_per_gpu: 16, the recipe says 4"),
        ({"gradient_accumulation_steps": 1}, r"gradient_accumulation_steps: 1, the recipe says 2"),
        (
            {"train_batch_size": 100},
            r"train_batch_size: 100, the recipe says 64 \(4 rows × 2 accumulated × 8 processes\)",
        ),
        ({"gradient_clipping": 1.0}, r"gradient_clipping: 1.0, the recipe says 0.5 \(training.max_grad_norm\)"),
        ({"bf16": {"enabled": False}}, r"bf16.enabled: false, the recipe says training.bf16: true"),
        ({"fp16": {"enabled": True}}, r"fp16.enabled: true, the recipe says training.fp16: false"),
        ({"optimizer": {"type": "AdamW"}}, r"'optimizer' would replace what the recipe says with `trainable`"),
        ({"scheduler": {"type": "WarmupLR"}}, r"'scheduler' would replace .*lr_scheduler_type"),
        ({"zero_optimization": {"stage": 4}}, r"stage is 0, 1, 2 or 3: got 4"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            r"would leave no model folder to load",
        ),
    ],
)
def test_a_value_that_contradicts_the_recipe_is_an_error_with_both(changes, message):
    with pytest.raises(ValueError, match=message):
        read({"zero_optimization": {"stage": 2}, **changes})


def test_a_value_that_agrees_with_the_recipe_is_taken():
    assert read({"zero_optimization": {"stage": 2}, "train_batch_size": 64})["train_batch_size"] == 64


def test_without_a_gpu_nothing_is_compiled_or_pinned():
    config = zero_config(str(FILES[-1]), {}, processes=1, on_cpu=True)
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert config["zero_optimization"]["offload_optimizer"]["pin_memory"] is False


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training.deepspeed names zero9.json: there is no such file"):
        read("zero9.json")
    (tmp_path / "broken.json").write_text("{stage: 2}")
    with pytest.raises(ValueError, match=r"broken.json is not readable JSON"):
        read(str(tmp_path / "broken.json"))


def test_a_global_batch_is_shared_by_processes_and_accumulation():
    training = {"global_batch_size": 64, "per_device_train_batch_size": 4}
    assert share_batch(training, processes=8) == {"gradient_accumulation_steps": 2}
    assert share_batch(training, processes=1) == {"gradient_accumulation_steps": 16}
    assert share_batch({}, processes=8) == {}


def test_a_global_batch_that_processes_cannot_share_is_an_error():
    with pytest.raises(
        ValueError, match=r"global_batch_size 64 cannot be shared by 3 processes of 4 rows.*multiple of 12"
    ):
        share_batch({"global_batch_size": 64, "per_device_train_batch_size": 4}, processes=3)
    with pytest.raises(ValueError, match="cannot be shared"):
        share_batch({"global_batch_size": 4, "per_device_train_batch_size": 8}, processes=1)
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps 3 contradicts .* needs 2 on 8 processes"):
        share_batch(
            {"global_batch_size": 64, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, processes=8
        )


def test_a_global_batch_size_is_the_same_run_as_the_accumulation_it_means(tmp_path, trained, rows):
    losses = []
    for name, key in (("a", "global_batch_size=8"), ("b", "gradient_accumulation_steps=4")):
        content = sections(trained, rows, tmp_path / name)
        options = ("training.per_device_train_batch_size=2", f"training.{key}")
        out = run(recipe(tmp_path / f"{name}.yaml", content, *options))
        losses.append(json.loads((out / "trainer_state.json").read_text())["log_history"][0]["loss"])
    assert losses[0] == losses[1]


def test_fsdp_shards_by_layer_and_saves_a_whole_model_and_needs_a_gpu():
    config = fsdp_config(None, on_cpu=False)
    assert (config["version"], config["state_dict_type"]) == (2, "FULL_STATE_DICT")
    with pytest.raises(ValueError, match=r"training.fsdp needs a GPU"):
        fsdp_config(None, on_cpu=True)
