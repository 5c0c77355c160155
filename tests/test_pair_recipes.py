"""Every freeze-align recipe is read strictly, built with tiny towers and stepped once."""

import pytest
import torch
from small_runs import moved, weights
from test_recipes import PAIRS, ROOT

from vwlmm.config import read_recipe
from vwlmm.training import build_model, run


@pytest.mark.parametrize("name", PAIRS)
def test_every_recipe_takes_a_step_that_moves_the_modules_it_names(name, towers, pairs, tmp_path):
    whole = read_recipe(ROOT / name)
    changes = {
        "model.vision_tower": towers / "vision",
        "model.text_tower": towers / "text",
        "data.path": pairs / "captions.jsonl",
        "data.num_workers": 0,
        "data.image_size": 28,
        "training.output_dir": tmp_path / "out",
        "training.max_steps": 1,
        "training.per_device_train_batch_size": 4,
        "training.fp16": "false",
        "training.warmup_steps": 0,
        "training.disable_tqdm": "true",
    }
    if whole.data.validation_path:
        changes["data.validation_path"] = pairs / "captions.jsonl"
    if whole.data.cache:
        changes["data.cache"] = tmp_path / "cache"
    if "vision_feature_layer" in whole.model.switches:
        changes["model.switches"] = "{embed_dim: 12, vision_feature_layer: 1}"
    recipe = read_recipe(ROOT / name, [f"{key}={value}" for key, value in changes.items()])
    torch.manual_seed(42)
    build_model(recipe.model)[0].save_pretrained(tmp_path / "start")
    changed = moved(weights(tmp_path / "start"), weights(run(recipe)))
    for module in recipe.trainable:
        assert any(tensor.startswith(f"{module}.") for tensor in changed), f"{module} did not move"
