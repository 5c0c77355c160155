"""Whole runs on pairs: the recipe's two towers, features cached or not, retrieval after training, bad inputs."""

import io
import json
import shutil
import tarfile

import pytest
import torch
from PIL import Image
from small_pairs import COLOURS, SMALL, pair_sections
from small_runs import logs, moved, recipe, weights
from transformers import Dinov2Config, Dinov2Model

from vwlmm import DualEncoderModel
from vwlmm.data.bad_row import BadRow
from vwlmm.training import run


def trained(file, content, *overrides):
    return run(recipe(file, content, *overrides))


def losses(folder):
    return [line["loss"] for line in logs(folder) if "loss" in line]


def test_a_run_moves_the_projectors_and_leaves_a_folder_that_opens(towers, pairs, tmp_path):
    out = trained(tmp_path / "r.yaml", pair_sections(towers, pairs, tmp_path / "out"))
    assert losses(out)[-1] < losses(out)[0]
    again = DualEncoderModel.from_pretrained(out)
    assert set(weights(out)) == {name for name, p in again.named_parameters() if p.requires_grad}
    first = logs(out)[0]
    assert first["contrastive_loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert first["temperature"] == pytest.approx(0.07)
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(out)
    batch = processor(text=["a red picture"], images=[Image.new("RGB", (30, 30), "red")], return_tensors="pt")
    assert again(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"]).logits_per_image.shape == (1, 1)


def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_been_cut_short(towers, pairs, tmp_path):
    whole = trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "whole"), "training.max_steps=4")
    saving = "training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2"
    out = trained(tmp_path / "b.yaml", pair_sections(towers, pairs, tmp_path / "cut"), *saving)
    (out / "result.json").unlink()
    shutil.rmtree(out / "checkpoint-4")
    trained(tmp_path / "b.yaml", pair_sections(towers, pairs, tmp_path / "cut"), *saving)
    assert losses(out) == pytest.approx(losses(whole), rel=1e-5)


def test_a_recipe_can_go_on_from_a_trained_pair(towers, pairs, tmp_path):
    first = trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "first"))
    content = pair_sections(towers, pairs, tmp_path / "second")
    content["model"] = {"init_from": str(first)}
    content["trainable"] = {"text_projection": 1e-2}
    second = trained(tmp_path / "b.yaml", content)
    assert all(name.startswith("text_projection") for name in moved(weights(first), weights(second)))
    assert moved(weights(first), weights(second))


def test_cached_features_give_the_same_losses(towers, pairs, tmp_path, caplog):
    plain = trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "plain"))
    cache = f"data.cache={tmp_path / 'cache'}"
    cached = trained(tmp_path / "b.yaml", pair_sections(towers, pairs, tmp_path / "cached"), cache)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)
    assert "8 rows, 40 tokens of 16 × float32: 0.0 MB" in caplog.text
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.*")}
    trained(tmp_path / "c.yaml", pair_sections(towers, pairs, tmp_path / "again"), cache)
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.*")}


def test_validation_pairs_are_scored_by_loss_and_retrieval(towers, pairs, tmp_path):
    content = pair_sections(towers, pairs, tmp_path / "out")
    out = trained(tmp_path / "a.yaml", content, f"data.validation_path={pairs / 'captions.jsonl'}")
    result = json.loads((out / "result.json").read_text())
    assert result["eval_image_to_text_r10"] == result["eval_text_to_image_r10"] == 1.0
    assert 0 <= result["eval_image_to_text_r1"] <= 1
    assert result["eval_contrastive_loss"] == pytest.approx(result["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tower": True}, "is of another tower"),
        ({"switches": {"embed_dim": 12, "vision_feature_layer": 1}}, "another layer or choice of tokens"),
        ({"image_size": 42}, "another preprocessing"),
        ({"cache_dtype": "bfloat16"}, "another dtype"),
        ({"pairs": True}, "another set of pairs"),
    ],
)
def test_a_cache_of_something_else_is_refused(towers, pairs, tmp_path, change, message):
    cache = f"data.cache={tmp_path / 'cache'}"
    trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "first"), cache)
    content = pair_sections(towers, pairs, tmp_path / "second")
    if change.pop("tower", False):
        torch.manual_seed(6)
        other = shutil.copytree(towers / "vision", tmp_path / "other")
        Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(other)
        content["model"]["vision_tower"] = str(other)
    if change.pop("pairs", False):
        (pairs / "captions.jsonl").write_text((pairs / "captions.jsonl").read_text().replace("shape", "thing"))
    if "switches" in change:
        content["model"] |= change
    else:
        content["data"] |= change
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "b.yaml", content, cache)


