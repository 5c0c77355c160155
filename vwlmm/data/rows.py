"""Rows of a conversation about pictures, whatever file they come from.

Three shapes are read: LLaVA (`conversations`, `image`), messages (`messages`, `images`) and pairs (`image`, `caption`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from vwlmm.data.bad_row import BadRow
from vwlmm.data.images import ImageProblem, ImageSource
from vwlmm.data.records import Record, Records
from vwlmm.data.sources import open_records

__all__ = ["BadRow", "Message", "Row", "bad_image", "parse_record", "read_rows"]

IMAGE = "<image>"  # where a picture goes in text, in LLaVA's files and in the chat templates
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Message(TypedDict):
    """One turn: `role` is system, user or assistant; `content` lists {"type": "text", "text"} and {"type": "image"}."""

    role: str
    content: list[dict[str, str]]


@dataclass(frozen=True)
class Row:
    """One conversation. `images` are in the order of the image parts of `messages`; none of them has been opened."""

    id: str
    source: str  # file name and row or line, for messages
    messages: list[Message]
    images: list[ImageSource]


def read_rows(
    path_or_name: str | Path, *, images: Path | None = None, split: str | None = None, streaming: bool = False
) -> Iterator[Row | BadRow]:
    """Every row of a source in order; a malformed one is yielded as a BadRow, so that the rest can still be read.

    Args:
        path_or_name: a .json (LLaVA's list, or a list of messages rows), .jsonl or .parquet file, a folder or the
            name of a dataset.
        images: folder that relative image paths start from; the file's own folder if None.
        split: of a dataset; `train` if None.
        streaming: read a `datasets` source as it comes, without a local copy.

    Raises:
        FileNotFoundError: a data file that is not there.
        ValueError: a .json file whose document is broken, with line and column.
    """
    records = open_records(path_or_name, split=split, streaming=streaming)
    for record in records:
        yield parse_record(record, image_folder(records, images))


def image_folder(records: Records, images: Path | str | None) -> Path:
    """Where relative image paths start: `images`, or the folder the data lie in."""
    return records.folder if images is None else Path(images)


def parse_record(record: Record, images: Path) -> Row | BadRow:
    """A row as it lies in a file → a Row, or the BadRow that says what is wrong with it."""
    if isinstance(record.value, BadRow):
        return record.value
    row_id = str(record.index)
    try:
        if not isinstance(record.value, dict):
            raise _Problem("row", "a JSON object", _kind(record.value))
        for name in ("id", "question_id"):
            if record.value.get(name) is not None:
                row_id = str(record.value[name])
                break
        return _parse(record.value, row_id, record.source, images)
    except _Problem as problem:
        return BadRow(record.source, row_id, *problem.args)


def bad_image(row: Row, number: int, problem: ImageProblem) -> BadRow:
    """The BadRow for a picture of `row` that cannot be opened; `number` counts its pictures from 0."""
    field = "image" if len(row.images) == 1 else f"image[{number}]"
    return BadRow(row.source, row.id, field, problem.expected, problem.found)


class _Problem(Exception):
    """Field, expected and found of a bad row, raised where they are known."""


def _parse(value: dict[str, Any], row_id: str, source: str, images: Path) -> Row:
    if value.get("messages") is not None:
        messages, inner = _turns(value["messages"], "messages", "role", "content")
    elif value.get("conversations") is not None:
        messages, inner = _turns(value["conversations"], "conversations", "from", "value")
    elif any(isinstance(value.get(name), str) for name in ("caption", "text")):
        messages, inner = _pair(value)
    else:
        keys = ", ".join(value) or "no keys"
        raise _Problem("row", "`conversations`, `messages`, or `image` with `caption` or `text`", keys)
    sources = [*_images(value), *inner]
    wanted = sum(part["type"] == "image" for message in messages for part in message["content"])
    if wanted != len(sources):
        count = "1 image" if len(sources) == 1 else f"{len(sources)} images"
        raise _Problem("image", f"as many `{IMAGE}` as images", f"{wanted} `{IMAGE}` and {count}")
    if not any(message["role"] == "assistant" for message in messages):
        raise _Problem("messages", "an assistant turn", "nothing to learn: only user or system turns")
    return Row(row_id, source, messages, [_resolve(image, images) for image in sources])


def _turns(turns: Any, field: str, role_key: str, text_key: str) -> tuple[list[Message], list[Any]]:
    """Messages, and the images that lie inside their parts."""
    if not isinstance(turns, list) or not turns:
        raise _Problem(field, "a list of turns", _kind(turns))
    messages: list[Message] = []
    inner: list[Any] = []
    for number, turn in enumerate(turns):
        place = f"{field}[{number}]"
        if not isinstance(turn, dict):
            raise _Problem(place, f"an object with `{role_key}` and `{text_key}`", _kind(turn))
        role = ROLES.get(turn.get(role_key) or "") if isinstance(turn.get(role_key) or "", str) else None
        if role is None:
            found = repr(turn.get(role_key)) if turn.get(role_key) else "an empty role"
            raise _Problem(f"{place}.{role_key}", f"one of {', '.join(ROLES)}", found)
        if role == "system" and number > 0:
            raise _Problem(f"{place}.{role_key}", "a system turn only at the start", f"one as turn {number}")
        content, found_images = _content(turn.get(text_key), f"{place}.{text_key}")
        if not any(part["type"] == "image" or part["text"] for part in content) and role != "system":
            raise _Problem(f"{place}.{text_key}", "some text", "an empty turn")
        if role == "assistant" and not any(part.get("text") for part in content):
            raise _Problem(f"{place}.{text_key}", "an answer in words", "only an image")
        messages.append({"role": role, "content": content})
        inner += found_images
    return messages, inner


def _content(content: Any, place: str) -> tuple[list[dict[str, str]], list[Any]]:
    """Text with `<image>` in it, or a list of parts → parts, and the images given inside them."""
    if isinstance(content, str):
        return _split(content), []
    if not isinstance(content, list):
        raise _Problem(place, "text or a list of parts", _kind(content))
    parts: list[dict[str, str]] = []
    images: list[Any] = []
    for number, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts += _split(part["text"])
        elif isinstance(part, dict) and part.get("type") == "image":
            parts.append({"type": "image"})
            images += [part[key] for key in ("image", "path", "url") if part.get(key) is not None][:1]
        else:
            found = f"type {part.get('type')!r}" if isinstance(part, dict) else _kind(part)
            raise _Problem(f"{place}[{number}]", "a part of type text (with `text`) or image", found)
    return parts, images


def _split(text: str) -> list[dict[str, str]]:
    """Text → text and image parts, nothing added and nothing stripped."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts or [{"type": "text", "text": ""}]


def _pair(value: dict[str, Any]) -> tuple[list[Message], list[Any]]:
    name = "caption" if isinstance(value.get("caption"), str) else "text"
    if not value[name].strip():
        raise _Problem(name, "some text", "an empty caption")
    if IMAGE in value[name]:
        raise _Problem(name, f"a caption without `{IMAGE}`", repr(value[name][:60]))
    return [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": value[name]}]},
    ], []


def _images(value: dict[str, Any]) -> list[Any]:
    """The row's `images` or `image`: a list, one (a string counts as one, not by its letters), or none."""
    images = value.get("images") if value.get("images") is not None else value.get("image")
    if images is None:
        return []
    return images if isinstance(images, list) else [images]


def _resolve(image: Any, folder: Path) -> ImageSource:
    if isinstance(image, str) and image.strip():
        if "://" in image or image.startswith("data:"):
            raise _Problem("image", "a local file", f"{image[:80]!r}; download it first")
        return folder / image
    if isinstance(image, bytes):
        return image
    if isinstance(image, dict) and image.get("bytes") is not None:
        return {"bytes": image["bytes"], "path": image.get("path")}
    if isinstance(image, dict) and image.get("path"):
        return folder / str(image["path"])
    raise _Problem("image", "a path or an embedded picture", _kind(image))


def _kind(value: Any) -> str:
    """What a value is, in a reader's words."""
    if value is None:
        return "nothing"
    if value in ("", [], {}):
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {str(value)[:60]!r}"
