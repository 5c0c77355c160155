"""Finds every bad row of a data file before a training run does.

vwlmm data check train.json --images images --clean train.clean.json --quarantine train.bad.jsonl
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vwlmm.data.config import DataConfig
from vwlmm.data.dataset import RowEncoder, open_images
from vwlmm.data.images import MAX_PIXELS
from vwlmm.data.records import Record, Records, describe_bytes
from vwlmm.data.rows import BadRow, image_folder, parse_record
from vwlmm.data.sources import open_records
from vwlmm.data.written import atomic_file, clean_writer

NO_LIMIT = 1 << 60  # tokens: no maximum length


@dataclass
class CheckReport:
    """What a check found."""

    num_rows: int = 0
    num_images: int = 0
    num_truncated: int = 0  # good rows longer than max_length, which training cuts; known only with a processor
    bad_rows: list[BadRow] = field(default_factory=list)

    @property
    def by_field(self) -> dict[str, int]:
        """How many bad rows each kind of field has; turn and image numbers are left out of the name."""
        names = ("".join(part.split("]")[-1] for part in bad.field.split("[")) for bad in self.bad_rows)
        return dict(Counter(names).most_common())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "num_rows": self.num_rows,
            "num_images": self.num_images,
            "num_truncated": self.num_truncated,
            "num_bad": len(self.bad_rows),
            "by_field": self.by_field,
            "bad_rows": [bad.to_dict() for bad in self.bad_rows],
        }


def check(
    path: str | Path,
    *,
    images: str | Path | None = None,
    processor: Any = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    max_pixels: int = MAX_PIXELS,
    split: str | None = None,
    write_clean: str | Path | None = None,
    write_quarantine: str | Path | None = None,
    num_workers: int = 2,
    progress: bool = True,
) -> CheckReport:
    """Reads every row and decodes every image, in parallel, and reports each row that training would stop at.

    Args:
        path: .json, .jsonl or .parquet file, folder or dataset name.
        images: folder that relative image paths start from; the file's own folder if None.
        processor: with one, rows are encoded too, which finds those that are too long or teach nothing.
        chat_template: a known name or Jinja text for the encoding; the processor's own if None.
        max_length: tokens at most; no limit if None.
        write_clean: file for the good rows, unchanged and in the format of `path`.
        write_quarantine: JSON lines of the bad rows, each with what is wrong and the row itself.
        num_workers: processes; 0 works in this one.

    Raises:
        FileNotFoundError: no such data file.
        ValueError: a broken JSON document, or an output that would overwrite the file being checked.
    """
    for out in (write_clean, write_quarantine):
        if out is not None and Path(out).resolve() == Path(path).resolve():
            raise ValueError(f"{out} is the file being checked: expected another name to write to.")
    records = open_records(path, split=split)
    # The encoder's own settings, so that a row is bad here exactly when it is bad in training.
    config = DataConfig(
        path=str(path), max_length=max_length or NO_LIMIT, max_pixels=max_pixels, chat_template=chat_template
    )
    folder = image_folder(records, images)
    encoder = None if processor is None else RowEncoder(config, processor, folder)
    verdicts = _verdicts(_CheckedRows(records, folder, max_pixels, encoder), num_workers, progress)
    report = CheckReport(num_rows=len(records))
    with ExitStack() as stack:
        clean = None if write_clean is None else stack.enter_context(clean_writer(Path(write_clean), records))
        quarantine = None if write_quarantine is None else stack.enter_context(atomic_file(Path(write_quarantine)))
        for index, verdict in enumerate(verdicts):
            if isinstance(verdict, BadRow):
                report.bad_rows.append(verdict)
                if quarantine is not None:
                    line = verdict.to_dict() | {"row": _as_json(records[index])}
                    quarantine.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                continue
            report.num_images += verdict.num_images
            report.num_truncated += verdict.truncated
            if clean is not None:
                clean.add(records[index])
    return report


@dataclass
class _Good:
    num_images: int
    truncated: bool


class _CheckedRows(Dataset):
    """The verdict on each row, reached in the process that asks for it."""

    def __init__(self, records: Records, folder: Path, max_pixels: int, encoder: RowEncoder | None) -> None:
        self.records = records
        self.folder = folder
        self.max_pixels = max_pixels
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _Good | BadRow:
        record = self.records[index]
        row = parse_record(record, self.folder)
        if isinstance(row, BadRow):
            return row
        try:
            # In the order of training, so that a row with two faults gets the same message.
            truncated = self.encoder is not None and self.encoder.encode(record).truncated
            # All images of the row, also those that max_length cuts off: another recipe may read them.
            for _ in open_images(row, row.images, self.max_pixels):
                pass
        except BadRow as bad:
            return bad
        return _Good(len(row.images), truncated)


def _verdicts(rows: _CheckedRows, num_workers: int, progress: bool) -> Iterator[_Good | BadRow]:
    from tqdm import tqdm

    if not len(rows):
        return
    loader = DataLoader(rows, batch_size=16, num_workers=num_workers, collate_fn=list)
    # disable=None: a bar on a terminal, none in a log file
    with tqdm(total=len(rows), desc="check", unit="row", disable=None if progress else True) as bar:
        for batch in loader:
            yield from batch
            bar.update(len(batch))


def _as_json(record: Record) -> Any:
    """The row as it was, or the text of a line that is no JSON; embedded pictures become their size."""
    if isinstance(record.value, BadRow):
        return record.raw.decode(errors="replace")
    return describe_bytes(record.value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vwlmm data check`."""
    parser.epilog = (
        "example: vwlmm data check train.json --images images --clean train.clean.json --quarantine bad.jsonl"
    )
    parser.add_argument("file", help=".json, .jsonl or .parquet file, folder, or the name of a dataset")
    parser.add_argument(
        "--images", metavar="DIR", help="folder that relative image paths start from (default: that of FILE)"
    )
    parser.add_argument("--split", help="split of a dataset (default: train)")
    parser.add_argument("--model", help="model folder or hub id: its processor also finds rows that are too long")
    parser.add_argument(
        "--chat-template", metavar="NAME", help="vicuna_v1, mistral, llama_2, chatml, plain (default: the model's)"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens at most, image tokens included; needs --model"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="width × height at most (%(default)s)"
    )
    parser.add_argument("--clean", metavar="OUT", help="write the good rows, unchanged, to this file")
    parser.add_argument(
        "--quarantine", metavar="OUT", help="write the bad rows and what is wrong with them, as JSON lines"
    )
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the check and prints each bad row on a line; 1 if there is one, else 0.

    Raises:
        FileNotFoundError: no such data file.
        ValueError: a broken JSON document, or options that do not go together.
    """
    processor = None
    if args.model is not None:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(args.model)
    elif args.max_length is not None or args.chat_template is not None:
        raise ValueError("--max-length and --chat-template count tokens, which needs a model: give --model too.")
    report = check(
        args.file,
        images=args.images,
        processor=processor,
        chat_template=args.chat_template,
        max_length=args.max_length,
        max_pixels=args.max_pixels,
        split=args.split,
        write_clean=args.clean,
        write_quarantine=args.quarantine,
        num_workers=args.workers,
    )
    if args.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        _print(report, args)
    return 1 if report.bad_rows else 0


def _print(report: CheckReport, args: argparse.Namespace) -> None:
    for bad in report.bad_rows:
        print(bad.summary)
    good = report.num_rows - len(report.bad_rows)
    print(f"{report.num_rows} rows: {good} good with {report.num_images} images, {len(report.bad_rows)} bad.")
    for name, count in report.by_field.items():
        print(f"  {count} × {name}")
    if report.num_truncated:
        print(f"{report.num_truncated} good rows are longer than {args.max_length} tokens: training cuts them there.")
    for out, what in ((args.clean, "good rows"), (args.quarantine, "bad rows")):
        if out:
            print(f"Wrote the {what} to {out}.")
    if report.bad_rows and not args.clean:
        print("Write the good rows to a file of their own with --clean OUT, or train with data.on_bad_row=quarantine.")
