"""The check finds what training would stop at, with the same words, and writes what is good and what is bad."""

import argparse
import json
from pathlib import Path

import pytest

from vwlmm.data.check import add_arguments, check, main
from vwlmm.data.dataset import DataConfig, load_datasets
from vwlmm.data.rows import BadRow


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def mixed(talk, bad_rows) -> list:
    """Good rows before, between and behind the bad ones."""
    good = [talk("good 1", "<image>\nQ", "A", image="a.png"), talk("good 2", "ü", "A")]
    return [good[0], *bad_rows, good[1]]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_each_kind_of_bad_row_has_the_same_message_in_check_and_training(write, images, processor, bad_row, name):
    value, field, found = bad_row
    path = write(name, [value])
    report = check(path, images=images, processor=processor, max_length=100, num_workers=0, progress=False)
    (bad,) = report.bad_rows
    place = "row 0" if name == "rows.json" else "line 1"
    assert str(bad).startswith(f"{name} {place} (id {bad.row_id}), field '{field}': expected {bad.expected}, found ")
    assert found in bad.found
    assert "\n" not in str(bad)
    train, _ = load_datasets(DataConfig(path=str(path), images=str(images), max_length=100), processor, seed=0)
    with pytest.raises(BadRow) as raised:
        train[0]
    assert str(raised.value) == str(bad)


def test_a_malformed_line_has_the_same_message_in_check_and_training(tmp_path, processor, talk):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(talk("1", "Q", "A")) + "\n{broken\n")
    (bad,) = check(path, num_workers=0, progress=False).bad_rows
    train, _ = load_datasets(DataConfig(path=str(path)), processor, seed=0)
    with pytest.raises(BadRow, match=r"rows\.jsonl line 2 .*malformed JSON at column 2") as raised:
        train[1]
    assert str(raised.value) == str(bad)


def test_too_many_pixels_are_a_bad_row_in_both(write, images, processor, talk):
    path = write("rows.json", [talk("1", "<image>", "A", image="a.png")])
    (bad,) = check(path, images=images, max_pixels=1199, num_workers=0, progress=False).bad_rows
    assert (bad.field, bad.found[:22]) == ("image", "40 × 30 = 1,200 pixels")
    train, _ = load_datasets(DataConfig(path=str(path), images=str(images), max_pixels=1199), processor, seed=0)
    with pytest.raises(BadRow) as raised:
        train[0]
    assert str(raised.value) == str(bad)
    assert not check(path, images=images, max_pixels=1200, num_workers=0, progress=False).bad_rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_bad_row_is_found_in_order_and_the_good_are_counted(
    write, images, mixed, bad_rows, processor, num_workers
):
    path = write("rows.json", mixed)
    report = check(path, images=images, processor=processor, max_length=100, num_workers=num_workers, progress=False)
    assert [bad.source for bad in report.bad_rows] == [f"rows.json row {n + 1}" for n in range(len(bad_rows))]
    assert (report.num_rows, report.num_images) == (len(mixed), 1)
    assert sum(report.by_field.values()) == len(bad_rows)
    assert report.by_field["conversations.value"] == 2


def test_rows_that_training_cuts_are_counted_but_not_bad(write, processor, talk):
    path = write("rows.json", [talk("1", "Q", "A" * 50), talk("2", "Q", "A")])
    report = check(path, processor=processor, max_length=40, num_workers=0, progress=False)
    assert (report.num_truncated, report.bad_rows) == (1, [])


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_clean_and_quarantine_together_are_the_file_and_rows_stay_unchanged(
    write, images, mixed, tmp_path, processor, name
):
    path = write(name, mixed)
    clean, quarantine = tmp_path / f"clean.{name}", tmp_path / "new" / "bad.jsonl"
    options = {"images": images, "processor": processor, "max_length": 100, "num_workers": 0, "progress": False}
    check(path, write_clean=clean, write_quarantine=quarantine, **options)
    text = clean.read_text()
    kept = json.loads(text) if name == "rows.json" else [json.loads(line) for line in text.splitlines()]
    assert kept == [mixed[0], mixed[-1]]
    assert "\\u00fc" in text  # as it was written, not as json would write it now
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [line["row"] for line in lines] == mixed[1:-1]
    assert set(lines[0]) == {"source", "row_id", "field", "expected", "found", "row"}
    assert not check(clean, **options).bad_rows


