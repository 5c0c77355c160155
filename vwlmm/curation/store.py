"""Scores of every caption against every concept, on disk in blocks: what is finished survives an interruption.

A block holds the next `block_rows` rows of one shard as `[concepts, rows]`, so that one concept is read in one piece.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vwlmm.curation.prototypes import Prototypes
from vwlmm.curation.scale import Scale
from vwlmm.curation.shards import BadRow, BrokenShard, Fields, Pair, fingerprint, read_pairs
from vwlmm.data.written import atomic_file

EmbedTexts = Callable[[list[str]], Tensor]  # captions → [captions, dim]


@dataclass(frozen=True)
class Block:
    """Where a block's rows lie among all rows of all shards."""

    file: Path
    start: int
    rows: int

    def codes(self) -> np.ndarray:
        """The scores as stored, `[concepts, rows]`, mapped from the file: only what is used is read."""
        try:
            codes = np.load(self.file, mmap_mode="r")
        except (ValueError, EOFError, FileNotFoundError) as problem:
            raise ValueError(
                f"{self.file}: expected a block of scores, found: {problem}. Delete its folder."
            ) from problem
        if codes.shape[1] != self.rows:
            raise ValueError(f"{self.file}: expected {self.rows} rows of scores, found {codes.shape[1]}. Delete it.")
        return codes


@dataclass
class ShardScores:
    """What is known of a scored shard; saved when its last row is."""

    rows: int = 0
    blocks: int = 0
    clipped_low: int = 0
    clipped_high: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)
    broken: str = ""  # why its rest could not be read, if it could not


