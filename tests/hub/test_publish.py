"""Publishing: the folder as the Hub gets it, what is refused, every request, an interruption and going on after it."""

import hashlib
import json
import shutil
import time
import warnings
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from small_runs import sections
from stand_in import TOKEN, StandIn

from vwlmm import load_model
from vwlmm.cli import main

RESULT = {
    "benchmark": "pope",
    "title": "POPE",
    "metrics": {"f1": 0.859, "accuracy": 0.87},
    "num_questions": 3,
    "details": [],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, trained, rows):
    """A finished run of three steps from an earlier model, with a checkpoint in its folder."""
    folder = tmp_path_factory.mktemp("run")
    content = sections(trained, rows, folder / "model")
    content["training"] |= {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    content["data"] |= {"validation_path": str(rows / "captions.json")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "model"


@pytest.fixture
def model(run, tmp_path):
    """The same without the checkpoint, which holds optimiser state."""
    return shutil.copytree(run, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))


@pytest.fixture
def hub(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # between the client's retries
    yield stand_in
    stand_in.close()


@pytest.fixture
def says(capsys):
    def run(*arguments, code=0):
        capsys.readouterr()
        assert main(["publish", *map(str, arguments)]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err.rpartition("vwlmm: ")[2]

    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_a_dry_run_writes_a_card_that_the_hubs_own_checker_takes(model, hub, says, tmp_path, rows):
    (tmp_path / "pope.json").write_text(json.dumps(RESULT))
    said = says(model, "me/words", "--dry-run", "--results", tmp_path / "pope.json")
    staged = tmp_path / "model-hub"
    assert f"nothing was uploaded; the folder is {staged}" in said
    assert "training_args.bin" in said
    card = card_of(staged)
    card.validate()  # huggingface_hub's checker, which asks the stand-in
    assert hub.wrong == []
    assert hub.repos == {}
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "words"
    assert {(r.dataset_type, r.metric_type, r.metric_value) for r in results} == {
        ("pope", "f1", 0.859),
        ("pope", "accuracy", 0.87),
    }
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "| POPE | f1 | 0.859 |" in card.text
    digest = hashlib.sha256((rows / "instruct.json").read_bytes()).hexdigest()
    assert f"| `instruct.json` | `{digest}` |" in card.text
    assert "| total loss |" in card.text
    assert "load_model(" in card.text
    assert "AutoModelForImageTextToText" in card.text
    assert "## Licences" in card.text
    for picture in ("training_curves.png", "visual_words.png"):
        assert f"({picture})" in card.text
        assert (staged / picture).read_bytes().startswith(b"\x89PNG")
    for text in (card.content, (staged / "recipe.yaml").read_text()):
        assert str(rows) not in text
        assert str(tmp_path) not in text
    assert yaml.safe_load((staged / "recipe.yaml").read_text())["data"]["path"] == "instruct.json"
    load_model(staged)
    assert not (staged / "training_args.bin").exists()


def test_a_model_without_a_recipe_says_that_nothing_is_known(trained, says, tmp_path):
    says(trained, "me/words", "--dry-run", "--out", tmp_path / "staged", "--no-word-map")
    text = card_of(tmp_path / "staged").text
    assert "No recipe lies beside this model" in text
    assert "No result of a benchmark" in text
    assert "visual_words.png" not in text


def test_an_upload_is_one_commit_on_the_branch_with_every_file(model, hub, says):
    said = says(model, "me/words", "--private", "--revision", "v1", "--message", "First")
    assert f"published: {hub.url}/me/words" in said
    assert hub.wrong == []
    assert hub.repos == {"me/words": True}
    assert hub.messages == ["First"]
    files = hub.commits[("me/words", "v1")]
    assert ("me/words", "main") not in hub.commits
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "tokenizer.json", "processor_config.json", "checksums.json"} <= set(files)
    assert not [name for name in files if "optimizer" in name or name.endswith(".bin")]
    assert list(model.parent.glob(".*publish*")) == []


def test_a_broken_connection_is_tried_again_by_itself(model, hub, says):
    hub.interruptions = 1
    says(model, "me/words", "--no-word-map")
    assert hub.wrong == []
    assert ("me/words", "main") in hub.commits


def test_an_interrupted_upload_goes_on_and_sends_nothing_twice(model, hub, says):
    hub.interruptions = 1000
    said = says(model, "me/words", code=1)
    assert "me/words was not published" in said
    assert "Run the same command again" in said
    assert said.count("\n") == 1
    assert TOKEN not in said
    assert hub.commits == {}
    # Some of the large files had arrived before the line went dead.
    weights = (model / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    hub.blobs[digest], hub.interruptions = weights, 0
    says(model, "me/words")
    assert digest not in hub.uploads
    assert len(hub.uploads) == len(set(hub.uploads)) == 2  # the two pictures
    assert hub.commits[("me/words", "main")]["model.safetensors"] == weights
    assert hub.wrong == []


def test_a_wrong_token_is_told_in_one_line_without_it(model, hub, says, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 30)
    said = says(model, "me/words", "--no-word-map", code=1)
    assert "was not published: the Hub does not let this token write there" in said
    assert said.count("\n") == 1
    assert "www" not in said


def test_without_a_token_it_says_how_to_get_one(model, hub, says, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "hf auth login" in says(model, "me/words", code=1)


def test_optimiser_state_is_refused_and_can_be_left_where_it_is(run, says, tmp_path):
    said = says(run, "me/words", "--dry-run", "--out", tmp_path / "staged", code=1)
    assert "holds optimiser state" in said
    assert "checkpoint-2/optimizer.pt" in said
    assert not (tmp_path / "staged").exists()
    said = says(run, "me/words", "--dry-run", "--out", tmp_path / "staged", "--model-only", "--no-word-map")
    assert "checkpoint-2/" in said
    assert not list((tmp_path / "staged").rglob("optimizer*"))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("notes.txt", f"token: {TOKEN}", "notes.txt: a Hugging Face token"),
        (".env", "KEY=sk-" + "a1" * 20, ".env: an API key"),
        ("deep/er/x.yaml", "-----BEGIN PRIVATE KEY-----", "deep/er/x.yaml: a private key"),
    ],
)
def test_secrets_are_refused_and_not_repeated(file, text, told, model, hub, says):
    (model / file).parent.mkdir(parents=True, exist_ok=True)
    (model / file).write_text(text)
    said = says(model, "me/words", code=1)
    assert told in said
    assert text not in said
    assert hub.repos == {}


@pytest.mark.parametrize("path", ["/home/alice/models/vicuna", "/mnt/nfs/data", "C:\\\\Users\\\\alice", "~/models/x"])
def test_local_paths_in_what_would_be_published_are_refused(path, model, hub, says, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": path}))
    said = says(model, "me/words", "--no-word-map", code=1)
    assert "holds paths of this machine" in said
    assert "config.json: " in said
    assert hub.repos == {}
    assert list(model.parent.glob(".*publish*")) == []


def test_web_addresses_are_no_local_paths(model, says, tmp_path):
    config = json.loads((model / "config.json").read_text())
    addresses = ["https://example.org/home/alice", "https://a.b/data/x.json", "a/data/b", "./data/x"]
    (model / "config.json").write_text(json.dumps({**config, "addresses": addresses}))
    says(model, "me/words", "--dry-run", "--no-word-map")


def test_what_is_no_model_or_damaged_is_refused(model, says, tmp_path):
    assert "there is none" in says(tmp_path / "none", "me/words", code=1)
    (tmp_path / "empty").mkdir()
    assert "is not a model folder" in says(tmp_path / "empty", "me/words", code=1)
    assert "REPO is user/name" in says(model, "me/words/more", code=1)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert "is damaged" in says(model, "me/words", "--dry-run", code=1)


def test_a_recipe_that_pushes_publishes_the_same_folder(trained, rows, hub, tmp_path):
    content = sections(trained, rows, tmp_path / "run")
    content["training"] |= {"push_to_hub": True, "hub_model_id": "me/pushed", "hub_private_repo": True}
    content["training"] |= {"save_strategy": "steps", "save_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert hub.wrong == []
    assert hub.repos == {"me/pushed": True}
    files = hub.commits[("me/pushed", "main")]
    assert hub.messages == ["End of training"]
    assert {"README.md", "model.safetensors", "visual_words.png", "recipe.yaml"} <= set(files)
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name]
    assert str(tmp_path) not in files["recipe.yaml"].decode()
