"""Line charts as inline SVG: no network, no script, no plotting library, and colours that follow the page.

`curves_of(history)` picks the terms out of a Trainer's log history, `line_chart(curve)` draws one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 30  # room for the axes, in SVG units

TITLES = {
    "loss": "total loss",
    "lm_loss": "next-token loss (lm)",
    "vm_loss": "visual-word loss (vm)",
    "kl": "KL between visual words and language model",
    "visual_word_entropy": "entropy of the visual words, nats",
    "accuracy": "share of answers right",
}
# What a Trainer logs beside the terms: the clock and the optimiser.
NOT_A_TERM = re.compile(
    r"step|epoch|learning_rate.*|grad_norm|total_flos|num_input_tokens_seen|train_.*|(.*_)?runtime|.*_per_second"
)

Points = list[tuple[float, float]]  # (step, value) in order


@dataclass
class Curve:
    """One term over the steps of a stage: as logged in training, and on held-out rows if there was an evaluation."""

    name: str
    training: Points = field(default_factory=list)
    held_out: Points = field(default_factory=list)
    num_not_finite: int = 0  # values that were NaN or infinite, and are a gap in the line

    @property
    def title(self) -> str:
        """The term in words, or its own name if it is not one of the known ones."""
        return TITLES.get(self.name, self.name.replace("_", " "))


def curves_of(history: Sequence[dict]) -> list[Curve]:
    """Every term of a Trainer's log history as a curve; `eval_x` is the held-out side of `x`. Order: first logged."""
    curves: dict[str, Curve] = {}
    for entry in history:
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or NOT_A_TERM.fullmatch(name) or "step" not in entry:
                continue
            curve = curves.setdefault(name, Curve(name))
            points = curve.training if name == key else curve.held_out
            points.append((float(entry["step"]), float(value)))
            curve.num_not_finite += not math.isfinite(value)
    return list(curves.values())


def line_chart(curve: Curve) -> str:
    """The curve as an SVG element with axes; training is a line, held-out a dashed line with dots."""
    points = [(x, y) for x, y in curve.training + curve.held_out if math.isfinite(y)]
    if not points:
        return '<p class="soft">No finite value was logged.</p>'
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points), 5)
    y_ticks = nice_ticks(*_value_range([y for _, y in points]), 4)
    x_range = (min(x for x, _ in points), max(x for x, _ in points))
    y_range = (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * _share(x, x_range),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(y, y_range),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_in_words(curve))}">']
    for y in y_ticks:
        height = place(x_range[0], y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">{format_number(y)}</text>')
    for x in x_ticks:
        if x_range[0] <= x <= x_range[1]:
            across = place(x, y_range[0])[0]
            parts.append(
                f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{format_number(x)}</text>'
            )
    parts.append(_line(curve.training, place, "training", dots=len(curve.training) == 1))
    parts.append(_line(curve.held_out, place, "held-out", dots=True))
    return "".join(parts) + "</svg>"


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, evenly spaced, from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def format_number(value: float) -> str:
    """A number as a reader wants it: 1,500 and 0.025 rather than 1500.0 and 2.5e-02."""
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e7):
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _value_range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # From zero, so that half as high is half as much, unless all of the change would be lost at the top.
    return (0.0, high) if 0 <= low < 0.7 * high else (low, high)


def _share(value: float, ends: tuple[float, float]) -> float:
    return 0.5 if ends[1] == ends[0] else (value - ends[0]) / (ends[1] - ends[0])


def _line(points: Points, place: Callable[[float, float], tuple[float, float]], kind: str, *, dots: bool) -> str:
    path, is_open = "", False
    for x, y in points:
        if not math.isfinite(y):
            is_open = False
            continue
        across, height = place(x, y)
        path += f"{'L' if is_open else 'M'}{across:.1f} {height:.1f}"
        is_open = True
    drawn = [(x, y) for x, y in points if math.isfinite(y)]
    marks = "".join(
        f'<circle class="{kind}" cx="{place(x, y)[0]:.1f}" cy="{place(x, y)[1]:.1f}" r="3">'
        f"<title>step {format_number(x)}: {format_number(y)}</title></circle>"
        for x, y in (drawn if dots else [])
    )
    return f'<path class="{kind}" d="{path}"/>{marks}' if path else ""


def _in_words(curve: Curve) -> str:
    sides = [
        f"{name} {format_number(points[0][1])} at step {format_number(points[0][0])}, "
        f"{format_number(points[-1][1])} at step {format_number(points[-1][0])}"
        for name, points in (("training", curve.training), ("held-out", curve.held_out))
        if points
    ]
    return f"{curve.title}: {'; '.join(sides)}"
