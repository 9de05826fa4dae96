"""Line charts as inline SVG: sharp in print, and coloured by the page's own themes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
POINTS = 300
"""Points kept per line; more are not visible at this width."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Name in the legend.
        points: (x, y) in the order of x; non-finite ones are left out.
        faint: Draw thin and pale, without a place in the legend (raw values under a smoothed line).
        marks: Draw a dot at each point (few, separate measurements).
        style: Colour number of the page, 0 to 5.
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    marks: bool = False
    style: int = 0


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values that divide [low, high] into about `count` steps of 1, 2 or 5 times a power of ten.

    Args:
        low: Lower end.
        high: Upper end, above `low`.
        count: Steps wanted.

    Returns:
        Multiples of the step inside [low, high].
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over up to `window` values; the window shrinks at both ends."""
    half = window // 2
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - half) : i + half + 1])]


def thin(points: Sequence[tuple[float, float]], limit: int = POINTS) -> list[tuple[float, float]]:
    """At most about `limit` evenly chosen finite points, the last one always among them."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= limit:
        return finite
    stride = math.ceil(len(finite) / limit)
    kept = finite[::stride]
    return kept if kept[-1] == finite[-1] else [*kept, finite[-1]]


def line_chart(
    lines: Sequence[Line],
    *,
    description: str,
    x_label: str = "step",
    log: bool = False,
    bounds: tuple[float, float] | None = None,
    reference: tuple[str, float] | None = None,
) -> Markup:
    """Draw lines over a common axis.

    Args:
        lines: The lines.
        description: What the chart shows, for readers who cannot see it.
        x_label: Name under the horizontal axis.
        log: Draw y on a logarithmic axis; values that are not positive are left out.
        bounds: Lowest and highest y; None to take them from the values.
        reference: Name and y of a dashed level line.

    Returns:
        An `<svg>` element, empty when no line has a finite point.
    """
    kept = [(line, [p for p in thin(line.points) if not log or p[1] > 0]) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return Markup("")
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points] + ([reference[1]] if reference else [])
    low, high = bounds or (min(ys), max(ys))
    if log:
        low, high = math.log10(low), math.log10(high)
    if not bounds:
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        low, high = low - margin, high + margin
    first, last = min(xs), max(xs)
    span = (last - first) or 1.0

    def place_x(x: float) -> float:
        return LEFT + (x - first) / span * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        value = math.log10(y) if log else y
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">']
    for value in _log_ticks(low, high) if log else ticks(low, high):
        y = place_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(first, last) if last > first else [first]:
        anchor = "end" if place_x(value) > WIDTH - 30 else "middle"
        parts.append(
            f'<text class="tick" x="{place_x(value):.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{value:,.0f}</text>'
        )
    parts.append(f'<text class="tick" x="4" y="{HEIGHT - 10}">{escape(x_label)}</text>')
    if reference:
        y = place_y(reference[1])
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(reference[0])}</text>'
        )
    for line, points in kept:
        colour = f"s{line.style % 6}{' faint' if line.faint else ''}"
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        if line.marks or len(points) == 1:
            parts += [
                f'<circle class="dot {colour}" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.6"/>' for x, y in points
            ]
    parts.append("</svg>")
    return Markup("".join(parts))


def _log_ticks(low: float, high: float) -> list[float]:
    """Values for a logarithmic axis between 10^low and 10^high: powers of ten, and 2 and 5 times them when few."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 2.5 else (1, 2, 5)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in values if value > 0 and low <= math.log10(value) <= high]


def loss_chart(name: str, records: Sequence[Mapping[str, Any]]) -> Markup:
    """The total loss of one training over its steps: raw values pale, their running mean in front.

    Args:
        name: Name of the training, for the description.
        records: Records of its log.jsonl; those without a finite `loss` are left out.

    Returns:
        An `<svg>` element, empty when there is nothing to draw. The axis is logarithmic when the loss fell tenfold.
    """
    points = [(float(r["step"]), float(r["loss"])) for r in records if _has(r, "step") and _has(r, "loss")]
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return Markup("")
    values = [y for _, y in points]
    mean = smooth(values, max(3, len(values) // 20))
    text = (
        f"Loss of {name} from {mean[0]:.3g} at step {points[0][0]:,.0f} to {mean[-1]:.3g} at step {points[-1][0]:,.0f}."
    )
    raw = Line("loss", points, faint=True)
    front = Line("running mean", [(x, y) for (x, _), y in zip(points, mean, strict=True)])
    return line_chart([raw, front], description=text, log=min(values) > 0 and max(values) / min(values) > 10)


def validation_chart(name: str, records: Sequence[Mapping[str, Any]]) -> tuple[Markup, str]:
    """The validation score of one training over its steps.

    Args:
        name: Name of the training, for the description.
        records: Records of its log.jsonl; those with a `val` mapping count, by `IoU` or else by their first number.

    Returns:
        An `<svg>` element and a sentence with the best value; both empty when no validation was logged.
    """
    rows = [(float(r["step"]), r["val"]) for r in records if _has(r, "step") and isinstance(r.get("val"), Mapping)]
    names = [key for _, values in rows for key, value in values.items() if isinstance(value, int | float)]
    if not names:
        return Markup(""), ""
    key = "IoU" if "IoU" in names else names[0]
    points = [(step, float(values[key])) for step, values in rows if key in values]
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return Markup(""), ""
    step, value = max(points, key=lambda point: point[1])
    text = f"Highest validation {key} {value:.4g} at step {step:,.0f}, last {points[-1][1]:.4g}."
    chart = line_chart([Line(key, points, marks=len(points) <= 40, style=1)], description=f"{name}. {text}")
    return chart, text


def _has(record: Mapping[str, Any], key: str) -> bool:
    """Whether `record` holds a number under `key`."""
    return isinstance(record.get(key), int | float)