class ScoreStore:
    """The scores of one curation. Each block and each shard's summary appears whole or not at all."""

    def __init__(self, folder: Path, shards: list[Path], scale: Scale, block_rows: int) -> None:
        self.folder = folder
        self.shards = shards
        self.scale = scale
        self.block_rows = block_rows

    def open(self, settings: dict[str, Any]) -> None:
        """Makes the folder, or goes on with one whose scores were made with the same settings from the same shards.

        A shard that was broken, or not read to its end, may have been fetched again: its scores are made anew.

        Raises:
            ValueError: the folder holds the scores of another curation, or a finished shard is another file now.
        """
        wanted = settings | {
            "scale": asdict(self.scale),
            "block_rows": self.block_rows,
            "shards": [shard.name for shard in self.shards],
        }
        file = self.folder / "settings.json"
        if file.is_file():
            found = json.loads(file.read_text())
            different = [
                f"{key} was {found.get(key)}, is {wanted[key]}" for key in wanted if found.get(key) != wanted[key]
            ]
            if different:
                raise ValueError(
                    f"{self.folder} holds the scores of another curation: {'; '.join(different)}. Choose another --out, "
                    "or delete that folder to score again."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no settings.json: choose another --out.")
        else:
            write_json(file, wanted)
        for number, shard in enumerate(self.shards):
            self._open_shard(self._shard_folder(number), shard)

    def _open_shard(self, folder: Path, shard: Path) -> None:
        now, begun = fingerprint(shard), folder / "begun.json"
        if begun.is_file() and json.loads(begun.read_text()) != now:
            finished = folder / "shard.json"
            if finished.is_file() and not json.loads(finished.read_text())["broken"]:
                raise ValueError(
                    f"{shard} is not the file that was scored ({finished}): its rows would be taken for others. Restore "
                    f"it, or delete {folder} to score it again."
                )
            shutil.rmtree(folder)
        write_json(begun, now)

    def score(
        self,
        embed_texts: EmbedTexts,
        prototypes: Prototypes,
        fields: Fields,
        *,
        quarantine: bool = False,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Scores what is not scored yet. Interrupted and called again, it goes on with the first unfinished block.

        Args:
            embed_texts: the text side of the encoder whose picture side made the prototypes.
            prototypes: the concepts.
            fields: column names of the shards.
            quarantine: go on over bad rows and broken shards and keep a list of them, instead of stopping.
            progress: called with the number of rows that were added.

        Raises:
            BadRow: a caption that is not text.
            BrokenShard: a shard that cannot be read to its end. What was scored before is kept.
            ValueError: embeddings of another width than the prototypes, or not finite.
        """
        for number, shard in enumerate(self.shards):
            if (self._shard_folder(number) / "shard.json").is_file():
                progress(self._summary(number).rows)
            else:
                self._score_shard(number, shard, embed_texts, prototypes, fields, quarantine, progress)

    def _score_shard(
        self,
        number: int,
        shard: Path,
        embed_texts: EmbedTexts,
        prototypes: Prototypes,
        fields: Fields,
        quarantine: bool,
        progress: Callable[[int], None],
    ) -> None:
        folder = self._shard_folder(number)
        summary = ShardScores()
        for rows in self._blocks_of(read_pairs(shard, fields, captions_only=True), summary, quarantine):
            file = folder / f"{summary.blocks:06d}.npy"
            # Written under another name and renamed, so a block that is there is whole: its captions are embedded once.
            clips = file.with_suffix(".json")
            if not (file.is_file() and clips.is_file()):
                codes, low_high = self._encode(rows, embed_texts, prototypes)
                with atomic_file(file) as out:
                    np.save(out, codes)
                write_json(clips, low_high)
            low, high = json.loads(clips.read_text())
            summary.clipped_low += low
            summary.clipped_high += high
            summary.rows += len(rows)
            summary.blocks += 1
            progress(len(rows))
        write_json(folder / "shard.json", asdict(summary))

    def _blocks_of(
        self, pairs: Iterator[Pair | BadRow], summary: ShardScores, quarantine: bool
    ) -> Iterator[list[str | None]]:
        """The captions of one block after another; None where a row is bad."""
        captions: list[str | None] = []
        try:
            for pair in pairs:
                if isinstance(pair, BadRow):
                    if not quarantine:
                        raise pair
                    summary.bad.append(pair.to_dict())
                captions.append(None if isinstance(pair, BadRow) else pair.caption)
                if len(captions) == self.block_rows:
                    yield captions
                    captions = []
        except BrokenShard as problem:
            if not quarantine:
                raise
            summary.broken = str(problem)
        if captions:
            yield captions

    def _encode(
        self, rows: list[str | None], embed_texts: EmbedTexts, prototypes: Prototypes
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """A block of codes `[concepts, rows]`, and how many scores lay below and above the range."""
        texts = [row for row in rows if row is not None]
        codes = np.full((len(prototypes.names), len(rows)), self.scale.no_score, dtype=self.scale.dtype)
        if not texts:
            return codes, (0, 0)
        scores = cosines(embed_texts(texts), prototypes).numpy()  # [concepts, texts]
        codes[:, [row is not None for row in rows]] = self.scale.encode(scores)
        return codes, self.scale.num_clipped(scores)

    def blocks(self) -> Iterator[Block]:
        """Every block in the order of the rows."""
        start = 0
        for number in range(len(self.shards)):
            summary = self._summary(number)
            for index in range(summary.blocks):
                rows = min(self.block_rows, summary.rows - index * self.block_rows)
                yield Block(self._shard_folder(number) / f"{index:06d}.npy", start, rows)
                start += rows

    def summaries(self) -> list[ShardScores]:
        """One a shard, in order.

        Raises:
            ValueError: a shard is not scored to its end.
        """
        return [self._summary(number) for number in range(len(self.shards))]

    def _summary(self, number: int) -> ShardScores:
        file = self._shard_folder(number) / "shard.json"
        if not file.is_file():
            raise ValueError(f"{self.shards[number]} is not scored to its end yet: run the curation again.")
        return ShardScores(**json.loads(file.read_text()))

    def _shard_folder(self, number: int) -> Path:
        return self.folder / f"{number:06d}"


def cosines(features: Tensor, prototypes: Prototypes) -> Tensor:
    """Cosine of each prototype with each caption, `[concepts, captions]`, fp32.

    Raises:
        ValueError: features of another width, not finite, or of norm 0.
    """
    features = features.detach().float().cpu()
    dim = prototypes.vectors.shape[1]
    if features.dim() != 2 or features.shape[1] != dim:
        raise ValueError(
            f"Prototypes have {dim} dimensions, captions were embedded as {tuple(features.shape)}: use the text side of "
            "the model that made the prototypes."
        )
    norms = features.norm(dim=1)
    wrong = int((~(torch.isfinite(norms) & (norms > 0))).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {len(features)} captions have an embedding that is zero or not finite (try fp32)."
        )
    return prototypes.vectors @ (features / norms[:, None]).T


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    with atomic_file(file) as out:
        out.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
