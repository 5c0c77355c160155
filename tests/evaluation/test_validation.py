"""Benchmarks while a model trains: the values of `vwlmm eval`, in the run's log, and nothing else changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import logs, recipe, sections, weights

from vwlmm.benchmarks import BENCHMARKS
from vwlmm.config import read_recipe
from vwlmm.evaluation.runner import LoadedModel, evaluate
from vwlmm.evaluation.settings import EvaluationConfig
from vwlmm.training import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _toy_benchmark(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "toy", ("toy", "Letters"))


@pytest.fixture
def content(trained, rows, tmp_path):
    content = sections(trained, rows, tmp_path / "out")
    content["training"]["max_steps"] = 5
    return content


def section(toy_data, **changes):
    return {"benchmark": "toy", "data": str(toy_data), "every": 2, **changes}


def test_values_are_logged_every_so_many_steps_and_at_the_end(content, toy_data, tmp_path):
    content["evaluation"] = section(toy_data)
    out = run(recipe(tmp_path / "a.yaml", content))
    logged = {line["step"]: line["eval_toy_letters"] for line in logs(out) if "eval_toy_letters" in line}
    assert list(logged) == [2, 4, 5]
    assert json.loads((out / "result.json").read_text())["eval_toy_letters"] == pytest.approx(logged[5], rel=1e-5)


def test_the_last_value_is_that_of_vwlmm_eval_on_the_finished_model(content, toy, toy_data, tmp_path):
    from toy import Letters

    content["evaluation"] = section(toy_data, limit=7, batch_size=3)
    out = run(recipe(tmp_path / "a.yaml", content))
    benchmark = Letters()
    result = evaluate(
        LoadedModel.load(out), benchmark, benchmark.files(toy_data), tmp_path / "eval", EvaluationConfig(limit=7)
    )
    logged = [line["eval_toy_letters"] for line in logs(out) if "eval_toy_letters" in line]
    assert logged[-1] == pytest.approx(result.metrics["letters"], rel=1e-5)
    assert result.metrics["letters"] > 0


def test_training_is_the_same_with_and_without_it(content, toy_data, tmp_path):
    plain = weights(run(recipe(tmp_path / "plain.yaml", content)))
    content["training"]["output_dir"] = str(tmp_path / "validated")
    content["evaluation"] = section(toy_data, every=1)
    validated = weights(run(recipe(tmp_path / "validated.yaml", content)))
    assert all(torch.equal(plain[name], validated[name]) for name in plain)


def test_missing_files_are_found_before_the_first_step(content, tmp_path):
    content["evaluation"] = section(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected toy\.json"):
        run(recipe(tmp_path / "a.yaml", content))
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark": "tyo"}, "no benchmark 'tyo'. Did you mean 'toy'?"),
        ({"limt": 3}, "unknown key evaluation.limt. Did you mean 'limit'?"),
        ({"every": 0}, "evaluation.every is at least 1"),
        ({"every": "often"}, "evaluation.every: expected int"),
        ({"benchmark": []}, "expected the name of a benchmark"),
    ],
)
def test_a_wrong_section_stops_the_recipe(content, toy_data, tmp_path, changes, said):
    content["evaluation"] = section(toy_data, **changes)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as problem:
        read_recipe(tmp_path / "a.yaml")
    assert said in str(problem.value)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "zero3"])
def test_two_processes_answer_a_share_each_and_log_what_one_logs(content, toy_data, tmp_path, deepspeed):
    content["evaluation"] = section(toy_data, every=1, batch_size=3)
    content["training"] |= {"per_device_train_batch_size": 4, "max_steps": 1}
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/evaluation')!r}]\n"
        "from vwlmm.benchmarks import BENCHMARKS; BENCHMARKS['toy'] = ('toy', 'Letters')\n"
        "from vwlmm.cli import main; raise SystemExit(main(['train', sys.argv[1]]))\n"
    )
    found = []
    for world in (1, 2):
        content["training"]["output_dir"] = str(tmp_path / str(world))
        content["training"]["gradient_accumulation_steps"] = 2 // world
        if deepspeed and world == 2:
            content["training"]["deepspeed"] = str(ROOT / "zero_configs" / f"{deepspeed}.json")
        (tmp_path / f"{world}.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
        done = subprocess.run(
            [*command, str(script), str(tmp_path / f"{world}.yaml")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found.append([line["eval_toy_letters"] for line in logs(tmp_path / str(world)) if "eval_toy_letters" in line])
    assert len(found[0]) == 1
    assert found[0] == pytest.approx(found[1], rel=1e-4)
