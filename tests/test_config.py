"""Recipes are strict: every mistake is a ValueError that names the key, before a model is loaded."""

import copy

import pytest
import yaml
from small_runs import recipe, sections

from vwlmm.config import read_recipe, write_recipe


@pytest.fixture
def content(tmp_path):
    """A recipe whose model is not there: to read it must not need one."""
    return sections(tmp_path / "no model", tmp_path, tmp_path / "out")


@pytest.fixture
def read(tmp_path, content):
    """Reads the recipe with `section.key: value` changes made in the file."""

    def read_changed(changes=None, *overrides):
        changed = copy.deepcopy(content)
        for path, value in (changes or {}).items():
            section, _, key = path.partition(".")
            if key:
                changed.setdefault(section, {})[key] = value
            else:
                changed[section] = value
        return recipe(tmp_path / "recipe.yaml", changed, *overrides)

    return read_changed


def write(tmp_path, content, old="", new=""):
    text = yaml.safe_dump(content, sort_keys=False)
    assert old in text
    (tmp_path / "recipe.yaml").write_text(text.replace(old, new, 1))
    return tmp_path / "recipe.yaml"


PARTS = {"vision_tower": "a", "language_model": "b", "chat_template": "chatml"}
LORA = {"r": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, "unknown section 'modle'. Did you mean 'model'?"),
        ({"model.init_form": "x"}, "model.init_form. Did you mean 'init_from'?"),
        ({"objective.traget": "x"}, "objective.traget. Did you mean 'target'?"),
        ({"data.pth": "x"}, "data.pth. Did you mean 'path'?"),
        ({"training.lerning_rate": 1.0}, "training.lerning_rate. Did you mean 'learning_rate'?"),
        ({"lora.alhpa": 1}, "lora.alhpa. Did you mean 'alpha'?"),
        ({"training": {"output_dir": "x", True: 1}}, "unknown key training.True"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(read, changes, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        read(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.max_length": "long"}, "data.max_length: expected int, got 'long'"),
        ({"data.max_length": True}, "data.max_length: expected int, got True"),
        ({"model.projector_norm": "yes please"}, "model.projector_norm: expected bool"),
        ({"training.max_steps": "ten"}, "training.max_steps: expected int, got 'ten'"),
        ({"training.max_steps": 1e3}, "training.max_steps: expected int, got 1000.0"),
        ({"training.eval_strategy": False}, "training.eval_strategy: expected .*str, got False"),
        ({"objective.weights": {"lm": "much"}}, "objective.weights.lm: expected float, got 'much'"),
        ({"objective.weights": {"lm": 1.0, "vw": 1.0}}, "lm and vm"),
        ({"lora.target_modules": ["q_proj", 3]}, "lora.target_modules.1: expected str, got 3"),
        ({"trainable.vm_head": "fast"}, "trainable.vm_head: expected a learning rate above 0"),
        ({"trainable.vm_head": 0}, "To freeze a module, leave it out"),
        ({"trainable.vm_head": float("nan")}, "trainable.vm_head: expected a learning rate above 0"),
        ({"trainable": {3: 1e-3}}, "expected names of modules, got 3"),
        ({"trainable": ["vm_head"]}, "needs the section `trainable`"),
        ({"model.dtype": "fp8"}, "model.dtype is one of float32, bfloat16, float16: got 'fp8'"),
        ({"model": PARTS | {"init_from": "x"}}, "init_from already names a whole model"),
        ({"model.vision_tower": "x"}, "vision_tower would be ignored"),
        ({"model": {"vision_tower": "x"}}, "expected init_from, or all of .* got vision_tower"),
        ({"objective.name": "visual_word"}, "unknown method 'visual_word'. Did you mean 'visual_words'?"),
        ({"objective.name": ["visual_words"]}, "unknown method"),
        ({"objective.target": "patches"}, "objective.target is one of visual_words, language_model"),
        ({"objective.weights": {"lm": 0.0, "vm": 0.0}}, "nothing would be learned"),
        ({"training.resume": "always"}, "training.resume is auto"),
        ({"training.output_dir": None}, "training.output_dir: expected"),
        ({"trainable": {}}, "nothing learns"),
        ({"trainable.vm_head": None}, "takes training.learning_rate, which is not given"),
        (
            {"training.learning_rate": 1e-4},
            "training.learning_rate would change nothing.*trainable.multi_modal_projector",
        ),
        ({"lora": LORA | {"quantize": "2bit"}}, "lora.quantize is 4bit"),
        ({"lora": LORA | {"r": 0}}, "at least 1: got 0"),
        ({"lora": LORA}, "trainable.language_model learns through the adapters"),
        ({"lora": LORA, "trainable": {}, "model": PARTS}, "give model.init_from"),
        ({"lora": LORA, "trainable": {}, "model.vm_head_init": "lm_head"}, "name vm_head in `trainable`"),
    ],
)
def test_a_value_that_cannot_be_right_is_an_error_that_names_its_key(read, changes, message):
    with pytest.raises(ValueError, match=message):
        read(changes)


@pytest.mark.parametrize("section", ["model", "objective", "trainable", "data", "training"])
def test_every_section_but_lora_is_needed(tmp_path, content, section):
    del content[section]
    with pytest.raises(ValueError, match=f"needs the section `{section}`"):
        read_recipe(write(tmp_path, content))


def test_a_missing_key_is_named(read):
    with pytest.raises(ValueError, match="data: missing key path"):
        read({"data": {"images": "x"}})


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "1E-3", "0.001"])
def test_a_rate_is_a_number_however_it_is_written(tmp_path, content, written):
    content["trainable"] = {"vm_head": "RATE"}
    assert read_recipe(write(tmp_path, content, "RATE", written)).trainable == {"vm_head": 1e-3}
    assert read_recipe(tmp_path / "recipe.yaml", [f"trainable.vm_head={written}"]).trainable == {"vm_head": 1e-3}


