"""Pictures with captions: rows of any source as pairs, opened and tokenised in the worker that asks for them.

pairs = PairDataset(PairDataConfig(path="captions.jsonl"), processor); batch = PairCollator(processor)([pairs[0], pairs[1]])
"""

import csv
import glob
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vwlmm.data.bad_row import BadRow
from vwlmm.data.images import ImageProblem, load_image
from vwlmm.data.pairs_config import PairDataConfig
from vwlmm.data.records import Record, Records
from vwlmm.data.sources import open_records
from vwlmm.data.tar_files import TarRecords

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One picture, unopened, and its caption."""

    source: str
    row_id: str
    image: Path | bytes | dict[str, Any]
    caption: str


class Pairs:
    """The pairs of a source, by number.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken file or shard, or no rows.
    """

    def __init__(self, config: PairDataConfig, path: str | None = None) -> None:
        self.config = config
        self.records = open_pairs(path or config.path, config)
        self.folder = Path(config.images) if config.images else self.records.folder
        self.length = min(len(self.records), config.max_rows or len(self.records))
        if not self.length:
            raise ValueError(f"{path or config.path} holds no rows: expected at least one picture with a caption.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Pair:
        """One pair.

        Raises:
            BadRow: no caption in words, or no picture.
        """
        record = self.records[index]
        if isinstance(record.value, BadRow):
            raise record.value
        row = record.value
        if not isinstance(row, dict):
            raise BadRow(record.source, str(index), "row", "an object with image and caption", type(row).__name__)
        row_id = str(row.get("id", row.get("__key__", index)))
        return Pair(record.source, row_id, self._image(record, row_id), self._caption(record, row_id))

    def open(self, pair: Pair) -> Any:
        """The picture as 8-bit RGB.

        Raises:
            BadRow: it cannot be opened.
        """
        try:
            return load_image(pair.image, max_pixels=self.config.max_pixels)
        except ImageProblem as problem:
            field = self.config.image_column
            raise BadRow(pair.source, pair.row_id, field, problem.expected, problem.found) from problem

    def _caption(self, record: Record, row_id: str) -> str:
        caption = record.value.get(self.config.caption_column)
        if isinstance(caption, str) and caption.strip():
            return caption.strip()
        found = "nothing" if caption is None else "an empty caption" if caption == "" else f"{caption!r:.60}"
        kind = "" if caption is None or isinstance(caption, str) else f"{type(caption).__name__} "
        raise BadRow(record.source, row_id, self.config.caption_column, "a caption in words", kind + found)

    def _image(self, record: Record, row_id: str) -> Path | bytes | dict[str, Any]:
        image = record.value.get(self.config.image_column)
        if isinstance(image, bytes | dict):
            return image
        if isinstance(image, str) and image:
            return self.folder / image
        found = "nothing" if image in (None, "") else f"{type(image).__name__} {image!r:.60}"
        raise BadRow(record.source, row_id, self.config.image_column, "a path or a picture's bytes", found)


def open_pairs(path: str, config: PairDataConfig) -> Records:
    """The reader for a source: webdataset tars (one, or all that a pattern matches), CSV, or what `open_records` knows."""
    files = [Path(name) for name in sorted(glob.glob(path))] if glob.has_magic(path) else [Path(path)]
    if not files:
        raise FileNotFoundError(f"data.path {path} matches no file.")
    kinds = {file.suffix for file in files}
    if kinds == {".tar"}:
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"Shards were expected at {', '.join(missing)}: there is no such file.")
        return TarRecords(files, config.image_column, config.caption_column)
    if len(files) > 1:
        raise ValueError(
            f"data.path {path} matches {len(files)} files, which only .tar shards may: got {sorted(kinds)}."
        )
    if kinds == {".csv"}:
        return CsvRecords(files[0])
    return open_records(str(files[0]), split=config.split)


class CsvRecords(Records):
    """A CSV file with a header line; held in memory, as captions are small."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"Data were expected at {path}: there is no such file.")
        self.path, self.folder = path, path.parent
        with path.open(newline="", encoding="utf-8-sig") as file:
            self.rows = list(csv.DictReader(file))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.path.name} row {index}", index, self.rows[index])


