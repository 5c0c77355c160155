"""Curation from files to files: interrupted = uninterrupted, bad input stops it or is listed, nothing is lost."""

import json

import pytest
from curation_cases import CONCEPTS, embed

from vwlmm.curation import BrokenShard, CurateConfig, Scale, curate, find_shards
from vwlmm.data.bad_row import BadRow


def config(**changes):
    return CurateConfig(**{"scale": Scale("float32"), "block_rows": 16, "per_concept": 7, "depth": 20} | changes)


def files(folder):
    """Everything a curation leaves behind, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(folder, name="pairs.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_chosen_pairs_keep_their_columns_and_say_where_they_come_from(tmp_path, shards, prototypes):
    out = tmp_path / "deep" / "out"
    report = curate(shards(40, 60), prototypes, embed, out, config())
    rows = lines(out)
    assert len(rows) == CONCEPTS * 7 == report.num_chosen
    numbers = [int(row["caption"].split()[-1]) for row in rows]
    assert numbers == sorted(set(numbers))  # in the order of the shards, each once
    for row, number in zip(rows, numbers, strict=True):
        # The relative path still leads to the picture beside its shard.
        assert (out / row["image"]).resolve() == tmp_path / "shards" / f"{number}.png"
        assert row["source"] == (f"0.jsonl line {number + 1}" if number < 40 else f"1.jsonl line {number - 39}")
        assert row["concept"] in prototypes.names
    counts = {name: sum(row["concept"] == name for row in rows) for name in prototypes.names}
    assert set(counts.values()) == {7}


@pytest.mark.parametrize("stop_after", [1, 3, 5, 6])
def test_interrupted_and_started_again_it_leaves_the_same_files(tmp_path, shards, prototypes, stop_after):
    sources = shards(40, 0, 61)
    curate(sources, prototypes, embed, tmp_path / "whole", config())
    calls = []

    def interrupted(captions):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(captions)
        return embed(captions)

    with pytest.raises(KeyboardInterrupt):
        curate(sources, prototypes, interrupted, tmp_path / "cut", config())

    again = []
    curate(sources, prototypes, lambda captions: again.append(captions) or embed(captions), tmp_path / "cut", config())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    # 40 rows are three blocks of 16, 61 are four; no caption is embedded twice.
    assert len(calls) + len(again) == 7
    assert sorted(caption for block in calls + again for caption in block) == sorted(f"caption {i}" for i in range(101))


@pytest.mark.parametrize("stop_at", [1, CONCEPTS, CONCEPTS + 2])
def test_interrupted_while_it_chooses_it_can_be_started_again(tmp_path, shards, prototypes, stop_at):
    sources = shards(40)
    curate(sources, prototypes, embed, tmp_path / "whole", config())
    steps = []

    def interrupted(what, total):
        def step(added):
            steps.append(what)
            if steps.count("choose") == stop_at:
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        curate(sources, prototypes, embed, tmp_path / "cut", config(), progress=interrupted)
    curate(sources, prototypes, embed, tmp_path / "cut", config())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_another_number_per_concept_needs_no_scoring(tmp_path, shards, prototypes):
    curate(shards(50), prototypes, embed, tmp_path / "out", config())

    def never(captions):
        raise AssertionError("scored again")

    assert curate(shards(50), prototypes, never, tmp_path / "out", config(per_concept=3)).num_chosen == CONCEPTS * 3


def test_a_folder_with_another_curation_is_refused_and_kept(tmp_path, shards, prototypes):
    sources, out = shards(50), tmp_path / "out"
    curate(sources, prototypes, embed, out, config())
    before = files(out)
    with pytest.raises(ValueError, match=r"holds the scores of another curation: scale was .*float32.*, is .*int8"):
        curate(sources, prototypes, embed, out, config(scale=Scale("int8")))
    with pytest.raises(ValueError, match=r"another curation: model was , is another"):
        curate(sources, prototypes, embed, out, config(), model="another")
    sources[0].write_text(sources[0].read_text().replace("caption 7", "caption 8"))
    with pytest.raises(ValueError, match=r"0\.jsonl is not the file that was scored"):
        curate(sources, prototypes, embed, out, config())
    assert files(out) == before


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({"image": "x.png", "caption": 17}, "int 17"),
        ({"image": "x.png", "caption": None}, "columns image, caption"),
        ({"image": "x.png"}, "columns image"),
        ({"image": "x.png", "caption": "  "}, "an empty caption"),
        (["no", "row"], "list"),
        ("{broken", "malformed JSON"),
    ],
)
def test_a_caption_that_is_not_text_stops_with_its_place_and_can_be_quarantined(
    tmp_path, shards, prototypes, bad, found
):
    (source,) = shards(40)
    rows = source.read_text().splitlines()
    rows[20] = bad if isinstance(bad, str) else json.dumps(bad)
    source.write_text("\n".join(rows) + "\n")
    with pytest.raises(BadRow) as problem:
        curate([source], prototypes, embed, tmp_path / "out", config())
    assert "0.jsonl line 21" in str(problem.value)
    assert found in str(problem.value)
    # The block before it was kept; with quarantine the run goes on from there.
    calls = []
    report = curate(
        [source],
        prototypes,
        lambda captions: calls.append(captions) or embed(captions),
        tmp_path / "out",
        config(quarantine=True),
    )
    assert [len(call) for call in calls] == [15, 8]
    assert (report.num_rows, report.num_bad) == (40, 1)
    (listed,) = lines(tmp_path / "out", "quarantine.jsonl")
    assert listed["source"] == "0.jsonl line 21"
    assert all("caption 20" not in row["caption"] for row in lines(tmp_path / "out"))


def test_a_broken_shard_stops_and_what_was_scored_before_is_kept(tmp_path, shards, prototypes):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as arrow

    good, broken = shards(40)[0], tmp_path / "shards" / "1.parquet"
    table = arrow.table(
        {"image": [f"{i}.png" for i in range(40, 90)], "caption": [f"caption {i}" for i in range(40, 90)]}
    )
    parquet.write_table(table, broken)
    whole = broken.read_bytes()
    curate([good, broken], prototypes, embed, tmp_path / "whole", config())

    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenShard, match=r"1\.parquet: expected a whole \.parquet shard, could read 0 rows"):
        curate([good, broken], prototypes, embed, tmp_path / "out", config())
    report = curate([good, broken], prototypes, embed, tmp_path / "other", config(quarantine=True))
    assert report.num_rows == 40
    assert "1.parquet" in report.summary()[-1]
    assert lines(tmp_path / "other", "quarantine.jsonl")[0]["shard"] == "1.parquet"

    # Fetched again, it is scored; the first shard is not.
    broken.write_bytes(whole)
    for out in ("out", "other"):
        calls = []
        curate([good, broken], prototypes, lambda c, calls=calls: calls.append(c) or embed(c), tmp_path / out, config())
        assert calls[0][0] == "caption 40"
        assert files(tmp_path / out) == files(tmp_path / "whole")


def test_the_report_counts_captions_by_nearest_concept_before_and_after(tmp_path, shards, prototypes):
    report = curate(shards(100), prototypes, embed, tmp_path / "out", config())
    assert sum(row.nearest_of_all for row in report.concepts) == 100
    assert sum(row.nearest_of_chosen for row in report.concepts) == report.num_chosen
    commonality = [row.commonality for row in report.concepts]
    assert commonality == sorted(commonality)
    assert (tmp_path / "out" / "coverage.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.md").read_text()
    assert all(f"| {name} |" in page for name in prototypes.names)


def test_scores_above_the_range_are_said(tmp_path, shards, prototypes):
    report = curate(shards(100), prototypes, embed, tmp_path / "out", config(scale=Scale("int8", -0.1, 0.1)))
    assert report.num_clipped_high > 0
    assert any("above the range and count as equal: widen it with --score-range" in line for line in report.summary())


def test_shards_without_a_caption_are_refused(tmp_path, shards, prototypes):
    with pytest.raises(ValueError, match="2 shards hold no caption"):
        curate(shards(0, 0), prototypes, embed, tmp_path / "out", config())


def test_shards_are_files_of_known_kinds_named_once(tmp_path, shards):
    one, two = shards(3, 3)
    assert find_shards([one.parent]) == [one, two]
    with pytest.raises(ValueError, match="given twice"):
        find_shards([one.parent, two])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="expected a shard that ends in"):
        find_shards([tmp_path / "notes.txt"])
    with pytest.raises(FileNotFoundError, match="found none"):
        find_shards([tmp_path / "nowhere"])
