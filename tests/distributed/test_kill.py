"""Killed with -9 twenty times, steps and saves alike: each time the run goes on from a whole checkpoint, and ends the same."""

import random

import pytest
from ranks import kill_on_ranks, on_ranks
from runs import train as train_rank
from runs import write_recipe
from small_runs import moved, weights

from vwlmm.checkpoints import is_whole, last_whole_checkpoint

KILLS = 20
STEPS = {"training__max_steps": 200, "training__save_strategy": "steps", "training__save_steps": 1}
STEPS |= {"training__save_total_limit": 2, "training__lr_scheduler_type": "cosine", "training__logging_steps": 100}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "level"), [(1, None), (2, "zero2"), (2, "zero3")])
def test_a_run_killed_at_twenty_random_moments_ends_as_a_whole_one(tmp_path, trained, rows, processes, level):
    whole, killed = (write_recipe(tmp_path, name, trained, rows, level=level, **STEPS) for name in ("whole", "killed"))
    assert set(on_ranks(processes, train_rank, whole, timeout=300)) == {"finished"}
    out, generator = tmp_path / "killed", random.Random(0)
    inside_a_save, steps = 0, []
    for _ in range(KILLS):
        before = set(out.glob("checkpoint-*"))
        # From the moment when a new checkpoint is begun: some of these moments lie inside it, some in the steps after.
        began = lambda before=before: bool(set(out.glob("checkpoint-*")) - before)  # noqa: E731
        assert kill_on_ranks(processes, train_rank, killed, when=began, delay=generator.uniform(0.0, 0.4))
        inside_a_save += any(not is_whole(folder) for folder in out.glob("checkpoint-*"))
        last = last_whole_checkpoint(out)
        steps.append(0 if last is None else int(last.name.split("-")[1]))
    assert inside_a_save >= 3
    assert steps == sorted(steps)  # nothing that was whole is ever lost
    assert steps[-1] > 0
    assert set(on_ranks(processes, train_rank, killed, timeout=300)) == {"finished"}
    assert moved(weights(tmp_path / "whole"), weights(out)) == set()
