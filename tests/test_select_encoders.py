"""Encoders are compared over one set, embedded once by each; the best pair is named, other sets are refused."""

import json

import pytest
import torch
from PIL import Image

from vwlmm import encoder_sets
from vwlmm.cli import main
from vwlmm.data.rows import BadRow
from vwlmm.encoder_sets import Embeddings, embeddings_of, load_embeddings, read_set, save_embeddings
from vwlmm.functional import linear_cka, rbf_cka
from vwlmm.select_encoders import best_pair, cka_table, short_names


def view(name, seed, count=30, digest="one"):
    return Embeddings(name, torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), digest)


@pytest.fixture
def pairs_file(tmp_path):
    """Ten pictures; the first has two captions."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(10):
        colour = tuple(torch.randint(0, 255, (3,), generator=generator).tolist())
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"a picture of shape {i}"})
    rows.append({"image": "0.png", "caption": "What colour is this?"})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    return tmp_path / "pairs.json"


def test_the_table_holds_the_cka_of_every_pair_and_the_best_is_its_maximum():
    vision, text = [view("a", 0), view("b", 1)], [view("c", 2), view("d", 3), view("e", 4)]
    table = cka_table(vision, text)
    assert table.shape == (2, 3)
    torch.testing.assert_close(table[1, 2], linear_cka(vision[1].features, text[2].features))
    torch.testing.assert_close(
        cka_table(vision, text, "rbf", 0.5)[0, 1], rbf_cka(vision[0].features, text[1].features, bandwidth=0.5)
    )
    text.append(Embeddings("f", vision[1].features @ torch.linalg.qr(torch.randn(6, 6))[0], "one"))
    assert best_pair(cka_table(vision, text)) == (1, 3)


def test_encoders_that_embedded_different_sets_are_not_compared():
    with pytest.raises(ValueError, match=r"a and c have embedded different sets \(30 and 29 pictures"):
        cka_table([view("a", 0)], [view("c", 1, count=29)])
    with pytest.raises(ValueError, match="set one and two"):
        cka_table([view("a", 0)], [view("c", 1, digest="two")])


def test_rows_of_one_picture_are_one_picture_with_several_captions(pairs_file):
    pairs = read_set(pairs_file)
    assert len(pairs.images) == 10
    assert pairs.captions[0] == ["a picture of shape 0", "What colour is this?"]
    assert len(read_set(pairs_file, limit=4).images) == 4
    assert read_set(pairs_file, limit=4).digest != pairs.digest


def test_an_encoder_embeds_the_set_once(pairs_file, tmp_path):
    pairs, calls = read_set(pairs_file), []

    def embed(spec, given):
        calls.append(spec)
        return torch.ones(len(given.images), 3)

    for _ in range(2):
        found = embeddings_of("tower", "vision", pairs, folder=tmp_path / "kept", embed=embed)
        assert (found.name, found.digest, found.features.shape) == ("tower", pairs.digest, (10, 3))
    assert calls == ["tower"]
    embeddings_of("tower", "vision", read_set(pairs_file, limit=4), folder=tmp_path / "kept", embed=embed)
    assert calls == ["tower", "tower"]


def test_a_file_of_embeddings_stands_for_its_encoder_unless_it_saw_another_set(pairs_file, tmp_path):
    pairs, file = read_set(pairs_file), tmp_path / "features.safetensors"
    save_embeddings(Embeddings("tower", torch.ones(10, 3), pairs.digest), file)
    assert embeddings_of(str(file), "vision", pairs).name == "tower"
    save_embeddings(Embeddings("tower", torch.ones(9, 3), "another"), file)
    with pytest.raises(
        ValueError, match=r"tower has embedded another set \(9 pictures, set another\) than --data holds \(10"
    ):
        embeddings_of(str(file), "vision", pairs)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="expected embeddings that select-encoders wrote"):
        load_embeddings(file)


def test_the_command_embeds_prints_draws_and_names_the_best_pair(pairs_file, parts, tmp_path, capsys, monkeypatch):
    arguments = [
        "select-encoders",
        "--vision",
        str(parts / "tower"),
        f"{parts / 'tower'}@1",
        "--text",
        str(parts / "llm"),
    ]
    arguments += [
        "--data",
        str(pairs_file),
        "--embeddings",
        str(tmp_path / "kept"),
        "--out",
        str(tmp_path / "x" / "cka.png"),
    ]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == 10
    row = max((0, 1), key=lambda i: result["cka"][i][0])
    assert result["best"] == {"vision": result["vision"][row], "text": str(parts / "llm")}
    assert (tmp_path / "x" / "cka.png").read_bytes().startswith(b"\x89PNG")

    for name in ("embed_vision", "embed_text"):
        monkeypatch.setattr(f"vwlmm.select_encoders.{name}", None)  # everything is read from what was kept
    assert main([*arguments, "--kernel", "rbf"]) == 0
    said = capsys.readouterr().out
    assert "Best pair: " in said
    assert "rbf CKA over 10 pictures" in said


def test_captions_of_a_picture_are_averaged(pairs_file, parts):
    from vwlmm.encoders import embed_texts, load_text_encoder

    features = encoder_sets.embed_text(str(parts / "llm"), read_set(pairs_file))
    both = embed_texts(load_text_encoder(parts / "llm"), ["a picture of shape 0", "What colour is this?"])
    torch.testing.assert_close(features[0], both.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "0.png", "caption": 5}, "expected"),
        ({"caption": "no picture"}, "0 images"),
        ({"messages": [{"role": "assistant", "content": "alone"}]}, "one picture with its caption, found 0 pictures"),
        ({"image": "0.png", "caption": " "}, "expected"),
    ],
)
def test_a_row_that_is_no_pair_is_named(pairs_file, row, message):
    rows = json.loads(pairs_file.read_text())
    pairs_file.write_text(json.dumps([rows[0], row, *rows[1:]]))
    with pytest.raises(BadRow, match=message) as problem:
        read_set(pairs_file)
    assert "pairs.json row 1" in str(problem.value)


def test_a_picture_that_cannot_be_opened_is_named(pairs_file):
    (pairs_file.parent / "3.png").write_bytes(b"")
    with pytest.raises(BadRow, match="zero bytes"):
        list(encoder_sets.open_pictures(read_set(pairs_file)))


def test_short_names_stay_different():
    assert short_names(["a/x", "b/y"]) == ["x", "y"]
    assert short_names(["a/x", "b/x"]) == ["a/x", "b/x"]


def test_options_that_cannot_be_are_one_line(pairs_file, capsys):
    common = ["select-encoders", "--data", str(pairs_file), "--text", "t"]
    assert main([*common, "--vision", "v", "v"]) == 1
    assert "names an encoder twice" in capsys.readouterr().err
    assert main([*common, "--vision", "v", "--limit", "1"]) == 1
    assert "at least 2 pictures" in capsys.readouterr().err
