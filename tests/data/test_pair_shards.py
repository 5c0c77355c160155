"""Shards of pairs: every pair is read, and whatever is bad is one listed row."""

import io
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from small_runs import recipe

from vwlmm.data.bad_row import BadRow
from vwlmm.data.config import DataConfig
from vwlmm.data.rows import read_rows
from vwlmm.data.shards import ShardedPairs, expand
from vwlmm.training import RESULT_FILE, run


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """00.tar: 3 good pairs; 01.tar: one good of four; 02.tar is missing; 03.tar is cut off in its second pair."""
    write_tar(
        tmp_path / "00.tar",
        {f"{n}.{kind}": png() if kind == "png" else b"It is red" for n in "abc" for kind in ("png", "txt")},
    )
    bad = {
        "a.png": png(),
        "b.txt": b"It is red",
        "c.png": png(),
        "c.txt": b" ",
        "d.jpg": png(),
        "d.json": json.dumps({"caption": "A picture of a shape"}).encode(),
        "e.png": png(),
        "e.txt": b"\xff\xfe",
    }
    write_tar(tmp_path / "01.tar", bad)
    whole = write_tar(
        tmp_path / "03.tar", {"a.png": png(), "a.txt": b"It is green", "b.png": bytes(5000), "b.txt": b"blue"}
    )
    whole.write_bytes(whole.read_bytes()[:4000])
    return tmp_path / "{00..03}.tar"


def test_every_good_pair_of_every_shard_is_read_and_every_bad_one_named(shards):
    rows = list(read_rows(shards, streaming=True))
    good = [row for row in rows if not isinstance(row, BadRow)]
    assert [(row.source, row.messages[-1]["content"][0]["text"]) for row in good] == [
        ("00.tar pair a", "It is red"),
        ("00.tar pair b", "It is red"),
        ("00.tar pair c", "It is red"),
        ("01.tar pair d", "A picture of a shape"),
        ("03.tar pair a", "It is green"),
    ]
    bad = {row.source.rpartition("/")[2]: (row.field, row.found) for row in rows if isinstance(row, BadRow)}
    assert bad["01.tar pair a"] == ("caption", ".png")
    assert bad["01.tar pair b"] == ("image", ".txt")
    assert bad["01.tar pair c"] == ("caption", "an empty caption")
    assert bad["01.tar pair e"][0] == "caption"
    assert "No such file" in bad["02.tar"][1]
    assert bad["03.tar"][0] == "shard"
    assert "after 1 pairs" in bad["03.tar"][1]
    assert len(bad) == 6


def test_parquet_shards_are_read_and_a_broken_one_is_one_bad_row(tmp_path):
    table = pyarrow.table({"jpg": [png(), None], "caption": ["It is red", "It is blue"]})
    pyarrow.parquet.write_table(table, tmp_path / "part-0.parquet")
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 no")
    rows = list(read_rows(tmp_path / "part-*.parquet", streaming=True))
    assert rows[0].id == "0"
    assert [(row.field, row.source.rpartition("/")[2]) for row in rows[1:]] == [
        ("image", "part-0.parquet pair 1"),
        ("shard", "part-1.parquet"),
    ]


def test_a_pattern_counts_and_matches(tmp_path):
    assert [path.name for path in _expand(tmp_path, "{08..11}.tar", "08.tar")] == [
        "08.tar",
        "09.tar",
        "10.tar",
        "11.tar",
    ]
    assert [path.name for path in expand(tmp_path / "*.tar")] == ["08.tar"]
    with pytest.raises(FileNotFoundError, match="none of the 3 is there"):
        expand(tmp_path / "{0..2}.parquet")
    with pytest.raises(ValueError, match="counts up"):
        expand(tmp_path / "{5..2}.tar")


def _expand(folder, pattern, there):
    (folder / there).touch()
    return expand(folder / pattern)


def test_shards_are_a_stream_and_say_so(shards):
    with pytest.raises(ValueError, match="streaming: true"):
        list(read_rows(shards))
    with pytest.raises(ValueError, match="no length"):
        len(ShardedPairs(shards))


def test_bad_pairs_are_left_out_of_shards_by_default_and_stop_other_files(shards):
    assert DataConfig(path=str(shards), streaming=True).on_bad_row == "quarantine"
    assert DataConfig(path=str(shards), streaming=True, on_bad_row="stop").on_bad_row == "stop"
    assert DataConfig(path="train.json").on_bad_row == "stop"


def test_a_run_on_shards_lists_and_counts_what_it_left_out(shards, parts, tmp_path):
    content = {
        "model": {
            "vision_tower": str(parts / "tower"),
            "language_model": str(parts / "llm"),
            "chat_template": "caption",
            "projector_type": "linear",
        },
        "objective": {"name": "vlap", "mode": "sinkhorn_uniform", "captions": "word_embeddings"},
        "trainable": {"multi_modal_projector": 1e-3},
        "data": {"path": str(shards), "streaming": True, "num_workers": 0, "max_length": 64},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 1,
            "per_device_train_batch_size": 12,  # all rows: of one good pair alone no plan can be made
            "disable_tqdm": True,
        },
    }
    out = run(recipe(tmp_path / "recipe.yaml", content))
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {row["field"] for row in listed} == {"caption", "image", "shard"}
    assert json.loads((out / RESULT_FILE).read_text())["bad_rows"] == len(listed)
