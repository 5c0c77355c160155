"""train/launch.sh: one machine, a hostfile that must be there, and SLURM as its commands would answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import write_recipe

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Stands for srun: as many tasks as SLURM_NTASKS says, each with its number, as SLURM's own gives them.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
for task in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
if [ -n "$SIGNAL_AFTER" ]; then
    (until grep -q "'loss'" "$SIGNAL_AFTER"; do sleep 0.1; done; kill -USR1 $$) &
fi
code=0
for task in $tasks; do
    wait $task; ended=$?
    while kill -0 $task 2>/dev/null; do wait $task; ended=$?; done
    [ $ended = 0 ] || code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") echo localhost; echo node2 ;;
    requeue*) echo "requeued $2" ;;
esac
"""


def launch(tmp_path, *arguments, output=None, **environment):
    for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    variables = os.environ | variables | environment
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        variables.pop(name, None)
    with open(output or tmp_path / "output", "w") as file:
        done = subprocess.run(
            [ROOT / "train" / "launch.sh", *map(str, arguments)],
            cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
    return done.returncode, Path(file.name).read_text()


def test_without_a_recipe_the_script_says_how_it_is_used(tmp_path):
    code, output = launch(tmp_path)
    assert code == 1
    assert "train/launch.sh train/visual_words/vicuna_7b/2_instruct.yaml" in output
    code, output = launch(tmp_path, "nowhere.yaml")
    assert (code, output) == (1, "launch.sh: a recipe was expected, nowhere.yaml is no file\n")


@pytest.mark.parametrize("hostfile", ["nowhere.txt", "/dev/null"])
def test_a_missing_or_empty_hostfile_is_an_error_and_not_one_machine(tmp_path, hostfile):
    code, output = launch(tmp_path, "train/forkme.yaml", HOSTFILE=hostfile)
    assert code == 1
    assert f"HOSTFILE={hostfile}: a file with lines like 'node1 slots=8' was expected" in output


@pytest.mark.slow
def test_on_one_machine_the_script_trains_on_as_many_processes_as_asked(tmp_path, trained, rows):
    file = write_recipe(tmp_path, "out", trained, rows, level="zero3", training__max_steps=2)
    code, output = launch(tmp_path, file, "--check", GPUS="2")
    assert code == 0, output[-3000:]
    assert "2 processes took 3 steps" in output
    code, output = launch(tmp_path, file, GPUS="2")
    assert code == 0, output[-3000:]
    assert (tmp_path / "out" / "result.json").is_file()


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.mark.slow
def test_under_slurm_a_job_whose_time_is_over_saves_and_is_requeued_and_one_that_fails_is_not(tmp_path, trained, rows):
    file = write_recipe(tmp_path, "out", trained, rows, level="zero2", training__max_steps=3000)
    code, output = launch(tmp_path, file, **SLURM, SIGNAL_AFTER=str(tmp_path / "output"))
    assert code == 0, output[-3000:]
    assert "Stopped by a signal after step" in output
    assert "requeued 4711" in output
    assert len(list((tmp_path / "out").glob("checkpoint-*/checkpoint.json"))) == 1
    short = write_recipe(tmp_path, "short", trained, rows, level="zero2", training__max_steps=2)
    code, output = launch(tmp_path, short, **SLURM)
    assert code == 0, output[-3000:]
    assert "requeued" not in output
    code, output = launch(tmp_path, short, "training.max_steps=3", **SLURM)  # the folder holds another run
    assert code != 0
    assert "already holds another run" in output
    assert "requeued" not in output
