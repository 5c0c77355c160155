"""Bad files, through the command line: exit code 1, one line that names them, nothing run, and no half-written folder."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import published
import pytest
import torch
from safetensors.torch import load_file, save_file

from vwlmm import load_model
from vwlmm.cli import main

ROOT = Path(__file__).parents[2]


class Code:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A released checkpoint as `.bin` and as safetensors, tower inside."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("sources")
    tower = published.save_tower(folder / "clip")
    checkpoint = published.make(tower, str(folder / "clip"))
    tensors = {**checkpoint.tensors, **published.tower_tensors(tower)}
    for kind in ("bin", "safetensors"):
        published.save(checkpoint, folder / kind, tensors=tensors, kind=kind)
        published.save_tokenizer(folder / kind)
    return folder


@pytest.fixture
def source(sources, tmp_path):
    return lambda kind: shutil.copytree(sources / kind, tmp_path / "in")


@pytest.fixture
def refuses(tmp_path, capsys):
    """Converts `tmp_path/in`, which must fail and leave nothing behind; returns what was said."""

    def run(*arguments):
        out = tmp_path / "out"
        assert main(["convert", str(tmp_path / "in"), str(out), *arguments]) == 1
        _, _, said = capsys.readouterr().err.rpartition("vwlmm: ")
        assert said.count("\n") == 1, said
        assert [path for path in tmp_path.iterdir() if "out" in path.name] == []
        return said

    return run


def shard(folder, kind="bin"):
    return sorted(folder.glob(f"*.{kind}"))[1]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_folder_that_is_no_model(refuses, tmp_path):
    assert "there is no such folder" in refuses()
    (tmp_path / "in").mkdir()
    assert "holds no config.json, so it is not a model folder" in refuses()
    (tmp_path / "in" / "config.json").write_text('{"model_type": "bert"}')
    assert "is a 'bert' model: expected a released VW-LMM" in refuses()
    (tmp_path / "in" / "config.json").write_text("{")
    assert "is not readable JSON" in refuses()
    (tmp_path / "in" / "config.json").write_text('{"model_type": "llava", "hidden_size": 64}')
    assert "holds no weights" in refuses()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_shard_cut_short_is_named(kind, source, refuses):
    path = shard(source(kind), kind)
    path.write_bytes(path.read_bytes()[:-1000])
    said = refuses()
    assert path.name in said
    assert "cut short" in said


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_an_index_that_names_a_missing_shard(kind, source, refuses):
    path = shard(source(kind), kind)
    path.unlink()
    assert f"names 1 of 2 shards that are not there: {path.name}" in refuses()


def test_a_flipped_byte_of_a_bin_is_found_and_its_tensor_named(source, refuses):
    path = shard(source("bin"))
    flip(path, path.stat().st_size // 2)
    said = refuses()
    assert path.name in said
    assert "the bytes of vm_head.weight are not those that were written" in said


def test_a_wrong_vocabulary_size_names_both_shapes(source, refuses):
    file = source("bin") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 370}))
    said = refuses()
    assert "model.embed_tokens.weight is (360, 64), not (370, 64)" in said
    assert "vocab_size there is 370" in said


def test_a_tokenizer_of_more_words_than_the_tables_have(source, refuses):
    folder = source("bin")
    (folder / "added_tokens.json").write_text('{"<extra>": 360}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"360": {"content": "<extra>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))
    assert "vocab_size 360, but the tokenizer knows 1 more words (<extra>)" in refuses()


def test_missing_and_unexpected_keys_are_listed(source, refuses):
    folder = source("safetensors")
    path = shard(folder, "safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if "mlp" in name)
    tensors["model.some_head.weight"] = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()
    merged = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    said = refuses()
    assert "Missing: language_model." in said
    assert f"{name.removeprefix('model.')}. Unexpected: model.some_head.weight" in said


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_in_it_is_not_run(legacy, source, refuses, tmp_path):
    path = shard(source("bin"))
    torch.save({"x": Code(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
    said = refuses()
    assert path.name in said
    assert "was not run" in said
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_not_run(source, tmp_path):
    folder = source("bin")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "evil.py").exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_a_folder_in_the_way_is_left_as_it_is(source, tmp_path, capsys):
    source("bin")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_disk_without_room_is_known_before_anything_is_written(source, refuses, monkeypatch):
    source("bin")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert "No room for" in refuses()


def test_a_disk_that_fills_up_leaves_nothing_under_the_final_name(source, tmp_path):
    source("bin")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-m", "vwlmm.cli", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    said = done.stderr.rpartition("vwlmm: ")[2]
    assert said.startswith("The disk is full")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.fixture
def converted(sources, tmp_path):
    assert main(["convert", str(sources / "bin"), str(tmp_path / "model"), "--max-shard-gb", "0.0003"]) == 0
    return tmp_path / "model"


@pytest.mark.parametrize("part", ["header", "tensors", "last byte"])
def test_every_command_finds_one_flipped_byte(part, converted, capsys):
    path = shard(converted, "safetensors")
    size = path.stat().st_size
    flip(path, {"header": 12, "tensors": size // 2, "last byte": size - 1}[part])
    assert main(["chat", str(converted), "--prompt", "x"]) == 1
    said = capsys.readouterr().err.rpartition("vwlmm: ")[2]
    assert path.name in said
    assert said.count("\n") == 1


def test_every_command_finds_a_file_cut_short_and_a_missing_one(converted, capsys):
    path = shard(converted, "safetensors")
    whole = path.read_bytes()
    for bad in (whole[:-1], whole[:20], b""):
        path.write_bytes(bad)
        assert main(["chat", str(converted), "--prompt", "x"]) == 1
        assert path.name in capsys.readouterr().err
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"shards that are not there: {path.name}"):
        load_model(converted)


def test_a_saved_model_is_checked_too(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 5)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its bytes are not those that were written"):
        load_model(folder)


def test_a_folder_of_bins_with_code_is_not_run_by_any_command(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Code(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert main(["chat", str(folder), "--prompt", "x"]) == 1
    assert "was not run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_hub_cache_blob_is_compared_with_its_name(trained, tmp_path):
    import hashlib

    folder = shutil.copytree(trained, tmp_path / "snapshot")
    (folder / "checksums.json").unlink()
    content = (folder / "model.safetensors").read_bytes()
    blob = tmp_path / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blob)
    load_model(folder)
    flip(blob, len(content) - 1)
    with pytest.raises(ValueError, match="its bytes are not those of the Hub"):
        load_model(folder)
