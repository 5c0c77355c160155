"""The map before and after: deterministic, drawn with its legend, and purity counts neighbours of the same class."""

import json

import pytest
import torch
from PIL import Image
from transformers import VisionTextDualEncoderProcessor

from vwlmm import DualEncoderModel
from vwlmm.cli import main
from vwlmm.data.bad_row import BadRow
from vwlmm.encoders import load_image_processor, load_tokenizer
from vwlmm.tsne import neighbour_purity, read_labelled_pairs, tsne


@pytest.fixture
def data(tmp_path):
    rows = []
    for i in range(24):
        name = ["red", "green", "blue"][i % 3]
        Image.new("RGB", (30, 30), name).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"It is {name}", "kind": name})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    return tmp_path / "pairs.json"


def test_purity_is_the_share_of_near_rows_of_the_same_class():
    apart = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(6, 1), torch.tensor([[0.0, 1.0]]).repeat(6, 1)])
    assert neighbour_purity(apart, ["a"] * 6 + ["b"] * 6) == 1.0
    assert neighbour_purity(apart, ["a", "b"] * 6, k=5) == pytest.approx((2 * 6 + 3 * 0) / 30)


def test_rows_are_limited_a_class_and_checked(data):
    pairs = read_labelled_pairs(data, "kind", classes=["red", "blue"], limit=5)
    assert pairs.labels == ["red"] * 5 + ["blue"] * 5
    with pytest.raises(ValueError, match="no row has kind 'pink'; there are red, green, blue"):
        read_labelled_pairs(data, "kind", classes=["pink"])
    with pytest.raises(ValueError, match="at least 10 pairs, found 4"):
        read_labelled_pairs(data, "kind", classes=["red"], limit=4)
    with pytest.raises(BadRow, match="field 'label': expected words, found None"):
        read_labelled_pairs(data, "label")


def test_without_scikit_learn_the_command_says_what_to_install(data, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["tsne", "model", "--data", str(data), "--label-field", "kind"]) == 1
    assert "pip install scikit-learn" in capsys.readouterr().err


def test_the_same_features_give_the_same_map():
    pytest.importorskip("sklearn")
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tsne(features), tsne(features))
    assert tsne(features).shape == (40, 2)


def test_the_command_draws_both_towers_and_the_joint_space(data, parts, tmp_path, capsys):
    pytest.importorskip("sklearn")
    folder = tmp_path / "dual"
    DualEncoderModel.from_towers(parts / "tower", parts / "llm", embed_dim=16).save_pretrained(folder)
    VisionTextDualEncoderProcessor(
        load_image_processor(parts / "tower"), load_tokenizer(parts / "llm")
    ).save_pretrained(folder)
    out = tmp_path / "x" / "tsne.png"
    assert (
        main(["tsne", str(folder), "--data", str(data), "--label-field", "kind", "--out", str(out), "--device", "cpu"])
        == 0
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "image: same class among the 5 nearest 100.0 %" in said  # pictures of one colour are equal
    assert "24 pairs of 3 classes" in said