def test_a_key_written_twice_is_an_error_with_its_line(tmp_path, content):
    path = write(tmp_path, content, "  max_length: 256\n", "  max_length: 256\n  max_length: 128\n")
    line = 1 + path.read_text().splitlines().index("  max_length: 128")
    with pytest.raises(ValueError, match=f"line {line}: key 'max_length' is written twice"):
        read_recipe(path)


def test_broken_yaml_is_an_error_with_its_line(tmp_path, content):
    path = write(tmp_path, content, "objective:\n", "objective: {\n")
    with pytest.raises(ValueError, match=r"recipe.yaml is not readable YAML: .*line \d+") as problem:
        read_recipe(path)
    assert "\n" not in str(problem.value)


def test_a_file_that_is_no_mapping_is_an_error(tmp_path):
    (tmp_path / "list.yaml").write_text("- model\n- data\n")
    with pytest.raises(ValueError, match="a recipe is a mapping of sections"):
        read_recipe(tmp_path / "list.yaml")


def test_a_recipe_that_is_not_there_says_which_one_to_copy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"forkme.yaml"):
        read_recipe(tmp_path / "none.yaml")


def test_overrides_win_over_the_file_and_are_yaml(read):
    changed = read({}, "training.max_steps=7", "objective.weights.vm=0.5", "data.images=null", "model.dtype=bfloat16")
    assert changed.training["max_steps"] == 7
    assert changed.objective["weights"] == {"lm": 1.0, "vm": 0.5}
    assert changed.data.images is None
    assert changed.model.dtype == "bfloat16"


def test_an_override_may_name_a_module_by_its_path(read):
    assert read({}, "trainable.language_model.layers.0=1e-6").trainable["language_model.layers.0"] == 1e-6


@pytest.mark.parametrize("override", ["max_steps=1", "training.max_steps", "training.=1", "=", "training"])
def test_an_override_that_is_no_section_key_value_shows_how_one_looks(read, override):
    with pytest.raises(ValueError, match=r"An override is section.key=value, like training.max_steps=10: got "):
        read({}, override)


def test_overrides_are_checked_like_the_file(read):
    with pytest.raises(ValueError, match=r"unknown key training.max_step\. Did you mean 'max_steps'\?"):
        read({}, "training.max_step=1")
    with pytest.raises(ValueError, match="unknown section 'trianing'"):
        read({}, "trianing.max_steps=1")


def test_a_module_without_a_rate_takes_the_run_s_rate(read):
    assert read({"trainable": {"vm_head": None}, "training.learning_rate": 2e-5}).trainable == {"vm_head": None}


def test_a_written_recipe_reads_back_as_itself(tmp_path, read):
    before = read({"lora": LORA, "trainable": {"multi_modal_projector": 1e-3}})
    write_recipe(before, tmp_path / "resolved.yaml")
    assert read_recipe(tmp_path / "resolved.yaml") == before
