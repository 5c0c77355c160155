"""Every shape of row that is read, and where a reader finds the fault in a broken file."""

import json
from pathlib import Path
from typing import Any

import pytest

from vwlmm.data import json_files, sources
from vwlmm.data.images import load_image
from vwlmm.data.rows import BadRow, Row, read_rows

TEXT = "\nWhat is this?"


def one(path: Path, **options: Any) -> Row:
    (row,) = read_rows(path, **options)
    assert isinstance(row, Row), row
    return row


def shape(row: Row) -> list[tuple[str, str]]:
    """Roles and text, an image as `<image>`."""
    return [
        (message["role"], "".join(part.get("text", "<image>") for part in message["content"]))
        for message in row.messages
    ]


def test_an_image_given_as_a_string_counts_as_one(write, talk):
    row = one(
        write("rows.json", [talk("7", "<image>" + TEXT, "a cat", image="coco/0001.jpg")]), images=Path("pictures")
    )
    assert row.images == [Path("pictures/coco/0001.jpg")]
    assert (row.id, row.source) == ("7", "rows.json row 0")
    assert shape(row) == [("user", "<image>\nWhat is this?"), ("assistant", "a cat")]


@pytest.mark.parametrize(
    "turns",
    [
        ("<image>\nQ", "A", "<image>\nQ2", "A2"),
        ("Compare <image> with <image>.", "A"),
        ("Q", "A", "What?\n<image>\n<image>", "A2"),
        ("Q", "It looks like this: <image> and <image>"),
    ],
)
def test_markers_may_stand_anywhere_and_nothing_is_added_to_the_text(write, talk, turns):
    row = one(write("rows.json", [talk("1", *turns, image=["a.png", "b.png"])]))
    assert [text for _, text in shape(row)] == list(turns)
    assert [path.name for path in row.images] == ["a.png", "b.png"]


@pytest.mark.parametrize("image", [None, []])
def test_a_row_without_images_is_text_only(write, talk, image):
    assert one(write("rows.json", [talk("1", "Q", "A", image=image)])).images == []


def test_without_an_image_folder_paths_start_at_the_file(write, talk, tmp_path):
    row = one(write("rows.json", [talk("1", "<image>", "A", image="a.png")]))
    assert row.images == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    "extra",
    [
        {"messages": [{"role": "user", "content": "<image>\nQ"}], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": "<image>\nQ"}], "image": "a.png"},
        {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nQ"}]}],
            "images": ["a.png"],
        },
        *(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", key: "a.png"}, {"type": "text", "text": "\nQ"}]}
                ]
            }
            for key in ("image", "path", "url")
        ),
    ],
)
def test_messages_rows_take_images_from_the_row_or_from_their_parts(write, extra):
    extra["messages"].append({"role": "assistant", "content": "A"})
    row = one(write("rows.jsonl", [extra]))
    assert shape(row) == [("user", "<image>\nQ"), ("assistant", "A")]
    assert [path.name for path in row.images] == ["a.png"]


@pytest.mark.parametrize("key", ["caption", "text"])
def test_a_pair_becomes_an_image_and_its_caption(write, key):
    row = one(write("rows.jsonl", [{"image": "a.png", key: "a cat"}]))
    assert shape(row) == [("user", "<image>"), ("assistant", "a cat")]


def test_a_json_list_may_hold_messages_rows_too(write):
    row = one(write("rows.json", [{"messages": [{"role": "assistant", "content": "A"}]}]))
    assert row.id == "0"  # its number, where a row has no id


def test_a_malformed_line_is_named_by_the_number_an_editor_shows(tmp_path, talk):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(talk("1", "Q", "A"))
    path.write_text(f"{good}\n\n{{'id': 1}}\n{good}\n")
    first, bad, last = read_rows(path)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(
        "rows.jsonl line 3 (id 1), field 'line': expected one JSON object, found malformed JSON at"
    )
    assert last.source == "rows.jsonl line 4"


def test_a_broken_document_is_refused_with_line_and_column(tmp_path, talk):
    path = tmp_path / "rows.json"
    text = json.dumps([talk("1", "Q", "A"), talk("2", "Q", "A")], indent=1)
    path.write_text(text[:-20])
    lines = text[:-20].split("\n")
    with pytest.raises(ValueError, match="broken JSON at line") as raised:
        list(read_rows(path))
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text[:-20])
    assert f"line {expected.value.lineno}, column {expected.value.colno}:" in str(raised.value)
    assert expected.value.lineno <= len(lines)


