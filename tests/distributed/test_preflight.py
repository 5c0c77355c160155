"""`vwlmm train RECIPE --check`: real steps with the longest rows on every rank, a report, and no file."""

import json

import pytest
from ranks import on_ranks
from runs import write_recipe
from small_runs import llava_row

from vwlmm.cli import main
from vwlmm.preflight import Check, duration


def check_rank(file):
    import warnings

    warnings.simplefilter("ignore")
    from vwlmm.config import read_recipe
    from vwlmm.preflight import check

    return check(read_recipe(file))


def test_two_ranks_report_memory_speed_and_time_and_leave_no_file(tmp_path, trained, rows):
    file = write_recipe(tmp_path, "out", trained, rows, level="zero3", training__max_steps=500)
    first, second = on_ranks(2, check_rank, file)
    assert (first.processes, first.num_steps) == (2, 500)
    assert len(first.memory) == 2
    assert all(2**26 < peak < first.memory_limit for peak in first.memory)
    assert first.longest == max(tokens(trained, rows))
    assert first.mean_length == pytest.approx(sum(tokens(trained, rows)) / 8)
    assert first.memory == second.memory
    # Two timed steps of four rows each; none is as long as the longest.
    assert 0 < first.tokens_per_second <= 4 * first.longest / first.seconds_per_step
    assert first.images_per_second > 0
    assert first.longest_time == pytest.approx(500 * first.seconds_per_step)
    assert not (tmp_path / "out").exists()


def tokens(trained, rows):
    from vwlmm import load_model
    from vwlmm.data.config import DataConfig
    from vwlmm.data.dataset import load_datasets

    config = DataConfig(path=str(rows / "instruct.json"), images=str(rows / "images"), max_length=256)
    return [len(row["input_ids"]) for row in load_datasets(config, load_model(trained)[1], seed=0)[0]]


def test_the_command_prints_the_report(tmp_path, trained, rows, capfd):
    file = write_recipe(tmp_path, "out", trained, rows, training__max_steps=500)
    assert main(["train", str(file), "--check"]) == 0
    out = capfd.readouterr().out
    for word in ("1 processes took 3 steps", "memory: at most", "tokens/s", "for 500 steps"):
        assert word in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_are_all_bad_are_said_and_not_a_crash(tmp_path, trained, rows, capfd, streaming):
    (tmp_path / "lost.jsonl").write_text(
        (json.dumps(llava_row("1", "<image>\nWhat?", "It", image="lost.png")) + "\n") * 9
    )
    data = {"data__path": str(tmp_path / "lost.jsonl"), "data__images": str(tmp_path), "data__streaming": streaming}
    file = write_recipe(tmp_path, "out", trained, rows, **data, data__on_bad_row="quarantine")
    assert main(["train", str(file), "--check"]) == 1
    assert "no row that was looked at can be learned from" in capfd.readouterr().err


def test_the_estimate_is_in_proportion_to_tokens():
    report = Check(2, [2**30, 2**31], "GPU", 80 * 2**30, 400, 1000.0, 8.0, 0.5, 7200, 100.0, 50)
    assert report.longest_time == 3600
    assert report.expected_time == 900
    assert "at most 2.00 of 80.0 GiB a GPU (by rank: 1.00, 2.00)" in str(report)
    assert "about 15 min" in str(report)


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.4, "45 s"), (600, "10 min"), (19200, "5 h 20 min"), (273600, "3 d 4 h")]
)
def test_times_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
