"""Captions of COCO pictures (Chen et al. 2015), on Karpathy's test split or on val2014.

`vwlmm score coco_captions --annotations dataset_coco.json --answers answers.jsonl` (or `captions_val2014.json`)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .benchmark import Files, Question
from .captioning import OPTIONS, Captioning, only_file, read_coco_style
from .official_files import Record, find_files, list_records, read_json

_WHAT = "COCO's captions"


class COCOCaptions(Captioning):
    """Reads Karpathy's `dataset_coco.json` (the part `split`) or the official `captions_val2014.json` (all of it).

    Ids are COCO's picture numbers.
    """

    name = "coco_captions"
    title = "COCO captions"
    options = {**OPTIONS, "split": "test"}

    def files(self, data: Path) -> Files:
        """Karpathy's file and the folder that holds val2014."""
        annotations, pictures = find_files(data, self.name, "dataset_coco.json", "val2014")
        return Files((annotations,), (), pictures.parent)

    def read(self, files: Files) -> list[Question]:
        """One question a picture, in the file's order."""
        path = only_file(files, self.name, "dataset_coco.json or captions_val2014.json")
        self.images = files.images
        document = read_json(path)
        if isinstance(document, dict) and "annotations" in document:
            found = read_coco_style(path, document, _WHAT)
            return [self._question(r, r.value["id"], self._place(r.value["file_name"]), c) for r, c in found]
        pictures = karpathy_pictures(path, document, "coco", self.settings["split"])
        questions: dict[int, Question] = {}
        for record in pictures:
            number = record.get("cocoid", int)
            if number in questions:
                raise record.error("cocoid", f"expected each picture once, found {number} again")
            image = f"{record.get('filepath', str)}/{record.value['filename']}"
            questions[number] = self._question(record, number, image, sentences_of(record))
        return list(questions.values())

    def _question(self, record: Record, number: int, image: str, references: list[str]) -> Question:
        return Question(
            id=str(number),
            messages=self.messages(),
            images=(image,),
            record={"image_id": number, "references": references},
            where=record.where,
        )

    def _place(self, name: str) -> str:
        """val2014/NAME when the pictures lie in COCO's own folders, else NAME."""
        folder = name.split("_")[1] if name.count("_") >= 2 else ""
        return f"{folder}/{name}" if self.images and folder and (self.images / folder / name).is_file() else name


def karpathy_pictures(path: Path, document: Any, dataset: str, split: str) -> Iterator[Record]:
    """The pictures of one part of Karpathy's file for that data set.

    Raises:
        ValueError: the file is for another set, or has no such part.
    """
    records = list(list_records(path, document, "images", "Karpathy's splits"))
    found = Record(path, document).get("dataset", str)
    if found != dataset:
        raise Record(path, document).error(
            "dataset", f"expected {dataset!r}, found {found!r}: it is another set's file"
        )
    parts = {record.get("split", str) for record in records}
    if split not in parts:
        raise records[0].error("split", f"expected pictures of part {split!r}, found only {', '.join(sorted(parts))}")
    for record in records:
        if record.value["split"] == split:
            record.get("filename", str)
            yield record


def sentences_of(record: Record) -> list[str]:
    """The captions of one picture of Karpathy's file, as they were written."""
    if not record.get("sentences", list):
        raise record.error("sentences", "expected at least one caption, found an empty list")
    return [record.within("sentences", i).get("raw", str) for i in range(len(record.value["sentences"]))]