@pytest.mark.parametrize("text", ["[1, 2] 3", "[1 2]", "[1,]", "[", "[{]", '[{"a": 1}, "b'])
def test_the_scanner_refuses_what_json_refuses(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1, column"):
        list(json_files.scan_json_array(path))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_the_scanner_reads_what_json_reads_whatever_the_chunk(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    values = [{"a": 'ü€\n"]},{[', "b": [1, 2.5e3, None]}, 123, [], "x" * 50, {}, True, -0.25]
    path = tmp_path / "rows.json"
    path.write_text("\ufeff \n" + json.dumps(values, ensure_ascii=False, indent=3) + " \n", encoding="utf-8")
    elements = list(json_files.scan_json_array(path))
    assert [element.value for element in elements] == values
    data = path.read_bytes()
    assert [json.loads(data[element.begin : element.end]) for element in elements] == values


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_found_by_number_are_the_rows_read_in_order(write, talk, name):
    path = write(name, [talk(str(number), f"ü {number}", "A") for number in range(5)])
    records = sources.open_records(path)
    assert [records[number] for number in range(len(records))] == list(records)


def test_the_index_holds_three_numbers_a_row_and_no_text(write, talk):
    import pickle

    records = sources.open_records(write("rows.json", [talk("1", "Q" * 1000, "A")] * 50))
    assert len(records) == 50
    assert len(pickle.dumps(records)) < 50 * 3 * 8 + 2000


@pytest.mark.parametrize("name", ["none.json", "none.jsonl", "none.parquet"])
def test_a_file_that_is_not_there_is_said_so(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        list(read_rows(tmp_path / name))


def test_a_file_that_holds_no_rows_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "rows.json").write_text('{\n "id": 1\n}')
    with pytest.raises(ValueError, match=r"expected \.json, \.jsonl"):
        list(read_rows(tmp_path / "rows.csv"))
    with pytest.raises(ValueError, match="expected a JSON list of rows"):
        list(read_rows(tmp_path / "rows.json"))


def test_lines_under_the_name_json_are_read_as_lines(tmp_path, talk):
    (tmp_path / "rows.json").write_text(json.dumps(talk("1", "Q", "A")) + "\n" + json.dumps(talk("2", "Q", "A")))
    assert [row.id for row in read_rows(tmp_path / "rows.json")] == ["1", "2"]


@pytest.fixture
def parquet(tmp_path: Path, images: Path) -> Path:
    """Two rows with embedded images, the second without its own id."""
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    embedded = [{"bytes": (images / f"{letter}.png").read_bytes(), "path": f"{letter}.png"} for letter in "ab"]
    rows = [
        {"id": "one", "images": embedded, "messages": _messages("<image><image>Q")},
        {"id": None, "images": [], "messages": _messages("Q")},
    ]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "splits")
    return tmp_path / "rows.parquet"


def _messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.parquet", "saved", "splits"])
def test_embedded_images_stay_encoded_bytes(parquet, images, name, streaming):
    split = "test" if name == "splits" else None
    first, second = read_rows(parquet.parent / name, split=split, streaming=streaming)
    assert isinstance(first, Row)
    assert [image["bytes"] for image in first.images] == [(images / f"{letter}.png").read_bytes() for letter in "ab"]
    assert shape(first)[0] == ("user", "<image><image>Q")
    assert (first.id, first.source.split("/")[-1]) == ("one", f"{name} row 0")
    assert isinstance(second, Row)
    assert (second.id, second.images) == ("1", [])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_pictures_and_captions_is_read_through_datasets(images, tmp_path, streaming):
    folder = tmp_path / "captions"
    folder.mkdir()
    for letter in "ab":
        (images / f"{letter}.png").rename(folder / f"{letter}.png")
    lines = [{"file_name": f"{letter}.png", "text": f"picture {letter}"} for letter in "ab"]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    rows = list(read_rows(folder, streaming=streaming))
    assert [shape(row)[1] for row in rows] == [("assistant", "picture a"), ("assistant", "picture b")]
    assert {load_image(row.images[0]).getpixel((0, 0)) for row in rows} == {(255, 0, 0), (0, 128, 0)}


def test_a_split_that_is_not_there_names_those_that_are(parquet):
    with pytest.raises(ValueError, match="expected a split named 'train', got test"):
        list(read_rows(parquet.parent / "splits"))
