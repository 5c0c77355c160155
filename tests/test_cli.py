"""The command line: a user's mistake is one line that says what to do, and exit code 1."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_runs import llava_row, sections
from transformers import LlavaForConditionalGeneration

from vwlmm import load_model
from vwlmm.cli import COMMANDS, main


@pytest.fixture
def recipe_file(tmp_path, trained, rows):
    content = sections(trained, rows, tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "recipe.yaml")


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail, and returns the one line that it says about it."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        # Before it there may be progress bars of the libraries.
        _, ours, said = capsys.readouterr().err.rpartition("vwlmm: ")
        assert ours
        assert said.count("\n") == 1, said
        return said

    return run


@pytest.fixture
def data_file(tmp_path, rows):
    """Writes rows, good ones before and after, as JSON lines; a str is a line as it is."""

    def write(*bad):
        good = json.dumps(llava_row("good", "<image>\nWhat?", "It is red", image=str(rows / "images" / "0.png")))
        lines = [good, *(row if isinstance(row, str) else json.dumps(row) for row in bad), good]
        (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
        return str(tmp_path / "data.jsonl")

    return write


@pytest.fixture
def truncated(tmp_path, rows):
    whole = (rows / "images" / "1.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    return str(tmp_path / "truncated.png")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "example" in said
    assert f"vwlmm {name} " in said.split("example", 1)[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_with_both_functions(name):
    module = import_module(COMMANDS[name][0])
    assert callable(module.add_arguments)
    assert callable(module.main)


def test_the_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert main([]) == 1
    assert "usage" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    from vwlmm import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("chta", "chat"), ("data chek", "data check"), ("inspect", "data inspect")]
)
def test_an_unknown_command_names_the_nearest(fails, typed, meant):
    assert f"Did you mean {meant!r}?" in fails(*typed.split(), "x")


def test_an_unknown_option_is_exit_code_1(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "recipe.yaml", "--fast"])
    assert end.value.code == 1
    assert "--fast" in capsys.readouterr().err


def test_a_recipe_trains_and_the_model_answers_and_shows_its_words(recipe_file, tmp_path, rows, capsys):
    assert main(["train", recipe_file]) == 0
    out, picture = str(tmp_path / "out"), str(rows / "images" / "0.png")
    assert f"vwlmm chat {out}" in capsys.readouterr().out
    assert main(["chat", out, "--image", picture, "--prompt", "What is this?", "--max-new-tokens", "3"]) == 0
    assert main(["words", out, picture, "--out", str(tmp_path / "words.json")]) == 0
    assert (tmp_path / "words.json").is_file()


def test_a_lora_run_can_be_chatted_with(recipe_file, tmp_path, rows):
    content = yaml.safe_load(Path(recipe_file).read_text())
    content |= {"lora": {"r": 2}, "trainable": {"multi_modal_projector": 1e-3}}
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", str(tmp_path / "lora.yaml")]) == 0
    picture = str(rows / "images" / "0.png")
    question = ["--prompt", "What is this?", "--max-new-tokens", "3"]
    assert main(["chat", str(tmp_path / "out"), "--image", picture, *question]) == 0


def test_data_inspect_shows_what_is_read_and_scored(recipe_file, capsys):
    assert main(["data", "inspect", recipe_file, "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert "[image 1: 4 patches]" in said
    assert "⟦It is red." in said
    assert "4 of 4 patches carry a visual-word target" in said


def test_data_inspect_of_a_new_model_needs_no_training(recipe_file, parts, capsys):
    new = [f"model.vision_tower={parts / 'tower'}", f"model.language_model={parts / 'llm'}", "model.init_from=null"]
    assert main(["data", "inspect", recipe_file, *new, "model.chat_template=vicuna_v1"]) == 0
    assert "ASSISTANT:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train"], ["data", "inspect"]])
def test_an_unknown_recipe_key_is_one_line(fails, recipe_file, command):
    said = fails(*command, recipe_file, "training.max_step=1")
    assert "unknown key training.max_step. Did you mean 'max_steps'?" in said


def test_a_recipe_that_is_not_there_is_one_line(fails):
    assert "A recipe was expected at none.yaml" in fails("train", "none.yaml")


def test_a_module_that_is_not_there_is_one_line(fails, recipe_file):
    assert "Did you mean 'vm_head'?" in fails("train", recipe_file, "trainable.vm_haed=1e-3")


def test_a_model_that_is_not_there_is_one_line(fails, recipe_file, tmp_path):
    assert "A model folder was expected at" in fails("train", recipe_file, f"model.init_from={tmp_path / 'none'}")
    assert "A model folder was expected at" in fails("chat", tmp_path / "none", "--prompt", "Hello")
    assert "none" in fails("train", recipe_file, *_new_model(tmp_path / "none", tmp_path / "none"))


def _new_model(tower, llm):
    parts = {"init_from": "null", "vision_tower": tower, "language_model": llm, "chat_template": "chatml"}
    return [f"model.{name}={value}" for name, value in parts.items()]


def test_an_output_folder_with_another_run_is_one_line(fails, recipe_file):
    assert main(["train", recipe_file]) == 0
    assert "training.max_steps: 1 there, 2 here" in fails("train", recipe_file, "training.max_steps=2")


def test_a_model_without_a_vm_head_has_no_words(fails, trained, tmp_path, rows):
    LlavaForConditionalGeneration.from_pretrained(trained).save_pretrained(tmp_path / "llava")
    load_model(trained)[1].save_pretrained(tmp_path / "llava")
    said = fails("words", tmp_path / "llava", rows / "images" / "0.png", "--out", tmp_path / "words.json")
    assert "plain LLaVA without a VM head" in said


@pytest.mark.parametrize("command", ["chat", "words"])
def test_a_picture_that_cannot_be_read_is_one_line(fails, trained, truncated, tmp_path, command):
    for picture, message in ((tmp_path / "none.png", "none.png"), (truncated, "truncated.png")):
        if command == "chat":
            said = fails("chat", trained, "--image", picture, "--prompt", "What?")
        else:
            said = fails("words", trained, picture, "--out", tmp_path / "words.json")
        assert message in said


def bad_rows(truncated, rows):
    picture = str(rows / "images" / "0.png")
    role = llava_row("role", "<image>\nWhat?", "It", image=picture)
    role["conversations"][1]["from"] = "robot"
    return {
        "a missing image": (llava_row("a", "<image>\nWhat?", "It", image="none.png"), "no such file"),
        "a truncated image": (llava_row("a", "<image>\nWhat?", "It", image=truncated), "truncated"),
        "more image tokens than images": (
            llava_row("a", "<image><image>\nWhat?", "It", image=picture),
            "expected as many `<image>` as images, found 2 `<image>` and 1 image",
        ),
        "a line that is no JSON": ('{"id": "a", "conversations": [', "data.jsonl line 2"),
        "an unknown role": (role, "field 'conversations[1].from': expected one of human"),
    }


@pytest.mark.parametrize("kind", bad_rows("", Path()))
def test_a_bad_row_is_one_line_with_its_place_and_what_was_expected(
    fails, recipe_file, data_file, truncated, rows, capsys, kind
):
    row, message = bad_rows(truncated, rows)[kind]
    path = data_file(row)
    said = fails("train", recipe_file, f"data.path={path}")
    assert message in said
    assert "data.jsonl" in said
    assert main(["data", "check", path, "--workers", "0"]) == 1
    assert message in capsys.readouterr().out


def test_a_picture_of_too_many_pixels_is_one_line(fails, recipe_file, data_file, tmp_path, capsys):
    Image.new("RGB", (100, 50)).save(tmp_path / "large.png")
    path = data_file(llava_row("a", "<image>\nWhat?", "It", image=str(tmp_path / "large.png")))
    message = "expected at most 4,000 pixels (`max_pixels`), found 100 × 50 = 5,000 pixels"
    assert message in fails("train", recipe_file, f"data.path={path}", "data.max_pixels=4000")
    assert main(["data", "check", path, "--workers", "0", "--max-pixels", "4000"]) == 1
    assert message in capsys.readouterr().out


def test_a_bad_row_met_in_a_worker_process_is_one_line_too(fails, recipe_file, data_file):
    path = data_file(llava_row("a", "<image>\nWhat?", "It", image="none.png"))
    said = fails("train", recipe_file, f"data.path={path}", "data.num_workers=1")
    assert "data.jsonl line 2" in said
    assert "no such file" in said


def test_a_stopped_command_ends_as_shells_expect(monkeypatch, recipe_file, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vwlmm.commands.train.main", stop)
    assert main(["train", recipe_file]) == 130
    assert "interrupted" in capsys.readouterr().err
