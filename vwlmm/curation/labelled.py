"""Pictures with a label in words, unopened: for prototypes and for zero-shot classification."""

from pathlib import Path

from vwlmm.data.bad_row import BadRow
from vwlmm.data.images import ImageSource
from vwlmm.data.sources import open_records

Labelled = tuple[str, ImageSource]  # what it is, picture


def read_labelled(file: Path, label_field: str, images: Path | None) -> list[Labelled]:
    """The labels and pictures of a file of labelled pictures; no picture is opened.

    Raises:
        BadRow: a row without a picture, or whose label is not text.
    """
    records = open_records(file)
    folder = records.folder if images is None else images
    rows: list[Labelled] = []
    for record in records:
        if isinstance(record.value, BadRow):
            raise record.value
        value = record.value if isinstance(record.value, dict) else {}
        label, image = value.get(label_field), value.get("image")
        if not isinstance(label, str) or not label:
            raise BadRow(record.source, str(record.index), label_field, "the concept's name", repr(label))
        if not isinstance(image, (str, bytes, dict)) or not image:
            raise BadRow(record.source, str(record.index), "image", "a picture", repr(image))
        rows.append((label, folder / image if isinstance(image, str) else image))
    if not rows:
        raise ValueError(f"{file} holds no labelled picture.")
    return rows