def test_a_malformed_line_goes_to_quarantine_as_text(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    check(
        tmp_path / "rows.jsonl",
        write_quarantine=tmp_path / "bad.jsonl",
        write_clean=tmp_path / "c.jsonl",
        num_workers=0,
    )
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row"] == "{broken"
    assert (tmp_path / "c.jsonl").read_text() == ""


def test_a_file_without_good_rows_leaves_an_empty_list(write, tmp_path):
    check(write("rows.json", [1]), write_clean=tmp_path / "clean.json", num_workers=0)
    assert json.loads((tmp_path / "clean.json").read_text()) == []


def test_good_rows_of_parquet_are_written_as_parquet(tmp_path, images):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [
        {"image": {"bytes": (images / name).read_bytes(), "path": None}, "caption": name}
        for name in ("a.png", "cut.png", "b.png")
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    clean, bad = tmp_path / "clean.parquet", tmp_path / "bad.jsonl"
    report = check(tmp_path / "rows.parquet", write_clean=clean, write_quarantine=bad, num_workers=0)
    assert [row.source for row in report.bad_rows] == ["rows.parquet row 1"]
    kept = datasets.load_dataset("parquet", data_files=str(clean), split="train")
    assert kept["caption"][:] == ["a.png", "b.png"]
    assert kept[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert json.loads(bad.read_text())["row"]["image"]["bytes"].endswith(" bytes>")


def test_an_interrupted_check_leaves_no_file_behind(write, tmp_path, talk, monkeypatch):
    def stop(record):
        raise KeyboardInterrupt

    monkeypatch.setattr("vwlmm.data.check._as_json", stop)
    out = tmp_path / "out"
    (out).mkdir()
    (out / "clean.json").write_text("as before")
    with pytest.raises(KeyboardInterrupt):
        check(
            write("rows.json", [talk("1", "Q", "A"), 1]),
            write_clean=out / "clean.json",
            write_quarantine=out / "bad.jsonl",
            num_workers=0,
        )
    assert [path.name for path in out.iterdir()] == ["clean.json"]
    assert (out / "clean.json").read_text() == "as before"


def test_the_checked_file_is_never_written_over(write, talk):
    path = write("rows.json", [talk("1", "Q", "A")])
    with pytest.raises(ValueError, match="is the file being checked"):
        check(path, write_clean=path, num_workers=0)
    with pytest.raises(ValueError, match="keep the format"):
        check(path, write_clean=path.with_suffix(".parquet"), num_workers=0)


def test_the_command_prints_each_bad_row_on_a_line_and_exits_1(write, images, mixed, capsys):
    path = write("rows.json", mixed)
    assert run(path, "--images", images, "--workers", "0") == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("rows.json row ")]
    assert len(bad) == len(mixed) - 3  # the row that is only too long needs a model to be found
    assert f"{len(mixed)} rows: 3 good with 1 images, {len(bad)} bad." in lines


def test_the_command_exits_0_on_good_rows_and_prints_json_on_request(write, talk, capsys):
    path = write("rows.json", [talk("1", "Q", "A")])
    assert run(path, "--workers", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_bad"] == 0


def test_the_command_counts_tokens_with_a_models_processor(write, talk, processor, tmp_path, capsys):
    processor.save_pretrained(tmp_path / "model")
    path = write("rows.json", [talk("1", "What? " * 80, "A"), talk("2", "Q", "A" * 90)])
    arguments = (
        path,
        "--model",
        tmp_path / "model",
        "--max-length",
        60,
        "--workers",
        "0",
        "--clean",
        tmp_path / "c.json",
    )
    assert run(*arguments) == 1
    out = capsys.readouterr().out
    assert "field 'length': expected an answer that begins within 60 tokens (`max_length`)" in out
    assert "1 good rows are longer than 60 tokens" in out
    assert [row["id"] for row in json.loads(Path(tmp_path / "c.json").read_text())] == ["2"]
    with pytest.raises(ValueError, match="give --model too"):
        run(path, "--max-length", "60")
