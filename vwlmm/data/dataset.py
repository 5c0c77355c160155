"""Rows as training examples: text is encoded and images are opened in the worker that asks for the row.

train, validation = load_datasets(DataConfig(path="train.json", images="images"), processor, seed=0)
loader = DataLoader(train, batch_size=8, collate_fn=Collator(processor), num_workers=2)
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from vwlmm.data.collator import Collator
from vwlmm.data.config import DataConfig
from vwlmm.data.encode import EncodedRow, encode_row, num_image_tokens, own_template
from vwlmm.data.images import ImageProblem, load_image
from vwlmm.data.records import Record, Records
from vwlmm.data.rows import BadRow, Row, bad_image, image_folder, parse_record
from vwlmm.data.sources import open_records
from vwlmm.data.templates import chat_template_for, validate_template

__all__ = ["Collator", "DataConfig", "Example", "RowDataset", "RowEncoder", "StreamedRowDataset", "load_datasets"]

logger = logging.getLogger(__name__)

Example = dict[str, Any]  # input_ids [seq], labels [seq], pixel_values [images, 3, height, width]; or bad_row


class RowEncoder:
    """Turns a record into an example. `on_bad_row` says whether a bad row is raised or handed on as a marker."""

    def __init__(self, config: DataConfig, processor: Any, images: Path) -> None:
        self.config = config
        self.processor = processor
        self.images = images
        self.chat_template = _template(config, processor)
        self.said_truncated = False

    def encode(self, record: Record) -> EncodedRow:
        """Ids and labels, images unopened.

        Raises:
            BadRow: the row cannot be learned from.
        """
        row = parse_record(record, self.images)
        if isinstance(row, BadRow):
            raise row
        return encode_row(row, self.processor, max_length=self.config.max_length, chat_template=self.chat_template)

    def example(self, record: Record) -> Example:
        """Tensors of one row, or {"bad_row": BadRow}, which the Collator leaves out and lists.

        Raises:
            BadRow: the row cannot be learned from, and on_bad_row is `stop`.
        """
        try:
            encoded = self.encode(record)
            if encoded.truncated and not self.said_truncated:
                logger.warning(
                    "%s is longer than max_length=%d tokens and is cut there, and so are others like it; "
                    "`vwlmm data check --model … --max-length …` counts them.",
                    record.source,
                    self.config.max_length,
                )
                self.said_truncated = True
            example = {"input_ids": torch.tensor(encoded.input_ids), "labels": torch.tensor(encoded.labels)}
            if encoded.images:
                example["pixel_values"] = self._pixels(encoded)
        except BadRow as bad:
            if self.config.on_bad_row == "stop":
                raise
            return {"bad_row": bad}
        return example

    def _pixels(self, encoded: EncodedRow) -> torch.Tensor:
        return torch.cat(
            [
                self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
                for image in open_images(encoded.row, encoded.images, self.config.max_pixels)
            ]
        )  # [images, 3, height, width]


def open_images(row: Row, images: list[Any], max_pixels: int) -> Iterator[Any]:
    """The row's pictures as RGB, one after the other.

    Raises:
        BadRow: one that cannot be opened.
    """
    for number, source in enumerate(images):
        try:
            yield load_image(source, max_pixels=max_pixels)
        except ImageProblem as problem:
            raise bad_image(row, number, problem) from problem


class RowDataset(Dataset):
    """Rows by number. It holds an index (three numbers a row) or an Arrow table, but no text and no pixels."""

    def __init__(self, records: Records, encoder: RowEncoder, rows: np.ndarray | None = None) -> None:
        self.records = records
        self.encoder = encoder
        self.rows = np.arange(len(records)) if rows is None else rows  # row numbers in `records`

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.encoder.example(self.records[int(self.rows[index])])

    def raw_records(self) -> Iterator[Record]:
        """The rows as they lie in the file, in order: for counting their words without opening a picture."""
        return (self.records[int(row)] for row in self.rows)

    def encoded(self, index: int) -> EncodedRow:
        """One row's ids and labels with its images unopened: for inspection.

        Raises:
            BadRow: the row cannot be learned from.
        """
        return self.encoder.encode(self.records[int(self.rows[index])])


class StreamedRowDataset(IterableDataset):
    """Rows of one source in order. With worker processes each reads the whole stream and encodes every n-th row.

    A training run shares them out in batches instead: `vwlmm.sampler.StreamedBatches`.
    """

    def __init__(self, records: Records, encoder: RowEncoder, max_rows: int | None = None) -> None:
        self.records = records
        self.encoder = encoder
        self.max_rows = max_rows

    def __iter__(self) -> Iterator[Example]:
        for record in self._share():
            yield self.encoder.example(record)

    def raw_records(self) -> Iterator[Record]:
        """All rows as they lie in the source, in order, no picture opened."""
        for record in self.records:
            if self.max_rows is not None and record.index >= self.max_rows:
                return
            yield record

    def encoded_rows(self) -> Iterator[EncodedRow]:
        """Ids and labels row by row with images unopened: for inspection.

        Raises:
            BadRow: a row cannot be learned from.
        """
        for record in self._share():
            yield self.encoder.encode(record)

    def _share(self) -> Iterator[Record]:
        worker = get_worker_info()
        for record in self.raw_records():
            if worker is None or record.index % worker.num_workers == worker.id:
                yield record


def load_datasets(
    config: DataConfig, processor: Any, *, seed: int
) -> tuple[RowDataset | StreamedRowDataset, RowDataset | StreamedRowDataset | None]:
    """Training and validation rows of a recipe; nothing is decoded yet.

    Args:
        seed: decides which rows `validation_split` takes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken JSON document, no rows, a chat template that marks nothing to learn, or an image
            processor whose pictures differ in size.
    """
    num_image_tokens(processor)  # an unfit processor stops here and not in a worker
    train = _load(config, processor)
    if config.validation_path:
        split = "validation" if config.validation_path == config.path else None
        return train, _load(replace(config, path=config.validation_path, split=split, max_rows=None), processor)
    if not config.validation_split or isinstance(train, StreamedRowDataset):
        return train, None
    part = config.validation_split
    count = part if isinstance(part, int) else max(1, round(part * len(train)))
    if count >= len(train):
        raise ValueError(f"data.validation_split takes {count} of {len(train)} rows: none would be left to train on.")
    order = np.random.default_rng(seed).permutation(train.rows)
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    return RowDataset(train.records, train.encoder, rest), RowDataset(train.records, train.encoder, held_out)


def _load(config: DataConfig, processor: Any) -> RowDataset | StreamedRowDataset:
    records = open_records(config.path, split=config.split, streaming=config.streaming)
    encoder = RowEncoder(config, processor, image_folder(records, config.images))
    if config.streaming:
        return StreamedRowDataset(records, encoder, config.max_rows)
    if not len(records):
        raise ValueError(f"{config.path} holds no rows: expected at least one.")
    return RowDataset(records, encoder, np.arange(len(records))[: config.max_rows])


def _template(config: DataConfig, processor: Any) -> str | None:
    """The recipe's chat template, or None for the processor's own; either is checked."""
    if config.chat_template is not None:
        return chat_template_for(config.chat_template, processor.tokenizer)
    validate_template(processor.tokenizer, own_template(processor))
    return None