def test_a_damaged_cache_is_noticed(towers, pairs, tmp_path):
    cache = f"data.cache={tmp_path / 'cache'}"
    trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "first"), cache)
    features = tmp_path / "cache" / "train" / "vision" / "features.bin"
    data = bytearray(features.read_bytes())
    data[100] ^= 1
    features.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: row 0 is not what was written"):
        trained(tmp_path / "b.yaml", pair_sections(towers, pairs, tmp_path / "second"), cache)
    features.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"is damaged: features\.bin has"):
        trained(tmp_path / "c.yaml", pair_sections(towers, pairs, tmp_path / "third"), cache)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainable.text_tower=1e-5"], "text_tower learns"),
        (["model.switches={embed_dim: 12, towers_in_train_mode: true}"], "dropout inside"),
        (["data.augmentation=freeze_align"], "augmentation makes a new picture"),
    ],
)
def test_what_cannot_be_cached_is_refused(towers, pairs, tmp_path, overrides, message):
    content = pair_sections(towers, pairs, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "a.yaml", content, f"data.cache={tmp_path / 'cache'}", *overrides)


def test_a_caption_that_is_not_text_stops_the_run_and_names_the_row(towers, pairs, tmp_path):
    rows = (pairs / "captions.jsonl").read_text().splitlines()
    rows[3] = json.dumps({"id": "white", "image": "white.png", "caption": 7})
    (pairs / "captions.jsonl").write_text("\n".join(rows))
    content = pair_sections(towers, pairs, tmp_path / "out")
    with pytest.raises(BadRow, match=r"line 4 \(id white\), field 'caption': expected a caption in words, found int 7"):
        trained(tmp_path / "a.yaml", content)


@pytest.mark.parametrize("cached", [False, True])
def test_bad_pairs_are_left_out_and_listed(towers, pairs, tmp_path, cached):
    (pairs / "blue.png").write_bytes(b"\x89PNG no more")
    rows = (pairs / "captions.jsonl").read_text().replace("a red picture", "")
    (pairs / "captions.jsonl").write_text(rows)
    overrides = ["data.on_bad_row=quarantine"] + [f"data.cache={tmp_path / 'cache'}"] * cached
    out = trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "out"), *overrides)
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["row_id"] for row in listed) == ["blue", "red"]


def save_tar(file, pairs, rows=8):
    with tarfile.open(file, "w") as archive:
        for colour in COLOURS[:rows]:
            parts = {"png": (pairs / f"{colour}.png").read_bytes(), "txt": f"a {colour} picture".encode()}
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{colour}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file


def test_pairs_are_read_from_tar_shards_by_a_pattern(towers, pairs, tmp_path):
    save_tar(tmp_path / "s-0.tar", pairs, 3)
    save_tar(tmp_path / "s-1.tar", pairs)
    content = pair_sections(towers, pairs, tmp_path / "out")
    out = trained(tmp_path / "a.yaml", content, f"data.path={tmp_path}/s-*.tar", "training.max_steps=-1")
    assert logs(out)[-1]["epoch"] == 3


def test_a_broken_shard_is_named(towers, pairs, tmp_path):
    shard = save_tar(tmp_path / "s.tar", pairs)
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"s.tar: expected a whole tar shard, could read \d rows of it"):
        trained(tmp_path / "a.yaml", pair_sections(towers, pairs, tmp_path / "out"), f"data.path={shard}")


def test_pairs_are_read_from_csv_and_parquet(towers, pairs, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (pairs / "captions.jsonl").read_text().splitlines()]
    (pairs / "captions.csv").write_text("image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in rows))
    for row in rows:
        row["image"] = {"bytes": (pairs / row["image"]).read_bytes(), "path": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), pairs / "captions.parquet")
    found = []
    for name in ("captions.jsonl", "captions.csv", "captions.parquet"):
        out = tmp_path / name.replace(".", "_")
        content = pair_sections(towers, pairs, out)
        found.append(losses(trained(tmp_path / "a.yaml", content, f"data.path={pairs / name}")))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vision_tower=", "both vision_tower and text_tower; got text_tower"),
        ("model.switches={embed_dimm: 3}", r"unknown key model.switches.embed_dimm. Did you mean 'embed_dim'\?"),
        ("trainable={text_projektion: 1e-3}", r"Did you mean 'text_projection'\?"),
        ("objective.embed_rows=0", "embed_rows is a positive number"),
        ("data.cache_dtype=int8", "data.cache_dtype is one of"),
        ("data.path=nothing/*.tar", "matches no file"),
    ],
)
def test_recipes_that_cannot_be_right_are_refused(towers, pairs, tmp_path, override, message):
    content = pair_sections(towers, pairs, tmp_path / "out")
    if override.startswith("trainable"):
        content["trainable"] = {"text_projektion": 1e-3}
        override = "training.max_steps=1"
    with pytest.raises((ValueError, OSError), match=message):
        trained(tmp_path / "a.yaml", content, override)


def test_inspect_shows_pairs_and_plan_says_that_it_is_for_other_models(towers, pairs, tmp_path, capsys):
    import yaml

    from vwlmm.cli import main

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(pair_sections(towers, pairs, tmp_path / "out")))
    assert main(["data", "inspect", str(tmp_path / "r.yaml"), "--rows", "1"]) == 0
    assert "captions.jsonl line 1 (id red): picture 30 × 40, read as 28 × 28" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "r.yaml")]) == 1
    assert "plan counts models with an LLM" in capsys.readouterr().err