class PairDataset(Dataset):
    """Pairs as tensors: `pixel_values` `[3, height, width]` and `input_ids` `[tokens]`; a bad row as `bad_row`.

    Args:
        pairs: the source.
        processor: image processor and tokenizer.
        augment: a picture → another picture, for training.
    """

    def __init__(self, pairs: Pairs, processor: Any, augment: Callable[[Any], Any] | None = None) -> None:
        self.pairs = pairs
        self.processor = processor
        self.augment = augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            pair = self.pairs[index]
            image = self.pairs.open(pair)
        except BadRow as bad:
            if self.pairs.config.on_bad_row == "stop":
                raise
            return {"bad_row": bad}
        if self.augment is not None:
            image = self.augment(image)
        pixels = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        ids = self.processor.tokenizer(pair.caption, truncation=True, max_length=self.pairs.config.max_length)
        return {"pixel_values": pixels, "input_ids": torch.tensor(ids["input_ids"])}


class PairCollator:
    """Pairs → one batch, captions padded on the right; bad rows are left out and listed, never replaced.

    Args:
        processor: its tokenizer's padding token fills up.
        quarantine: folder whose `quarantine.jsonl` lists bad rows; without it a bad row is raised.
    """

    def __init__(self, processor: Any, *, quarantine: str | Path | None = None) -> None:
        self.pad_id = processor.tokenizer.pad_token_id
        self.file = None if quarantine is None else Path(quarantine) / "quarantine.jsonl"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`attention_mask` `[pairs, tokens]` with `pixel_values` and `input_ids`, or with the towers' features instead.

        Raises:
            BadRow: a bad row without a quarantine folder, or a batch of nothing else.
        """
        good = [example for example in examples if "bad_row" not in example]
        for example in examples:
            if "bad_row" in example:
                self._list(example["bad_row"])
        if not good:
            raise BadRow(f"A batch of {len(examples)} pairs holds none that can be used: {examples[0]['bad_row']}")
        texts = "text_features" if "text_features" in good[0] else "input_ids"
        images = "vision_features" if "vision_features" in good[0] else "pixel_values"
        rows = [example[texts] for example in good]
        return {
            images: torch.stack([example[images] for example in good]),
            texts: pad_sequence(rows, batch_first=True, padding_value=0 if texts == "text_features" else self.pad_id),
            "attention_mask": pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True),
        }

    def _list(self, bad: BadRow) -> None:
        if self.file is None:
            raise bad
        line = json.dumps(bad.to_dict(), ensure_ascii=False) + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # A row comes again each epoch; one line is enough.
        if self.file.exists() and line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            return
        logger.warning("left out: %s", bad.summary)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line)


def set_image_size(image_processor: Any, config: PairDataConfig) -> None:
    """Makes the image processor read pictures at `data.image_size`, without a crop; None leaves it as it is."""
    if config.image_size is None:
        return
    side = {"height": config.image_size, "width": config.image_size}
    image_processor.size = side
    if getattr(image_processor, "do_center_crop", False):
        image_processor.do_center_crop = False


def inspect_pairs(config: PairDataConfig, processor: Any, *, num_rows: int = 3) -> str:
    """The first pairs as the model reads them: picture, caption in tokens, and what is wrong with a bad one."""
    pairs = Pairs(config)
    set_image_size(processor.image_processor, config)
    lines = [f"{len(pairs):,} pairs in {config.path}"]
    for index in range(min(num_rows, len(pairs))):
        try:
            pair = pairs[index]
            image = pairs.open(pair)
        except BadRow as bad:
            lines.append(bad.summary)
            continue
        pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        ids = processor.tokenizer(pair.caption, truncation=True, max_length=config.max_length)["input_ids"]
        lines.append(
            f"{pair.source} (id {pair.row_id}): picture {image.width} × {image.height}, read as {pixels.shape[-1]} × "
            f"{pixels.shape[-2]}; {len(ids)} tokens: {processor.tokenizer.decode(ids)}"
        )
    return "\n".join(lines)
