"""A checkpoint is whole or not used; a full disk is said plainly; an empty tensor is not written."""

import json
import os
import shutil

import pytest
import torch
from small_runs import recipe, sections

from vwlmm.checkpoints import MARKER, is_whole, last_whole_checkpoint, mark_whole, unmark
from vwlmm.distributed_trainer import check_tensors
from vwlmm.training import run


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of three files, marked whole."""
    made = tmp_path / "checkpoint-4"
    (made / "global_step4").mkdir(parents=True)
    for name in ("model.safetensors", "trainer_state.json", "global_step4/rank_1.pt"):
        (made / name).write_bytes(b"0123456789")
    mark_whole(made, processes=2, sharding="zero2")
    return made


def test_a_marked_folder_is_whole_and_says_who_wrote_it(folder):
    assert is_whole(folder)
    marker = json.loads((folder / MARKER).read_text())
    assert (marker["processes"], marker["sharding"]) == (2, "zero2")
    assert marker["files"]["global_step4/rank_1.pt"] == 10


@pytest.mark.parametrize("name", ["model.safetensors", "global_step4/rank_1.pt", MARKER])
def test_a_folder_without_one_of_its_files_is_not_whole(folder, name):
    (folder / name).unlink()
    assert not is_whole(folder)


def test_a_file_cut_short_and_a_marker_cut_short_are_not_whole(folder):
    (folder / "global_step4/rank_1.pt").write_bytes(b"0123")
    assert not is_whole(folder)
    (folder / MARKER).write_text('{"processes": 2, "fi')
    assert not is_whole(folder)


def test_the_newest_whole_checkpoint_is_taken_by_number_and_not_by_name(folder, tmp_path):
    for step in (12, 100):
        shutil.copytree(folder, tmp_path / f"checkpoint-{step}")
    unmark(tmp_path / "checkpoint-100")
    shutil.copytree(folder, tmp_path / "checkpoint-best")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-12"
    assert last_whole_checkpoint(tmp_path / "nothing here") is None


def test_an_empty_tensor_is_refused_by_name_and_so_is_no_tensor_at_all():
    check_tensors({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"1 of 2 tensors are empty \(vm_head.weight\).*stage3_gather"):
        check_tensors({"a": torch.zeros(2), "vm_head.weight": torch.zeros(0)})
    with pytest.raises(ValueError, match="there are no tensors"):
        check_tensors({})


SAVES = ("training.max_steps=6", "training.save_strategy=steps", "training.save_steps=2", "training.save_total_limit=1")


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_a_disk_that_fills_up_during_a_save_is_said_plainly_and_nothing_is_lost(
    tmp_path, trained, rows, name, monkeypatch
):
    content = sections(trained, rows, tmp_path / "out")
    one_file_on_a_full_disk(monkeypatch, "checkpoint-4", name)
    with pytest.raises(
        OSError, match=r"No space left while writing .*checkpoint-4: the last whole checkpoint is .*checkpoint-2"
    ):
        run(recipe(tmp_path / "out.yaml", content, *SAVES))
    assert is_whole(tmp_path / "out" / "checkpoint-2")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    out = run(recipe(tmp_path / "out.yaml", content, *SAVES))
    assert (out / "result.json").is_file()
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]


def one_file_on_a_full_disk(monkeypatch, folder, name):
    """/dev/full takes no byte: the real error of a full disk, from whatever writes there."""
    import vwlmm.distributed_trainer

    def spoil(path):
        unmark(path)
        if path.name == folder:
            path.mkdir(parents=True, exist_ok=True)
            os.symlink("/dev/full", path / name)

    monkeypatch.setattr(vwlmm.distributed_trainer, "unmark", spoil)


def test_a_checkpoint_that_is_written_again_does_not_count_until_it_is_whole_again(
    tmp_path, trained, rows, monkeypatch
):
    content = sections(trained, rows, tmp_path / "out")
    run(recipe(tmp_path / "out.yaml", content, *SAVES, "training.save_total_limit=5"))
    (tmp_path / "out" / "result.json").unlink()
    one_file_on_a_full_disk_with_old_files(monkeypatch, tmp_path / "out" / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(OSError, match="No space left"):
        run(recipe(tmp_path / "out.yaml", content, *SAVES, "training.save_total_limit=5", "training.resume=never"))
    assert [is_whole(tmp_path / "out" / f"checkpoint-{step}") for step in (2, 4, 6)] == [True, False, True]


def one_file_on_a_full_disk_with_old_files(monkeypatch, file):
    file.unlink()
    os.symlink("/dev/full", file)
