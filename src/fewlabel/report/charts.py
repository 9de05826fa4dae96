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
GAP = 0.5
"""Decades between the lowest positive value of a logarithmic axis and its end, which stands for 0."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Name in the legend.
        points: (x, y) in the order in which they are joined; non-finite ones are left out.
        faint: Draw thin and pale, without a place in the legend (raw values under a smoothed line).
        marks: Draw a dot at each point (few, separate measurements).
        style: Colour number of the page, 0 to 5; from 6 on the colours come again, dashed.
        spot: A point to mark with a large dot, on the line or beside it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    marks: bool = False
    style: int = 0
    spot: tuple[float, float] | None = None

    @property
    def look(self) -> str:
        """Classes of the line's elements on the page."""
        return f"s{self.style % 6}{' dashed' if self.style // 6 % 2 else ''}{' faint' if self.faint else ''}"


class Axis:
    """One axis of a chart: from values to pixels, and its ticks."""

    def __init__(
        self,
        values: Sequence[float],
        pixels: tuple[float, float],
        *,
        log: bool = False,
        bounds: tuple[float, float] | None = None,
        margin: float = 0.0,
    ) -> None:
        """Lay an axis over values.

        Args:
            values: Finite values that it has to hold, at least one.
            pixels: Where its low and its high end lie.
            log: Logarithmic. Values that are not positive lie on the low end, half a decade below the lowest positive
                one, and that place is called 0.
            bounds: Lowest and highest value instead of those of `values`.
            margin: Room at both ends, as a share of the extent; none with `bounds`.
        """
        positive = [value for value in values if value > 0] or [1.0]
        low, high = bounds or ((min(positive), max(positive)) if log else (min(values), max(values)))
        if log:
            low, high = math.log10(low), math.log10(high)
        self.log, self.pixels = log, pixels
        self.only = values[0] if min(values) == max(values) and not margin else None
        self.zero = log and bounds is None and min(values) <= 0
        if self.zero:
            low -= GAP
        if not bounds and (margin or high <= low):
            room = (high - low) * margin or abs(high) * 0.05 or 1.0
            low, high = (low if self.zero else low - room), high + room
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Pixel of a value; beyond an end it is the end's."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])

    def ticks(self, count: int = 4) -> list[tuple[float, str]]:
        """Round values inside, about `count` steps on a linear axis, and what to write there."""
        if self.only is not None:
            return [(self.only, _text(self.only))]
        if self.log:
            low = self.low + GAP * self.zero  # what is written into the gap would run into the 0
            bottom, top = 10**low, 10**self.high
            values = _log_ticks(low, self.high) or (ticks(bottom, top, count) if bottom < top else [top])
        else:
            values = ticks(self.low, self.high, count)
        return [(0.0, "0")] * self.zero + [(value, _text(value)) for value in values]


def _text(value: float) -> str:
    """A tick's value in few characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


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
    log_x: bool = False,
    bounds: tuple[float, float] | None = None,
    reference: tuple[str, float] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Markup:
    """Draw lines over a common axis.

    Args:
        lines: The lines.
        description: What the chart shows, for readers who cannot see it.
        x_label: Name under the horizontal axis, a few letters.
        log: Draw y on a logarithmic axis; values that are not positive are left out.
        log_x: Draw x on a logarithmic axis; values that are not positive lie on its left end, which is called 0.
        bounds: Lowest and highest y; None to take them from the values.
        reference: Name and y of a dashed level line.
        size: Width and height in units of the page's pixels; texts keep their size.

    Returns:
        An `<svg>` element, empty when no line has a finite point.
    """
    kept = [(line, [p for p in thin(line.points) if not log or p[1] > 0]) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return Markup("")
    width, height = size
    spots = [line.spot for line, _ in kept if line.spot is not None]
    drawn = [point for _, points in kept for point in points] + spots
    x_axis = Axis([x for x, _ in drawn], (LEFT, width - RIGHT), log=log_x)
    levels = [y for _, y in drawn] + ([reference[1]] if reference else [])
    y_axis = Axis(levels, (height - BOTTOM, TOP), log=log, bounds=bounds, margin=0.05)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">']
    for value, text in y_axis.ticks(max(4, height // 50)):
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for value, text in x_axis.ticks():
        x = x_axis.place(value)
        if log_x:
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        anchor = "end" if x > width - 30 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 10}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text class="tick" x="4" y="{height - 10}">{escape(x_label)}</text>')
    if reference:
        y = y_axis.place(reference[1])
        parts.append(f'<line class="level" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{width - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(reference[0])}</text>'
        )
    for line, points in kept:
        placed = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line {line.look}" points="{path}"/>')
        dots = [(x, y, 2.6) for x, y in placed] if line.marks or len(points) == 1 else []
        if line.spot is not None:
            dots.append((x_axis.place(line.spot[0]), y_axis.place(line.spot[1]), 5.0))
        parts += [f'<circle class="dot {line.look}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>' for x, y, r in dots]
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


def averaged(name: str, records: Sequence[Mapping[str, Any]], key: str, per: str = "", style: int = 0) -> Line:
    """A logged figure over the steps of a training, as its running mean.

    Args:
        name: Name of the line.
        records: Records of a log.jsonl; those without a finite number under `key`, and `per`, are left out.
        key: The figure.
        per: Another figure, by whose running mean that of `key` is divided; where it is 0 there is no point.
        style: Of the line.

    Returns:
        The line; without points where nothing was logged.
    """
    wanted = ("step", key, *((per,) if per else ()))
    rows = [[float(record[one]) for one in wanted] for record in records if all(_has(record, one) for one in wanted)]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    window = max(3, len(rows) // 20)
    steps, values, *others = ([row[place] for row in rows] for place in range(len(wanted)))
    means = smooth(values, window)
    below = smooth(others[0], window) if per else [1.0] * len(means)
    return Line(name, [(x, y / z) for x, y, z in zip(steps, means, below, strict=True) if z], style=style)


def parts_chart(name: str, records: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> dict[str, Any] | None:
    """The terms that the loss of a training is made of, as running means.

    Args:
        name: Name of the training, for the description.
        records: Records of its log.jsonl.
        parts: The terms; those that were not logged are left out.

    Returns:
        `chart` and its `lines` for a legend; None without a term.
    """
    lines = [averaged(part, records, part, style=number) for number, part in enumerate(parts)]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    last = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in lines)
    levels = [y for line in lines for _, y in line.points]
    log = min(levels) > 0 and max(levels) / min(levels) > 10
    chart = line_chart(lines, description=f"Parts of the loss of {name}; last: {last}.", log=log)
    return {"chart": chart, "lines": lines}


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
