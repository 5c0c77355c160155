"""Shows what the model reads: the text after the chat template, images as patch counts, scored tokens marked.

print(inspect_rows(train, processor, num_rows=3, visual_words=True))
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from vwlmm.data.bad_row import BadRow
from vwlmm.data.encode import IGNORE, EncodedRow

UNDERLINE, RESET = "\033[4;32m", "\033[0m"


def inspect_rows(
    rows: Any, processor: Any, *, num_rows: int = 3, visual_words: bool = False, color: bool | None = None
) -> str:
    """The first rows as the model reads them.

    Args:
        rows: a dataset of `load_datasets`, or EncodedRows.
        visual_words: also say how many patches are scored against a visual word. A patch is predicted by the token
            before it, so an image that opens the sequence loses its first one.
        color: scored tokens underlined in green (True) or in ⟦…⟧ (False); None: underlined on a terminal.
    """
    color = sys.stdout.isatty() if color is None else color
    blocks = [
        f"{item.summary}\n" if isinstance(item, BadRow) else _block(item, processor, visual_words, color)
        for item in itertools.islice(_encoded(rows), num_rows)
    ]
    mark = _mark("scored tokens", color)
    return "\n".join([*blocks, f"{mark} are what the loss is taken over; all else is only read."])


def _encoded(rows: Any) -> Iterator[EncodedRow | BadRow]:
    if hasattr(rows, "encoded_rows"):
        yield from rows.encoded_rows()
    elif hasattr(rows, "encoded"):
        for index in range(len(rows)):
            try:
                yield rows.encoded(index)
            except BadRow as bad:
                yield bad
    else:
        iterable: Iterable[EncodedRow | BadRow] = rows
        yield from iterable


def _block(encoded: EncodedRow, processor: Any, visual_words: bool, color: bool) -> str:
    ids, labels = encoded.input_ids, encoded.labels
    num_scored = sum(label != IGNORE for label in labels)
    cut = ", cut at the maximum length" if encoded.truncated else ""
    counts = f"{len(ids)} tokens, {num_scored} scored, {len(encoded.images)} images{cut}"
    head = f"{encoded.row.source} (id {encoded.row.id}): {counts}"
    text, begins = _text(encoded, processor, color)
    lines = [head, text]
    if visual_words and begins:
        patches = len(begins) * encoded.num_image_tokens
        lost = sum(begin == 0 for begin in begins)
        line = f"{patches - lost} of {patches} patches carry a visual-word target"
        if lost:
            line += "; the first patch opens the sequence, so no token before it predicts it"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _text(encoded: EncodedRow, processor: Any, color: bool) -> tuple[str, list[int]]:
    """The sequence as text, and where each image begins."""
    ids, labels, count = encoded.input_ids, encoded.labels, encoded.num_image_tokens
    image_id, decode = processor.image_token_id, processor.tokenizer.decode
    pieces: list[str] = []
    begins: list[int] = []
    at = 0
    while at < len(ids):
        end = at + 1
        if ids[at] == image_id:
            begins.append(at)
            end = at + count
            pieces.append(f"[image {len(begins)}: {count} patches]")
        else:
            scored = labels[at] != IGNORE
            while end < len(ids) and ids[end] != image_id and (labels[end] != IGNORE) == scored:
                end += 1
            # Decoded behind its neighbour: alone, the first word of a piece would lose its leading blank.
            before = ids[at - 1 : at]
            piece = decode(before + ids[at:end])[len(decode(before)) if before else 0 :]
            pieces.append(_mark(piece, color) if scored else piece)
        at = end
    return "".join(pieces), begins


def _mark(text: str, color: bool) -> str:
    return f"{UNDERLINE}{text}{RESET}" if color else f"⟦{text}⟧"
