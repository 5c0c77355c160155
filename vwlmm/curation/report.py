"""What a curation covers: a table and a plot, one entry a concept, rarest first."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vwlmm.data.written import atomic_file


@dataclass(frozen=True)
class ConceptRow:
    """One concept: how common it is, and what it got."""

    concept: str
    commonality: float  # cosine
    chosen: int
    best: float | None  # scores of what was chosen for it
    worst: float | None
    nearest_of_all: int  # captions nearer to this concept than to any other: before the choice
    nearest_of_chosen: int  # and after it


@dataclass
class Report:
    """A curation in numbers."""

    concepts: list[ConceptRow]  # rarest first
    per_concept: int
    num_rows: int
    num_bad: int
    num_clipped_low: int
    num_clipped_high: int
    broken: list[str]
    order: str
    depth: int
    dtype: str
    resolution: float

    @property
    def num_chosen(self) -> int:
        """Pairs written."""
        return sum(row.chosen for row in self.concepts)

    @property
    def short(self) -> list[ConceptRow]:
        """Concepts that got fewer captions than asked for, because rarer ones had taken the rest."""
        return [row for row in self.concepts if row.chosen < self.per_concept]

    def summary(self) -> list[str]:
        """The report in a few lines; everything that is unusual has one."""
        lines = [
            f"{self.num_chosen:,} of {self.num_rows:,} pairs chosen for {len(self.concepts):,} concepts, up to "
            f"{self.per_concept:,} each; rarest: {self.concepts[0].concept}, commonest: {self.concepts[-1].concept}.",
            f"Concepts that no caption is nearest to: {self._empty('nearest_of_all')} before, "
            f"{self._empty('nearest_of_chosen')} among the chosen.",
        ]
        if self.short:
            lines.append(f"{len(self.short)} concepts got fewer than {self.per_concept:,}: the captions ran out.")
        if self.num_clipped_high:
            lines.append(
                f"{self.num_clipped_high:,} scores lie above the range and count as equal: widen it with --score-range."
            )
        if self.num_clipped_low:
            lines.append(f"{self.num_clipped_low:,} scores lie below the range and count as equal.")
        if self.num_bad:
            lines.append(f"{self.num_bad:,} bad rows are listed in quarantine.jsonl.")
        return lines + [f"Not read to its end: {problem}" for problem in self.broken]

    def _empty(self, name: str) -> int:
        return sum(getattr(row, name) == 0 for row in self.concepts)


def write_report(report: Report, out: Path) -> None:
    """Writes report.json, report.md and coverage.png."""
    content = asdict(report) | {"num_chosen": report.num_chosen}
    with atomic_file(out / "report.json") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    with atomic_file(out / "report.md") as file:
        file.write(markdown(report).encode())
    with atomic_file(out / "coverage.png") as file:
        file.write(plot(report))


def markdown(report: Report) -> str:
    """The report as a page with one row a concept."""
    measure = f"mean of its best {report.depth:,}" if report.order == "mean" else f"score at rank {report.depth:,}"
    lines = [
        "# Curation",
        "",
        *(f"- {line}" for line in report.summary()),
        f"- Scores are stored as {report.dtype}, to within {report.resolution:.2g}. Commonality: {measure}.",
        "",
        "![coverage](coverage.png)",
        "",
        "| concept, rarest first | commonality | chosen | best | worst | nearest captions, all | among the chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report.concepts:
        best, worst = ("–" if value is None else f"{value:.3f}" for value in (row.best, row.worst))
        name = row.concept.replace("|", "\\|")
        lines.append(
            f"| {name} | {row.commonality:.3f} | {row.chosen:,} | {best} | {worst} | {row.nearest_of_all:,} "
            f"| {row.nearest_of_chosen:,} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: Report) -> bytes:
    """Two panels over the concepts, rarest first: scores, and captions nearest to each before and after. PNG."""
    import io

    import matplotlib.pyplot as plt

    rows, ranks = report.concepts, range(len(report.concepts))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True, layout="constrained")
    nan = float("nan")
    lows = [nan if row.worst is None else row.worst for row in rows]
    highs = [nan if row.best is None else row.best for row in rows]
    top.fill_between(ranks, lows, highs, color="#93c5fd", linewidth=0, step="mid", label="chosen, worst to best")
    top.plot(ranks, [row.commonality for row in rows], color="#1e3a8a", linewidth=1.2, label="commonality")
    top.set(ylabel="cosine to the concept", title=f"{report.num_chosen:,} of {report.num_rows:,} pairs")
    top.legend(frameon=False, loc="upper left")
    for share, style, label in (
        ([row.nearest_of_all / max(1, report.num_rows) for row in rows], "#cbd5e1", "all captions"),
        ([row.nearest_of_chosen / max(1, report.num_chosen) for row in rows], "#2563eb", "chosen"),
    ):
        bottom.step(ranks, [100 * value for value in share], where="mid", color=style, linewidth=1.2, label=label)
    bottom.set(xlabel="concepts, rarest first", ylabel="% nearest to the concept")
    bottom.legend(frameon=False, loc="upper left")
    if len(rows) <= 40:
        bottom.set_xticks(list(ranks), [row.concept for row in rows], rotation=90, fontsize=7)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    # No date in the file: the same report gives the same bytes.
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()
