"""The four ways to start ranks, as a user types them, on a machine without a GPU and without a compiler."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import write_recipe
from small_runs import logs

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2"],
    "accelerate": [str(BIN / "accelerate"), "launch", "--use_deepspeed", "--num_processes", "2", "--zero_stage", "2"],
    "python": [sys.executable],
}


def environment(tmp_path):
    """No compiler, no ninja, and a fresh place for compiled operators: nothing may need one."""
    python = tmp_path / "bin"
    python.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        if not (python / name).exists():
            (python / name).symlink_to(sys.executable)
    return os.environ | {
        "PATH": f"{BIN}:{python}:/bin",
        "CXX": "no-compiler",
        "CC": "no-compiler",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "operators"),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }


def launch(tmp_path, launcher, *arguments, timeout=300):
    command = [*LAUNCHERS[launcher], "train/train.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=timeout)
    assert not (tmp_path / "operators").exists()
    return done


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_trains_with_the_zero_files(tmp_path, trained, rows, launcher, zero):
    batch = "training.per_device_train_batch_size=2"
    file = write_recipe(tmp_path, "out", trained, rows, training__max_steps=3)
    done = launch(tmp_path, launcher, file, f"training.deepspeed=zero_configs/{zero}.json", batch)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The model is in") == 1
    assert len([line for line in logs(tmp_path / "out") if "loss" in line]) == 3
    assert json.loads((tmp_path / "out" / "result.json").read_text())["train_loss"] > 0


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "accelerate"])
def test_every_launcher_runs_the_demo_recipe_for_a_few_steps(tmp_path, launcher):
    changes = (
        f"training.output_dir={tmp_path / 'demo'}",
        "training.max_steps=2",
        "training.deepspeed=zero_configs/zero2.json",
    )
    small = (
        "training.per_device_train_batch_size=2",
        "training.bf16=false",
        "data.num_workers=0",
        "training.logging_steps=1",
    )
    done = launch(tmp_path, launcher, "train/demo/1_align.yaml", *changes, *small, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([line for line in logs(tmp_path / "demo") if "loss" in line]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "python"])
def test_sigterm_to_the_launcher_saves_and_the_same_command_finishes(tmp_path, trained, rows, launcher):
    file = write_recipe(tmp_path, "out", trained, rows, training__max_steps=3000, level="zero2")
    code, out, err = stopped_after_a_step(tmp_path, launcher, file)
    checkpoints = list((tmp_path / "out").glob("checkpoint-*/checkpoint.json"))
    assert len(checkpoints) == 1, err[-3000:]
    assert "Stopped by a signal after step" in out
    if launcher == "python":
        assert (code, "Traceback" in err) == (0, False)
    assert 0 < int(checkpoints[0].parent.name.split("-")[1]) < 3000
    # The same recipe, so the same run: it goes on, and is stopped again.
    _, _, err = stopped_after_a_step(tmp_path, launcher, file)
    assert f"going on from {checkpoints[0].parent}" in err
    assert len(list((tmp_path / "out").glob("checkpoint-*/checkpoint.json"))) == 2


def stopped_after_a_step(tmp_path, launcher, file):
    """Exit code and output of a run that is sent SIGTERM when it has logged a step."""
    running = subprocess.Popen(
        [*LAUNCHERS[launcher], "train/train.py", str(file)],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        while "'loss'" not in running.stdout.readline():
            assert running.poll() is None, running.stderr.read()[-3000:]
        if launcher == "deepspeed":  # on one machine it hands no signal on: its whole group is told, as schedulers do
            os.killpg(running.pid, signal.SIGTERM)
        else:
            running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, out, err
