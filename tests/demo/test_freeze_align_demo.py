"""The comparison on real pictures, in miniature: tiny towers, eight coloured pictures, two seeds, the whole page."""

import json

import pytest
import torch
import yaml
from small_pairs import COLOURS, pair_sections
from transformers import VisionTextDualEncoderModel

from vwlmm.demo import freeze_align
from vwlmm.demo.freeze_align_baseline import contrastive
from vwlmm.models.towers import load_tower


@pytest.fixture
def data(pairs):
    """What `named-pictures` holds: the same eight pictures in every split, under folders of stamps in one of them."""
    rows = [json.loads(line) for line in (pairs / "captions.jsonl").read_text().splitlines()]
    for split in ("train", *freeze_align.SPLITS):
        for number, row in enumerate(rows):
            category = ("animals", "town")[number % 2] if split == "heldout_stamps" else "emoji"
            row |= {"name": COLOURS[number], "category": category}
        (pairs / f"{split}.json").write_text(json.dumps(rows))
    return pairs


@pytest.fixture
def recipes(towers, data, tmp_path):
    files = {}
    for layer in (1, -1):
        sections = pair_sections(towers, data, tmp_path / "out")
        sections["model"]["switches"] |= {"vision_feature_layer": layer}
        sections["data"] |= {"path": str(data / "train.json"), "cache": str(tmp_path / f"features{layer}")}
        sections["training"] |= {
            "learning_rate": 1e-2,
            "max_steps": 4,
            "weight_decay": 0.02,
            "warmup_steps": 1,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-5},
        }
        sections["trainable"] = dict.fromkeys(sections["trainable"])
        files[f"layer {layer}"] = tmp_path / f"tiny_{layer}.yaml"
        files[f"layer {layer}"].write_text(yaml.safe_dump(sections))
    return {name: str(file) for name, file in files.items()}


@pytest.mark.slow
def test_the_page_holds_every_model_split_and_seed_whatever_the_outcome(recipes, data, tmp_path, monkeypatch):
    monkeypatch.setattr(freeze_align, "RECIPES", recipes)
    monkeypatch.setattr(freeze_align, "prepare", lambda name: data)
    page = tmp_path / "page.md"
    arguments = ["--out", str(tmp_path / "runs"), "--page", str(page), "--seeds", "0", "1"]
    assert freeze_align.main(arguments) == 0
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    for found in results["pairs"].values():
        assert 0 <= found["cka"] <= 1
        assert set(found["seeds"]) == {"0", "1"}
        for scores in found["seeds"].values():
            assert all(
                0 <= value <= 1
                for model in ("before", "after", "baseline")
                for split in scores[model].values()
                for value in split.values()
            )
            assert scores["after"] != scores["before"]
    assert results["chance"]["heldout_concepts"]["image_to_text_r1"] == pytest.approx(1 / 8)
    assert results["chance"]["heldout_stamps"]["zero_shot_categories"] == 1 / 2
    text = page.read_text()
    for what in freeze_align.SPLITS.values():
        assert f"### {what[0].upper()}{what[1:]}" in text
    assert text.count("| layer 1, freeze-align |") == text.count("| layer -1, before training |") == 5
    assert freeze_align.main(arguments) == 0  # finished runs are read, not trained again


def test_the_baselines_loss_is_the_one_transformers_returns(towers):
    torch.manual_seed(0)
    model = VisionTextDualEncoderModel(
        vision_model=load_tower(towers / "vision", "vision"), text_model=load_tower(towers / "text", "text")
    ).eval()
    batch = {
        "pixel_values": torch.randn(3, 3, 28, 28),
        "input_ids": torch.randint(1, 50, (3, 5)),
        "attention_mask": torch.ones(3, 5, dtype=torch.long),
    }
    expected = model(**batch, return_loss=True).loss
    images = model.vision_model(batch["pixel_values"]).pooler_output
    texts = model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
    torch.testing.assert_close(contrastive(model, images, texts), expected)
