"""Rows as training examples: by number or streamed, in worker processes, with bad rows stopped at or listed."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vwlmm.data import dataset as dataset_module
from vwlmm.data.bad_row import BadRow
from vwlmm.data.collator import ALL_BAD
from vwlmm.data.dataset import Collator, DataConfig, load_datasets
from vwlmm.sampler import lengths_and_modalities


@pytest.fixture
def good_rows(talk):
    rows = [
        talk(str(n), "<image>\nWhat is this?" + "?" * n, f"A cat {n}", image=f"{'abcd'[n % 4]}.png") for n in range(9)
    ]
    return [*rows, talk("9", "No image here.", "No.")]


def equal(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_example_holds_ids_labels_and_one_picture_an_image(write, images, processor, talk):
    path = write("rows.json", [talk("1", "<image><image>Q", "A", image=["a.png", "b.png"]), talk("2", "Q", "A")])
    train, validation = load_datasets(DataConfig(path=str(path), images=str(images)), processor, seed=0)
    first, second = train[0], train[1]
    assert validation is None
    assert first["pixel_values"].shape == (2, 3, 28, 28)
    from PIL import Image

    expected = processor.image_processor(
        [Image.open(images / "a.png"), Image.open(images / "b.png")], return_tensors="pt"
    )
    assert torch.equal(first["pixel_values"], expected["pixel_values"])
    assert first["input_ids"].dtype == first["labels"].dtype == torch.int64
    assert "pixel_values" not in second


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_streamed_rows_are_the_rows_by_number(write, images, processor, good_rows, name):
    path = write(name, good_rows)
    train, _ = load_datasets(DataConfig(path=str(path), images=str(images)), processor, seed=0)
    stream, _ = load_datasets(DataConfig(path=str(path), images=str(images), streaming=True), processor, seed=0)
    streamed = list(stream)
    assert len(streamed) == len(train) == 10
    assert all(equal(streamed[number], train[number]) for number in range(10))


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_rows_with_embedded_pictures_are_the_same_as_files(write, images, tmp_path, processor, talk, streaming):
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    rows = [talk(str(number), "<image>\nQ", "A", image=f"{'abcd'[number % 4]}.png") for number in range(20)]
    files, _ = load_datasets(DataConfig(path=str(write("rows.json", rows)), images=str(images)), processor, seed=0)
    embedded = [row | {"image": {"bytes": (images / row["image"]).read_bytes(), "path": None}} for row in rows]
    datasets.Dataset.from_list(embedded, features=features).to_parquet(tmp_path / "rows.parquet")
    config = DataConfig(path=str(tmp_path / "rows.parquet"), streaming=streaming)
    parquet, _ = load_datasets(config, processor, seed=0)
    examples = list(parquet) if streaming else [parquet[number] for number in range(20)]
    assert all(equal(example, files[number]) for number, example in enumerate(examples))
    if streaming:
        loader = DataLoader(parquet, batch_size=None, num_workers=2)
        assert sorted(str(example) for example in loader) == sorted(str(example) for example in examples)


def test_pictures_are_opened_in_the_workers_and_only_paths_travel_there(
    write, images, processor, good_rows, monkeypatch, tmp_path
):
    train, _ = load_datasets(DataConfig(path=str(write("rows.json", good_rows)), images=str(images)), processor, seed=0)
    load = dataset_module.load_image

    def load_and_note(source, **options):
        assert isinstance(source, Path)
        with (tmp_path / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return load(source, **options)

    monkeypatch.setattr(dataset_module, "load_image", load_and_note)
    collate = Collator(processor)
    batches = list(DataLoader(train, batch_size=2, num_workers=2, collate_fn=collate))
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 9
    assert len(set(pids)) == 2
    assert str(os.getpid()) not in pids
    plain = list(DataLoader(train, batch_size=2, collate_fn=collate))
    assert all(equal(left, right) for left, right in zip(batches, plain, strict=True))


def test_a_dataset_sent_to_a_worker_does_not_grow_with_its_text_or_pictures(write, images, processor, talk):
    def size(text: str) -> int:
        path = write("rows.json", [talk("1", "<image>" + text, "A", image="whole.png")] * 50)
        train, _ = load_datasets(DataConfig(path=str(path), images=str(images)), processor, seed=0)
        return len(pickle.dumps((train.records, train.rows)))

    assert size("Q" * 5000) == size("Q") < 5000


@pytest.mark.parametrize("part", [0.3, 3])
def test_a_part_held_out_is_the_same_for_a_seed_and_disjoint_from_training(write, images, processor, good_rows, part):
    config = DataConfig(path=str(write("rows.json", good_rows)), images=str(images), validation_split=part)
    train, held_out = load_datasets(config, processor, seed=1)
    assert len(held_out) == 3
    assert sorted([*train.rows, *held_out.rows]) == list(range(10))
    assert np.array_equal(load_datasets(config, processor, seed=1)[1].rows, held_out.rows)
    assert any(
        not np.array_equal(load_datasets(config, processor, seed=seed)[1].rows, held_out.rows) for seed in (2, 3)
    )


def test_validation_may_be_a_file_of_its_own_and_max_rows_counts_for_training(write, images, processor, good_rows):
    other = write("other.json", good_rows[:4])
    path = str(write("rows.json", good_rows))
    config = DataConfig(path=path, images=str(images), validation_path=str(other), max_rows=2)
    train, validation = load_datasets(config, processor, seed=0)
    assert (len(train), len(validation)) == (2, 4)
    stream, _ = load_datasets(DataConfig(path=path, images=str(images), streaming=True, max_rows=2), processor, seed=0)
    assert len(list(stream)) == 2


def test_the_recipes_chat_template_wins_over_the_processors(write, images, processor, good_rows):
    path = str(write("rows.json", good_rows))
    train, _ = load_datasets(DataConfig(path=path, images=str(images), chat_template="vicuna_v1"), processor, seed=0)
    assert "ASSISTANT: A cat 0</s>" in processor.tokenizer.decode(train[0]["input_ids"])


def test_lengths_are_known_without_opening_a_picture(write, images, processor, good_rows, monkeypatch):
    train, _ = load_datasets(DataConfig(path=str(write("rows.json", good_rows)), images=str(images)), processor, seed=0)
    expected = [len(train[number]["input_ids"]) for number in range(len(train))]
    monkeypatch.setattr(dataset_module, "load_image", lambda *_, **__: pytest.fail("opened"))
    assert lengths_and_modalities(train)[0] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "data.path"),
        ({"on_bad_row": "skip"}, "stop or quarantine: got 'skip'"),
        ({"max_length": 0}, "max_length is a whole number of at least 1: got 0"),
        ({"max_rows": 2.5}, "max_rows"),
        ({"num_workers": -1}, "num_workers"),
        ({"validation_split": 1.5}, "For rows give 1"),
        ({"validation_split": -1}, "at least 0"),
        ({"validation_split": 0.1, "validation_path": "b.json"}, "give one"),
        ({"validation_split": 0.1, "streaming": True}, "streaming does not"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_opened(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"path": "nowhere.json", **options})


def test_a_split_that_leaves_nothing_to_train_on_is_refused(write, processor, talk):
    path = str(write("rows.json", [talk("1", "Q", "A")]))
    with pytest.raises(ValueError, match="none would be left"):
        load_datasets(DataConfig(path=path, validation_split=1), processor, seed=0)
    with pytest.raises(ValueError, match="holds no rows"):
        load_datasets(DataConfig(path=str(write("empty.json", []))), processor, seed=0)


def test_a_batch_is_padded_on_the_right_and_holds_the_pictures_of_all_rows(write, images, processor, good_rows):
    train, _ = load_datasets(DataConfig(path=str(write("rows.json", good_rows)), images=str(images)), processor, seed=0)
    rows = [train[9], train[0], train[5]]
    batch = Collator(processor, pad_to_multiple_of=8)(rows)
    length = batch["input_ids"].shape[1]
    assert length % 8 == 0
    assert length - max(len(row["input_ids"]) for row in rows) < 8
    assert torch.equal(batch["pixel_values"], torch.cat([rows[1]["pixel_values"], rows[2]["pixel_values"]]))
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        assert torch.equal(batch["input_ids"][number, :size], row["input_ids"])
        assert torch.equal(batch["labels"][number, :size], row["labels"])
        assert batch["attention_mask"][number].tolist() == [1] * size + [0] * (length - size)
        assert (batch["labels"][number, size:] == -100).all()
        assert (batch["input_ids"][number, size:] == processor.tokenizer.pad_token_id).all()
    assert "pixel_values" not in Collator(processor)([train[9]])


# One worker and not two: torch 2.13 waits 5 seconds for each worker when iterating ends in an error.
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_row_stops_training_with_its_message(write, images, processor, good_rows, talk, num_workers):
    rows = [*good_rows, talk("77", "<image>", "A", image="cut.png")]
    train, _ = load_datasets(DataConfig(path=str(write("rows.json", rows)), images=str(images)), processor, seed=0)
    with pytest.raises(BadRow) as raised:
        list(DataLoader(train, batch_size=2, num_workers=num_workers, collate_fn=Collator(processor)))
    assert str(raised.value).startswith(
        "rows.json row 10 (id 77), field 'image': expected a readable image, found a trunc"
    )
    with pytest.raises(BadRow) as here:
        train[10]
    assert str(raised.value) == str(here.value)


def test_with_quarantine_training_goes_on_and_each_bad_row_is_listed_once(
    write, images, processor, good_rows, bad_rows, tmp_path, caplog
):
    mixed = [row for pair in zip(bad_rows, good_rows * 2, strict=False) for row in pair]
    path = str(write("rows.json", mixed))
    config = DataConfig(path=path, images=str(images), on_bad_row="quarantine", max_length=100)
    train, _ = load_datasets(config, processor, seed=0)
    collate = Collator(processor, quarantine=tmp_path / "out")
    for num_workers in (2, 0):  # two epochs
        batches = list(DataLoader(train, batch_size=4, num_workers=num_workers, collate_fn=collate))
        assert sum(len(batch["input_ids"]) for batch in batches) == len(mixed) - len(bad_rows)
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == len(bad_rows)
    assert {line["source"] for line in lines} == {f"rows.json row {2 * number}" for number in range(len(bad_rows))}
    assert set(lines[0]) == {"source", "row_id", "field", "expected", "found"}
    lengths, _ = lengths_and_modalities(train)
    assert lengths[0] > 1  # a missing picture is not seen by counting tokens
    assert lengths[12] == 1  # a wrong number of images is


def test_each_row_left_out_is_logged(write, images, processor, talk, tmp_path, caplog):
    rows = [talk("1", "Q", "A"), talk("2", "<image>", "A")]
    config = DataConfig(path=str(write("rows.json", rows)), images=str(images), on_bad_row="quarantine")
    train, _ = load_datasets(config, processor, seed=0)
    with caplog.at_level(logging.WARNING):
        Collator(processor, quarantine=tmp_path)([train[0], train[1]])
    assert "left out: rows.json row 1 (id 2), field 'image'" in caplog.text


def test_a_batch_of_bad_rows_alone_scores_nothing(processor, tmp_path):
    bad = {"bad_row": BadRow("a.json row 1", "1", "image", "x", "y")}
    batch = Collator(processor, quarantine=tmp_path)([bad])
    assert batch["input_ids"].shape == (1, 1)
    assert batch["labels"].tolist() == [[-100]]


def test_nothing_but_bad_rows_stops_all_the_same(processor, tmp_path):
    collate = Collator(processor, quarantine=tmp_path)
    bad = [{"bad_row": BadRow("a.json row 1", str(number), "image", "x", "y")} for number in range(ALL_BAD)]
    with pytest.raises(BadRow, match="are all bad"):
        collate(bad)


def test_a_marker_without_a_quarantine_folder_is_raised(processor):
    with pytest.raises(BadRow, match="row 1"):
        Collator(processor)([{"bad_row": BadRow("a.json row 1", "1", "image", "x", "y")}])


def test_rows_that_are_cut_are_spoken_of_once(write, processor, talk, caplog):
    path = write("rows.json", [talk("1", "Q", "A" * 90), talk("2", "Q", "A" * 90)])
    train, _ = load_datasets(DataConfig(path=str(path), max_length=60), processor, seed=0)
    with caplog.at_level(logging.WARNING):
        assert [len(train[number]["input_ids"]) for number in range(2)] == [60, 60]
    assert caplog.text.count("is longer than max_length=60 tokens") == 1
