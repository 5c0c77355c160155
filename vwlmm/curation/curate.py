"""Curation from shards to a folder: score, choose, write the chosen pairs, report. Run by `vwlmm data curate`."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vwlmm.curation.choose import Choice, choose, nearest_concepts
from vwlmm.curation.prototypes import Prototypes
from vwlmm.curation.report import ConceptRow, Report, write_report
from vwlmm.curation.scale import Scale
from vwlmm.curation.shards import BadRow, BrokenShard, Fields, Pair, read_pairs
from vwlmm.curation.store import EmbedTexts, ScoreStore
from vwlmm.data.images import MAGIC
from vwlmm.data.written import atomic_file

SUFFIXES = {"JPEG": ".jpg"}  # of embedded pictures, where it is not the format's own name


@dataclass
class CurateConfig:
    """What decides the result. All but the first four may change without scoring again."""

    scale: Scale = field(default_factory=Scale)
    block_rows: int = 65_536  # rows embedded, scored and saved at a time
    fields: Fields = field(default_factory=Fields)
    quarantine: bool = False  # go on over bad rows and broken shards, and list them
    per_concept: int = 2000
    depth: int = 25_000  # best captions whose mean says how common a concept is
    order: str = "mean"

    def __post_init__(self) -> None:
        if self.block_rows < 1:
            raise ValueError(f"block_rows is at least 1, got {self.block_rows}.")


Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) → called with what was added


def no_progress(what: str, total: int) -> Callable[[int], None]:
    """Shows nothing."""
    return lambda added: None


def curate(
    shards: list[Path],
    prototypes: Prototypes,
    embed_texts: EmbedTexts,
    out: Path,
    config: CurateConfig,
    *,
    model: str = "",
    progress: Progress = no_progress,
) -> Report:
    """Chooses the captions that cover the concepts, and writes them with their pictures to `out`.

    Interrupted at any place and called again with the same arguments, it ends with the same files: finished blocks of
    scores are kept, everything after them is made from them.

    Args:
        shards: files from `find_shards`.
        prototypes: one direction a concept.
        embed_texts: the text side of the model that made the prototypes.
        out: folder for `pairs.jsonl`, `report.json`, `report.md`, `coverage.png`, `quarantine.jsonl` and `scores/`.
        config: the settings.
        model: name of the encoder; a folder scored with another one is refused.
        progress: makes a progress bar.

    Raises:
        BadRow, BrokenShard: bad input, unless `config.quarantine`; what was scored before is kept.
        ValueError: `out` holds another curation.
    """
    store = ScoreStore(out / "scores", shards, config.scale, config.block_rows)
    store.open({"model": model, "prototypes": prototypes.digest, "caption_field": config.fields.caption})
    store.score(
        embed_texts, prototypes, config.fields, quarantine=config.quarantine, progress=progress("score captions", 0)
    )
    if all(summary.rows == len(summary.bad) for summary in store.summaries()):
        raise ValueError(f"The {len(shards)} shards hold no caption to choose from.")
    choice = choose(
        store,
        len(prototypes.names),
        per_concept=config.per_concept,
        depth=config.depth,
        order=config.order,
        progress=progress("choose", 2 * len(prototypes.names)),
    )
    report = _report(store, choice, prototypes, config)
    write_pairs(store, choice, prototypes.names, out, config)
    _write_quarantine(store, out / "quarantine.jsonl")
    write_report(report, out)
    return report


def _report(store: ScoreStore, choice: Choice, prototypes: Prototypes, config: CurateConfig) -> Report:
    blocks, summaries = list(store.blocks()), store.summaries()
    nearest = nearest_concepts(blocks, len(prototypes.names), config.scale.no_score, choice.rows)
    rows = []
    for concept in choice.order.tolist():
        scores = config.scale.decode(choice.codes[choice.concepts == concept])
        rows.append(
            ConceptRow(
                concept=prototypes.names[concept],
                commonality=float(choice.commonality[concept]),
                chosen=len(scores),
                best=float(scores.max()) if len(scores) else None,
                worst=float(scores.min()) if len(scores) else None,
                nearest_of_all=int(nearest[0, concept]),
                nearest_of_chosen=int(nearest[1, concept]),
            )
        )
    return Report(
        concepts=rows,
        per_concept=config.per_concept,
        num_rows=sum(s.rows for s in summaries),
        num_bad=sum(len(s.bad) for s in summaries),
        num_clipped_low=sum(s.clipped_low for s in summaries),
        num_clipped_high=sum(s.clipped_high for s in summaries),
        broken=[s.broken for s in summaries if s.broken],
        order=config.order,
        depth=config.depth,
        dtype=config.scale.dtype,
        resolution=config.scale.resolution,
    )


def write_pairs(store: ScoreStore, choice: Choice, names: list[str], out: Path, config: CurateConfig) -> None:
    """Writes the chosen rows, in the order of the shards, as `pairs.jsonl`.

    A row keeps its columns and gains `concept`, `concept_score` and `source`. A relative picture path is rewritten to
    start from `out`; pictures inside a shard are written to `out/pictures/<shard number>/`.
    """
    by_row = np.argsort(choice.rows)
    rows, concepts, codes = choice.rows[by_row], choice.concepts[by_row], choice.codes[by_row]
    scores = config.scale.decode(codes)
    at, start = 0, 0
    with atomic_file(out / "pairs.jsonl") as file:
        for number, (shard, summary) in enumerate(zip(store.shards, store.summaries(), strict=True)):
            end = start + summary.rows
            if at < len(rows) and rows[at] < end:
                for index, pair in enumerate(_again(shard, config), start=start):
                    if at == len(rows) or rows[at] >= end:
                        break
                    if rows[at] == index:
                        line = _line(pair, shard, number, index - start, out, config.fields)
                        line |= {"concept": names[concepts[at]], "concept_score": round(float(scores[at]), 6)}
                        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                        at += 1
            start = end
    if at < len(rows):
        raise ValueError(
            f"{len(rows) - at} chosen rows are no longer in their shards: they changed since they were scored."
        )


def _again(shard: Path, config: CurateConfig) -> Iterator[Pair | BadRow]:
    """The rows of a shard as the scoring saw them: up to its break, if that was accepted."""
    try:
        yield from read_pairs(shard, config.fields)
    except BrokenShard:
        if not config.quarantine:
            raise


def _line(pair: Pair | BadRow, shard: Path, number: int, index: int, out: Path, fields: Fields) -> dict[str, Any]:
    if isinstance(pair, BadRow):
        # Bad rows have no score, so none is chosen: this one was good when it was scored.
        raise pair
    value = {key: field for key, field in pair.value.items() if key != "__key__"}
    picture = value.get(fields.image)
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    if isinstance(data, bytes):
        value[fields.image] = _write_picture(data, out, f"pictures/{number:06d}/{index}")
    elif isinstance(picture, str) and "://" not in picture and not Path(picture).is_absolute():
        value[fields.image] = os.path.relpath(shard.parent / picture, out)
    other = [key for key, field in value.items() if isinstance(field, bytes)]
    if other:
        raise ValueError(f"{pair.source}: column {other[0]} holds bytes; expected them in '{fields.image}' alone.")
    return value | {"source": pair.source}


def _write_picture(data: bytes, out: Path, stem: str) -> str:
    """Writes an encoded picture as it is; returns its path from `out`."""
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), "")
    name = stem + (SUFFIXES.get(kind, f".{kind.lower()}") if kind else "")
    with atomic_file(out / name) as file:
        file.write(data)
    return name


def _write_quarantine(store: ScoreStore, file: Path) -> None:
    bad = [row for summary in store.summaries() for row in summary.bad]
    broken = [
        {"shard": s.name, "problem": r.broken} for s, r in zip(store.shards, store.summaries(), strict=True) if r.broken
    ]
    if not bad and not broken:
        file.unlink(missing_ok=True)
        return
    with atomic_file(file) as out:
        for row in [*broken, *bad]:
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
