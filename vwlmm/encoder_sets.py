"""A set of pairs as several encoders see it: every picture once, embedded once by each encoder, kept if wanted.

Used to choose encoders by CKA. Paper: freeze-align (arXiv 2409.19425), section 3.1.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwlmm.data.images import ImageProblem, ImageSource, load_image
from vwlmm.data.rows import BadRow, Row, bad_image, image_folder, parse_record
from vwlmm.data.sources import open_records
from vwlmm.data.written import atomic_file


@dataclass(frozen=True)
class PairSet:
    """The pictures and captions that every encoder sees: each picture once, with all of its captions."""

    images: list[ImageSource]
    captions: list[list[str]]  # of each picture
    rows: list[Row]  # the first row of each picture, for messages

    @property
    def digest(self) -> str:
        """Sixteen letters that tell one set, in one order, from another."""
        content = [[_image_name(image), *captions] for image, captions in zip(self.images, self.captions, strict=True)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Embeddings:
    """One encoder's view of the set."""

    name: str
    features: Tensor  # [pictures, dim], fp32
    digest: str  # of the set


def read_set(path: str | Path, images: str | Path | None = None, limit: int | None = None) -> PairSet:
    """Reads pairs in any form that training reads; rows that name the same picture are one picture with several captions.

    Args:
        path: data file.
        images: folder that relative paths start from; the file's own if None.
        limit: pictures at most, the first ones.

    Raises:
        BadRow: a row that cannot be read, has no picture, several, or no caption in words.
        ValueError: fewer than two pictures.
    """
    records = open_records(path)
    folder = image_folder(records, images)
    found: dict[str, int] = {}
    result = PairSet([], [], [])
    for record in records:
        row = parse_record(record, folder)
        if isinstance(row, BadRow):
            raise row
        if len(row.images) != 1:
            raise BadRow(row.source, row.id, "image", "one picture with its caption", f"{len(row.images)} pictures")
        name = _image_name(row.images[0])
        if name not in found:
            if limit is not None and len(found) == limit:
                break
            found[name] = len(found)
            result.images.append(row.images[0])
            result.captions.append([])
            result.rows.append(row)
        result.captions[found[name]].append(_caption(row))
    if len(found) < 2:
        raise ValueError(f"{path}: CKA compares how encoders see different pictures, found {len(found)} of them.")
    return result


def _caption(row: Row) -> str:
    """What the row says about its picture: the words of its first answer."""
    answer = next(message for message in row.messages if message["role"] == "assistant")
    text = " ".join(part["text"].strip() for part in answer["content"] if part["type"] == "text").strip()
    if not text:
        raise BadRow(row.source, row.id, "caption", "a caption in words", "none")
    return text


def _image_name(image: ImageSource) -> str:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    return str(image["path"] if isinstance(image, dict) else image)


def open_pictures(pairs: PairSet) -> Iterator[Any]:
    """The pictures one after another, each opened when it is asked for.

    Raises:
        BadRow: one that cannot be opened.
    """
    for image, row in zip(pairs.images, pairs.rows, strict=True):
        try:
            yield load_image(image)
        except ImageProblem as problem:
            raise bad_image(row, 0, problem) from problem


def embed_vision(spec: str, pairs: PairSet, device: str | None = None) -> Tensor:
    """Mean over class token and patches of each picture, `[pictures, dim]`. `spec` may end in `@layer`."""
    from vwlmm.encoders import embed_images, load_vision_encoder

    source, layer = _split_layer(spec)
    encoder = load_vision_encoder(source, feature_layer=layer, device=device)
    return embed_images(encoder, open_pictures(pairs), pooling="mean")


def embed_text(spec: str, pairs: PairSet, device: str | None = None) -> Tensor:
    """Mean over the captions of each picture, `[pictures, dim]`; not normalised again."""
    from vwlmm.encoders import embed_texts, load_text_encoder

    encoder = load_text_encoder(spec, device=device)
    flat = embed_texts(encoder, [caption for captions in pairs.captions for caption in captions])
    return torch.stack([part.mean(0) for part in flat.split([len(captions) for captions in pairs.captions])])


def _split_layer(spec: str) -> tuple[str, int]:
    source, at, layer = spec.rpartition("@")
    return (source, int(layer)) if at and layer.lstrip("-").isdigit() else (spec, -1)


def embeddings_of(
    spec: str,
    kind: str,
    pairs: PairSet,
    *,
    folder: Path | None = None,
    embed: Callable[[str, PairSet], Tensor] | None = None,
) -> Embeddings:
    """An encoder's embeddings of the set: read from `folder` or from the file that `spec` names, or made once.

    Raises:
        ValueError: a file of embeddings of another set.
    """
    if spec.endswith(".safetensors"):
        return _same_set(load_embeddings(Path(spec)), pairs)
    file = None if folder is None else folder / f"{kind}-{hashlib.sha256(spec.encode()).hexdigest()[:12]}.safetensors"
    if file is not None and file.is_file() and (saved := load_embeddings(file)).digest == pairs.digest:
        return saved
    features = (embed or (embed_vision if kind == "vision" else embed_text))(spec, pairs)
    made = Embeddings(spec, features, pairs.digest)
    if file is not None:
        save_embeddings(made, file)
    return made


def save_embeddings(embeddings: Embeddings, file: Path) -> None:
    """Writes a safetensors file with the encoder's name and the set's digest."""
    from safetensors.torch import save

    with atomic_file(file) as out:
        metadata = {"encoder": embeddings.name, "set": embeddings.digest}
        out.write(save({"features": embeddings.features.contiguous()}, metadata=metadata))


def load_embeddings(file: Path) -> Embeddings:
    """Reads what `save_embeddings` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: cut short, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise FileNotFoundError(f"Embeddings were expected at {file}: there is no such file.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return Embeddings(metadata["encoder"], opened.get_tensor("features"), metadata["set"])
    except (SafetensorError, KeyError) as problem:
        raise ValueError(f"{file}: expected embeddings that select-encoders wrote, found: {problem}.") from problem


def _same_set(embeddings: Embeddings, pairs: PairSet) -> Embeddings:
    if embeddings.digest != pairs.digest:
        raise ValueError(
            f"{embeddings.name} has embedded another set ({len(embeddings.features)} pictures, set {embeddings.digest}) than "
            f"--data holds ({len(pairs.images)} pictures, set {pairs.digest}): CKA compares the same pairs in the same "
            "order. Embed --data with it."
        )
    return embeddings
