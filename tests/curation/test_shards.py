"""Pairs are read from JSON, Parquet and tar; a shard that is cut says so."""

import io
import json
import tarfile

import pytest
from curation_cases import embed
from PIL import Image

from vwlmm.curation import BrokenShard, CurateConfig, Fields, Scale, curate, read_pairs
from vwlmm.data.bad_row import BadRow


def png(colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def tar(tmp_path):
    """A webdataset shard of eight pairs; the last one's caption lies in a .json."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(8):
            text = (
                (".json", json.dumps({"caption": "caption 7", "id": "seven"}).encode())
                if i == 7
                else (".txt", b"caption %d" % i)
            )
            for suffix, data in ((".png", png((i * 30, 0, 0))), text):
                member = tarfile.TarInfo(f"00/{i:03d}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_files_of_one_name_in_a_tar_are_one_pair(tar):
    pairs = list(read_pairs(tar, Fields()))
    assert [pair.caption for pair in pairs] == [f"caption {i}" for i in range(8)]
    assert pairs[3].source == "0.tar key 00/003"
    assert pairs[3].value["image"] == png((90, 0, 0))


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_a_tar_that_was_cut_is_broken_wherever_it_was_cut(tar, share):
    whole = tar.read_bytes()
    end = max(i for i in range(0, len(whole), 512) if whole[i : i + 512].strip(b"\0")) + 512  # without the end mark
    for cut in (int(end * share), int(end * share) // 512 * 512, end):
        tar.write_bytes(whole[:cut])
        for captions_only in (True, False):
            with pytest.raises(BrokenShard, match=r"0\.tar: expected a whole \.tar shard, could read \d+ rows"):
                list(read_pairs(tar, Fields(), captions_only=captions_only))


def test_a_key_without_a_caption_is_a_bad_row(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(png("red"))
        archive.addfile(member, io.BytesIO(png("red")))
    (bad,) = read_pairs(tmp_path / "x.tar", Fields())
    assert isinstance(bad, BadRow)
    assert "x.tar key a" in str(bad)


def test_pictures_inside_chosen_shards_are_written_as_they_are(tmp_path, tar, prototypes):
    config = CurateConfig(scale=Scale("float32"), block_rows=3, per_concept=1, depth=5)
    curate([tar], prototypes, embed, tmp_path / "out", config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        number = int(row["caption"].split()[-1])
        assert row["image"] == f"pictures/000000/{number}.png"
        assert (tmp_path / "out" / row["image"]).read_bytes() == png((number * 30, 0, 0))


def test_parquet_with_embedded_pictures_is_read_by_column(tmp_path, prototypes):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": png((i, i, i)), "path": f"{i}.png"} for i in range(12)]
    parquet.write_table(
        arrow.table({"TEXT": [f"caption {i}" for i in range(12)], "image": images}), tmp_path / "x.parquet"
    )
    config = CurateConfig(scale=Scale("float32"), fields=Fields("TEXT"), per_concept=1, depth=5)
    curate([tmp_path / "x.parquet"], prototypes, embed, tmp_path / "out", config)
    first = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    number = int(first["TEXT"].split()[-1])
    assert (tmp_path / "out" / first["image"]).read_bytes() == images[number]["bytes"]
    with pytest.raises(BrokenShard, match="no column 'caption' but TEXT, image; name it with --caption-field"):
        list(read_pairs(tmp_path / "x.parquet", Fields()))
