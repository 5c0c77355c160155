"""Every recipe in the tree is read strictly, built with tiny parts and stepped once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import moved, weights

from vwlmm import load_model
from vwlmm.cli import main
from vwlmm.config import read_recipe
from vwlmm.loading import has_vm_head
from vwlmm.training import build_model, run
from vwlmm.visualize import visual_word_map

ROOT = Path(__file__).parents[1]
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "train").rglob("*.yaml"))
PAIRS = [name for name in RECIPES if "freeze_align" in name]  # tests/test_pair_recipes.py
LORA = "train/visual_words/vicuna_7b/4_visual_words_lora.yaml"


def small(recipe, parts, trained, rows, output_dir):
    """What makes a recipe run here in a second: its models, its data, one step. Everything else stays."""
    changes = {
        "data.path": rows
        / (
            "captions.json"
            if any(word in recipe.data.path for word in ("pretrain", "captions", "cc3m"))
            else "instruct.json"
        ),
        "data.images": rows / "images",
        "data.num_workers": 0,
        "training.output_dir": output_dir,
        "training.max_steps": 1,
        "training.per_device_train_batch_size": 2,
        "training.deepspeed": "null",
        "training.bf16": "false",
        "training.warmup_steps": 0,  # the first step of a warm-up has rate 0
        "training.disable_tqdm": "true",
        "model.dtype": "float32",
        "data.streaming": "false",
    }
    if recipe.model.init_from is None:
        changes |= {"model.vision_tower": parts / "tower", "model.language_model": parts / "llm"}
    else:
        changes |= {"model.init_from": trained}
    if recipe.objective.get("prior"):
        changes["objective.prior"] = output_dir.with_suffix(".prior.json")
    if recipe.data.validation_split:
        changes |= {"data.validation_split": 2, "training.per_device_eval_batch_size": 2}
    return [f"{name}={value}" for name, value in changes.items()]


def start_and_end(name, parts, trained, rows, tmp_path):
    whole = read_recipe(ROOT / name)
    recipe = read_recipe(ROOT / name, small(whole, parts, trained, rows, tmp_path / "out"))
    if recipe.objective.get("prior"):
        overrides = small(whole, parts, trained, rows, tmp_path / "out")
        assert main(["data", "word-prior", str(ROOT / name), *overrides]) == 0
    torch.manual_seed(recipe.training.get("seed", 42))
    build_model(recipe.model)[0].save_pretrained(tmp_path / "start")
    return recipe, tmp_path / "start", run(recipe)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in (LORA, *PAIRS)])
def test_every_recipe_takes_a_step_that_moves_the_modules_it_names_and_no_other(name, parts, trained, rows, tmp_path):
    recipe, start, out = start_and_end(name, parts, trained, rows, tmp_path)
    on_disk = {"language_model": "language_model.model.", "lm_head": "language_model.lm_head."}
    learns = {module: on_disk.get(module, f"{module}.") for module in recipe.trainable}
    changed = moved(weights(start), weights(out))
    for module, prefix in learns.items():
        assert any(name.startswith(prefix) for name in changed), f"{module} did not move"
    measured = {f"multi_modal_projector.norm.{name}" for name in ("mean", "std") if recipe.model.projector_norm}
    assert not [name for name in changed - measured if not name.startswith(tuple(learns.values()))]
    if recipe.objective["name"] == "vlap":
        assert changed - measured == {f"multi_modal_projector.linear_1.{kind}" for kind in ("weight", "bias")}


def test_the_lora_recipe_saves_adapters_and_the_projector_and_reads_back_whole(
    parts, trained, rows, tmp_path, pictures
):
    recipe, start, out = start_and_end(LORA, parts, trained, rows, tmp_path)
    saved = load_file(out / "adapter_model.safetensors")
    assert {name for name in saved if "lora_" not in name} == {
        f"base_model.model.model.multi_modal_projector.{layer}.{kind}"
        for layer in ("linear_1", "linear_2")
        for kind in ("weight", "bias")
    }
    model, processor = load_model(out)
    model.save_pretrained(tmp_path / "merged")
    before, after = weights(start), weights(tmp_path / "merged")
    changed = moved(before, after)
    assert {name for name in changed if "proj" not in name} == set()
    assert all(name.startswith(("multi_modal_projector.", "language_model.model.layers.")) for name in changed)
    layer, scale = "layers.1.mlp.up_proj", recipe.lora.alpha / recipe.lora.r
    a, b = (saved[f"base_model.model.model.language_model.{layer}.lora_{half}.weight"] for half in "AB")
    weight = f"language_model.model.{layer}.weight"
    torch.testing.assert_close(after[weight], before[weight] + scale * b @ a)
    assert has_vm_head(out)
    word_map = visual_word_map(model, processor, pictures / "red.png", top_k=1)
    assert word_map.grid == (2, 2)


def test_adapters_whose_model_is_gone_say_which_one(parts, trained, rows, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "base")
    _, _, out = start_and_end(LORA, parts, copy, rows, tmp_path)
    shutil.rmtree(copy)
    with pytest.raises(FileNotFoundError, match=f"LoRA adapters to the model in {copy}.*put it back") as problem:
        load_model(out)
    assert "base_model_name_or_path" in str(problem.value)


def test_adapters_keep_what_their_run_changed_of_the_model(parts, trained, rows, tmp_path):
    whole = read_recipe(ROOT / LORA)
    changes = small(whole, parts, trained, rows, tmp_path / "out")
    out = run(read_recipe(ROOT / LORA, [*changes, "model.pseudo_image_features=true"]))
    assert load_model(out)[0].config.pseudo_image_features


def test_a_next_stage_can_go_on_from_adapters(parts, trained, rows, tmp_path):
    _, _, out = start_and_end(LORA, parts, trained, rows, tmp_path)
    name = "train/visual_words/vicuna_7b/3_vm_head.yaml"
    changes = small(read_recipe(ROOT / name), parts, out, rows, tmp_path / "next")
    load_model(out)[0].save_pretrained(tmp_path / "merged")
    assert moved(weights(tmp_path / "merged"), weights(run(read_recipe(ROOT / name, changes)))) == {"vm_head.weight"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_on_from_a_folder_that_another_recipe_writes(name):
    written = {read_recipe(ROOT / other).training["output_dir"] for other in RECIPES}
    recipe = read_recipe(ROOT / name)
    assert recipe.model.init_from is None or recipe.model.init_from in written
    assert recipe.training["output_dir"] != recipe.model.init_from


@pytest.mark.parametrize("name", RECIPES)
def test_the_deepspeed_configuration_a_recipe_names_is_in_the_tree(name):
    config = read_recipe(ROOT / name).training.get("deepspeed")
    assert config is None or json.loads((ROOT / config).read_text())["zero_optimization"]["stage"] in (1, 2, 3)
