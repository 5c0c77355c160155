"""Examples → one padded batch. Bad rows are left out and listed, never replaced by another row."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from vwlmm.data.bad_row import BadRow
from vwlmm.data.encode import IGNORE

logger = logging.getLogger(__name__)

ALL_BAD = 64  # if a process meets this many bad rows before a good one, something else is wrong: a folder, most likely


class Collator:
    """Pads to the longest row, on the right, or puts rows behind one another; joins the images of all rows.

    Args:
        processor: its tokenizer's padding token fills up; the attention mask hides it.
        pad_to_multiple_of: rounds the padded length up.
        padding_free: no padding at all: one sequence of all rows, whose positions begin anew at each.
        quarantine: folder whose `quarantine.jsonl` lists bad rows, one a line; without it a bad row is raised.
    """

    takes_no_rows = True  # a rank that has none left in a step gets a batch of one unscored token

    def __init__(
        self,
        processor: Any,
        *,
        pad_to_multiple_of: int | None = None,
        padding_free: bool = False,
        quarantine: str | Path | None = None,
    ) -> None:
        if padding_free and pad_to_multiple_of:
            raise ValueError("Collator: pad_to_multiple_of pads, and padding_free does not: give one.")
        tokenizer = getattr(processor, "tokenizer", processor)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id = next(token for token in ids if token is not None)
        self.multiple = pad_to_multiple_of or 1
        self.padding_free = padding_free
        self.file = None if quarantine is None else Path(quarantine) / "quarantine.jsonl"
        self.num_good = 0
        self.num_bad = 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: `input_ids`, `labels`, `attention_mask` `[batch, seq]`; `pixel_values` if any row has an image.

        Without padding `[1, tokens of all rows]`, and `position_ids` in place of the mask: a 0 begins a row, and attention
        stays within rows (transformers makes the mask of that, or flash-attention the lengths).
        `pixel_values` joins the images of all rows, `[images, 3, height, width]`; the mask is 1 for read, 0 for padded.
        A batch of bad rows alone becomes one row of one unscored token, so that every rank takes the same steps.

        Raises:
            BadRow: a bad row without a quarantine folder, or nothing but bad rows so far.
        """
        good = []
        for example in examples:
            if "bad_row" in example:
                self._list(example["bad_row"])
            else:
                good.append(example)
        self.num_good += len(good)
        if not good:
            good = [{"input_ids": torch.tensor([self.pad_id]), "labels": torch.tensor([IGNORE])}]
        ids = [example["input_ids"] for example in good]
        labels = [example["labels"] for example in good]
        if self.padding_free:
            positions = [torch.arange(len(row)) for row in ids]
            named = {"input_ids": ids, "labels": labels, "position_ids": positions}
            batch = {name: torch.cat(parts)[None] for name, parts in named.items()}
        else:
            batch = {
                "input_ids": self._pad(ids, self.pad_id),
                "labels": self._pad(labels, IGNORE),
                "attention_mask": self._pad([torch.ones_like(row) for row in ids], 0),
            }
        pixels = [example["pixel_values"] for example in good if "pixel_values" in example]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)  # [images, 3, height, width]
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value)  # [batch, seq]
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self.multiple), value=value)

    def _list(self, bad: BadRow) -> None:
        self.num_bad += 1
        if self.file is None:
            raise bad
        if self.num_good == 0 and self.num_bad >= ALL_BAD:
            raise BadRow(
                f"The first {self.num_bad} rows are all bad, so the data or its image folder are not as given: {bad}"
            )
        line = json.dumps(bad.to_dict(), ensure_ascii=False) + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # A row comes again each epoch; one line is enough.
        if self.file.exists() and line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            return
        logger.warning("left out: %s", bad.summary)
        # One write of one line to a file opened for appending: worker processes do not mix theirs up.
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
