"""Cut, stopped or killed: a run on two ranks goes on from its last whole checkpoint and ends where it would have."""

import pytest
from ranks import on_ranks
from runs import train as train_rank
from runs import write_recipe
from small_runs import logs, moved, weights

STEPS = {"training__max_steps": 6, "training__save_strategy": "steps", "training__save_steps": 2}
STEPS |= {"training__lr_scheduler_type": "cosine", "model__attn_implementation": "eager"}
SHARDED = [
    "zero3",
    *(pytest.param(level, marks=pytest.mark.slow) for level in ("ddp", "zero1", "zero2", "zero3_offload")),
]


def printed(folder):
    clock = ("per_second", "runtime")
    lines = [line for line in logs(folder) if "loss" in line]
    return [{name: value for name, value in line.items() if not any(w in name for w in clock)} for line in lines]


@pytest.mark.parametrize("level", SHARDED)
def test_a_run_cut_or_stopped_on_two_ranks_equals_a_whole_one_to_all_digits(tmp_path, with_dropout, rows, level):
    files = {
        name: write_recipe(tmp_path, name, with_dropout, rows, level=level, **STEPS)
        for name in ("whole", "cut", "stopped")
    }
    assert on_ranks(2, train_rank, files["whole"]) == ["finished"] * 2
    assert on_ranks(2, cut_at_5, files["cut"]) == ["cut"] * 2
    # The signal reaches one rank in its second step; both end together, one step later at most.
    ends = on_ranks(2, signal_at_2, files["stopped"])
    assert ends == ["stopped at 3"] * 2
    assert not (tmp_path / "stopped" / "result.json").exists()
    for name in ("cut", "stopped"):
        assert on_ranks(2, train_rank, files[name]) == ["finished"] * 2
        assert printed(tmp_path / name)[-2:] == printed(tmp_path / "whole")[-2:]
        assert len(printed(tmp_path / name)) == 6
        assert moved(weights(tmp_path / "whole"), weights(tmp_path / name)) == set()


def cut_at_5(file):
    return train_rank(file, cut_after=5)


def signal_at_2(file):
    return train_rank(file, signal_at=2)


@pytest.mark.parametrize("level", ["zero2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero1"))])
def test_another_number_of_ranks_goes_on_where_the_first_left_off(tmp_path, trained, rows, level):
    whole, fewer = (write_recipe(tmp_path, name, trained, rows, level=level, **STEPS) for name in ("whole", "fewer"))
    assert on_ranks(2, train_rank, whole) == ["finished"] * 2
    assert on_ranks(2, cut_at_5, fewer) == ["cut"] * 2
    assert on_ranks(1, train_rank, fewer) == ["finished"]
    for expected, found in zip(printed(tmp_path / "whole")[-2:], printed(tmp_path / "fewer")[-2:], strict=True):
        assert found["step"] == expected["step"]
        assert found["loss"] == pytest.approx(expected["loss"], abs=2e-5)
        assert found["learning_rate"] == expected["learning_rate"]
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "fewer")
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-4


@pytest.fixture
def checkpoint_of(tmp_path, trained, rows):
    """A recipe and a checkpoint that another run left in its folder."""
    from vwlmm.checkpoints import mark_whole

    def write(level, **facts):
        file = write_recipe(tmp_path, "out", trained, rows, level=level)
        folder = tmp_path / "out" / "checkpoint-3"
        folder.mkdir(parents=True)
        mark_whole(folder, **({"processes": 1, "sharding": level, "global_batch": 4} | facts))
        return file

    return write


def refused(file):
    from vwlmm.config import read_recipe
    from vwlmm.resuming import checkpoint_to_resume
    from vwlmm.training import arguments_of

    recipe = read_recipe(file)
    try:
        checkpoint_to_resume(recipe.training, arguments_of(recipe))
    except ValueError as problem:
        return str(problem)
    return "taken"


@pytest.mark.parametrize(
    ("level", "facts", "message"),
    [
        (
            "zero3",
            {"processes": 2},
            "was written by 2 processes under zero3, and this run has 1: that cannot be taken over exactly",
        ),
        ("zero3", {"sharding": "zero2"}, "was written under sharding 'zero2' and this run uses 'zero3'"),
        (
            "zero2",
            {"processes": 3, "global_batch": 12},
            "3 processes with 12 rows a step, and this run has 1 processes with 4",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_to_do(checkpoint_of, level, facts, message):
    [answer] = on_ranks(1, refused, checkpoint_of(level, **facts))
    assert message in answer
    assert "model.init_from=" in answer
