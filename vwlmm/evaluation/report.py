"""Results as files: one JSON a benchmark with every setting, and a Markdown table with the papers' figures beside ours."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vwlmm.benchmarks import Score

RESULT_FILE = "result.json"
DETAILS_FILE = "details.jsonl"
TABLE_FILE = "table.md"


@dataclass(frozen=True)
class Result:
    """What one run of one benchmark gave."""

    benchmark: str
    title: str
    model: str
    metrics: Mapping[str, float]
    notes: Sequence[str]
    num_questions: int  # asked
    num_total: int  # in the official files
    settings: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)
    submission: str | None = None  # file name

    @property
    def main(self) -> tuple[str, float | None]:
        """Name and value of the benchmark's main metric; nothing where only a server or a judge can score."""
        return next(iter(self.metrics.items()), ("submission only", None))


def write_result(folder: Path, result: Result, score: Score) -> Path:
    """Writes `result.json` and `details.jsonl` (one line a question), each whole or not at all."""
    rows = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in score.details)
    _write(folder / DETAILS_FILE, rows)
    target = folder / RESULT_FILE
    _write(target, json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n")
    return target


def read_result(folder: Path) -> Result:
    """The result that `write_result` wrote."""
    return Result(**json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")))


def write_table(path: Path, results: Sequence[Result]) -> str:
    """Writes and returns the table: ours beside what the papers print."""
    text = table(results)
    _write(path, text)
    return text


def table(results: Sequence[Result]) -> str:
    """Markdown: one row a benchmark with its main metric, then every metric of every benchmark, then the notes."""
    models = list(dict.fromkeys(result.model for result in results))
    papers = list(dict.fromkeys(name for result in results for name in result.published))
    header = ["benchmark", "metric", *models, *papers, "questions"]
    lines = [_row(header), _row(["---"] * 2 + ["---:"] * (len(models) + len(papers) + 1))]
    for name in dict.fromkeys(result.benchmark for result in results):
        same = [result for result in results if result.benchmark == name]
        ours = {result.model: shown(result.main[1]) for result in same}
        first = same[0]
        cells = [first.title, first.main[0], *(ours.get(model, "") for model in models)]
        cells += [f"{first.published[paper]:.1f}" if paper in first.published else "" for paper in papers]
        lines.append(_row([*cells, _asked(first)]))
    lines += [
        "",
        "Fractions are shown in per cent. Columns with a paper's model are the figures that paper prints.",
        "",
    ]
    for result in results:
        figures = [f"{name} {shown(value)}" for name, value in result.metrics.items()]
        if len(figures) > 12:  # those of subsets are in result.json
            figures = [f"{name} {shown(value)}" for name, value in result.metrics.items() if "/" not in name]
        metrics = ", ".join(figures) or "to be scored from the submission file"
        lines.append(f"- **{result.title}** ({result.model}, {_how(result.settings)}): {metrics}.")
        lines += [f"  - {note}" for note in result.notes]
    return "\n".join([*lines, ""])


def shown(value: float | None) -> str:
    """A metric as the table shows it: fractions in per cent, counts as they are, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.1f}"


def _asked(result: Result) -> str:
    if result.num_questions == result.num_total:
        return f"{result.num_questions:,}"
    return f"{result.num_questions:,} of {result.num_total:,}"


def _how(settings: Mapping[str, Any]) -> str:
    return f"{settings.get('dtype')}, batch size {settings.get('batch_size')}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
