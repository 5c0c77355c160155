"""Imports go one way: train, eval → vwlmm; objectives, models → functional → torch. And importing does nothing slow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "vwlmm").rglob("*.py"))


def imported(file):
    """Full names of all modules that a file imports, also inside functions and under TYPE_CHECKING."""
    path = Path(file)
    package = path.parent.parts
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from vwlmm import functional` imports vwlmm.functional.
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def within(names, *packages):
    return sorted(n for n in names if any(n == package or n.startswith(package + ".") for package in packages))


def files(*folders):
    chosen = [file for file in FILES if any(Path(file).is_relative_to(Path("vwlmm") / folder) for folder in folders)]
    assert chosen
    return chosen


@pytest.mark.parametrize("file", files("functional"))
def test_functional_imports_torch_and_the_standard_library_only(file):
    outside = [name for name in imported(file) if not within([name], "vwlmm.functional", "torch")]
    assert [name for name in outside if name.split(".")[0] not in {*sys.stdlib_module_names, "vwlmm"}] == []
    assert [name for name in within(outside, "vwlmm") if name != "vwlmm"] == []


@pytest.mark.parametrize("file", files("objectives"))
def test_objectives_see_no_model_and_no_data(file):
    assert set(within(imported(file), "vwlmm")) <= {
        "vwlmm",
        *within(imported(file), "vwlmm.functional", "vwlmm.objectives"),
    }
    assert within(imported(file), "transformers", "peft", "accelerate") == []


@pytest.mark.parametrize("file", files("models"))
def test_models_see_no_objective_no_data_and_no_training(file):
    assert set(within(imported(file), "vwlmm")) <= {
        "vwlmm",
        *within(imported(file), "vwlmm.functional", "vwlmm.models"),
    }


@pytest.mark.parametrize("file", files("data"))
def test_data_see_no_model_and_no_training(file):
    others = ("models", "objectives", "training", "trainer", "trainable", "assemble", "loading", "demo", "commands")
    assert within(imported(file), *(f"vwlmm.{name}" for name in others)) == []


@pytest.mark.parametrize("file", FILES)
def test_the_library_imports_no_script(file):
    assert within(imported(file), "train", "eval", "bench", "tests") == []


def test_the_walk_sees_relative_imports_and_imports_inside_functions():
    assert "vwlmm.visualize.word_map.VisualWordMap" in imported("vwlmm/visualize/command.py")
    assert "vwlmm.loading" in imported("vwlmm/visualize/command.py")


@pytest.mark.parametrize("module", ["vwlmm", "vwlmm.functional", "vwlmm.cli", "vwlmm.objectives"])
def test_what_does_without_transformers_does_not_import_it(module):
    heavy = "transformers", "datasets", "peft", "deepspeed", "matplotlib", "accelerate"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_what_they_say_however_often_they_are_imported():
    code = (
        "import vwlmm.training\n"
        "from vwlmm import VisualWordLlavaConfig, VisualWordLlavaForConditionalGeneration, assemble, load_model\n"
        "assert assemble is vwlmm.assemble and load_model is vwlmm.load_model\n"
        "assert callable(assemble) and callable(load_model)\n"
        "import vwlmm.models\n"
        "assert VisualWordLlavaConfig is vwlmm.models.VisualWordLlavaConfig\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
