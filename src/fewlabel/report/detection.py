"""What the page shows of detection beyond one threshold and one size: Pd by target area, and Pd against Fa."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from fewlabel.metrics.sizes import SizeBin
from fewlabel.report.charts import Line, line_chart
from fewlabel.report.contents import PseudoLabels, ScoreRow
from fewlabel.report.summary import score

ROC_SIZE = (760, 300)
FLOODED = 1e5
"""Fa from which a curve is not drawn: where a tenth of all pixels is false, nothing is found any more."""


def size_table(rows: Sequence[ScoreRow], labels: PseudoLabels | None) -> dict[str, Any] | None:
    """Pd by area of the target, one row per method and one for the pseudo-labels.

    Args:
        rows: Score rows; those without bins are left out.
        labels: The pseudo-labels, whose bins count other targets: those of the unlabelled images.

    Returns:
        `bins`: the headings; `rows`: name, method, and per bin Pd in percent (None without a target), found and
        targets. None where nothing was counted; rows whose bins are not those of the first are left out.
    """
    counted = [(row.name, row.method, row.sizes) for row in rows if row.sizes]
    if labels is not None and labels.quality and (sizes := labels.quality.get("Pd_by_area")):
        counted.append(("Pseudo-labels, on the unlabelled images", "", sizes))
    if not counted:
        return None
    bins = [_extent(one) for one in counted[0][2]]
    kept = [(name, method, sizes) for name, method, sizes in counted if [_extent(one) for one in sizes] == bins]
    table = [{"name": name, "method": method, "cells": [_cell(one) for one in sizes]} for name, method, sizes in kept]
    return {"bins": bins, "rows": table}


def roc(rows: Sequence[ScoreRow]) -> dict[str, Any] | None:
    """Pd against Fa of all methods in one chart, with the point that the score table shows.

    Args:
        rows: Score rows; those without a curve are left out.

    Returns:
        `chart`, its `lines` for a legend, and `free`, whether a curve reaches Fa = 0; None without a curve. Points with
        an Fa above `FLOODED` are left out, unless a method's own lies there.
    """
    lines: list[Line] = []
    for row in rows:
        if row.curve is None:
            continue
        points = [pair for pair in zip(row.curve["Fa"], row.curve["Pd"], strict=True) if _known(*pair)]
        fa, pd = score(row, "Fa"), score(row, "Pd")
        spot = None if fa is None or pd is None else (fa, pd)
        # fewlabel has the accent's colour, the others theirs in the order of the table.
        style = 0 if row.method == "fewlabel" else 1 + sum(line.style > 0 for line in lines)
        lines.append(Line(row.name, points, style=style, spot=spot))
    most = max([FLOODED, *(line.spot[0] for line in lines if line.spot)])
    lines = [replace(line, points=[point for point in line.points if point[0] <= most]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    levels = [y for line in lines for _, y in line.points]
    marked = [f"{line.name} {line.spot[1]:.1f} at {line.spot[0]:.1f}" for line in lines if line.spot]
    chart: Markup = line_chart(
        sorted(lines, key=lambda line: line.style == 0),  # fewlabel on top
        description=f"Pd in percent against Fa per million pixels; at the threshold 0.5: {', '.join(marked)}.",
        x_label="Fa",
        log_x=True,
        bounds=(max(10.0 * math.floor(min(levels) / 10) - 2, -2.0), 102.0),
        size=ROC_SIZE,
    )
    return {"chart": chart, "lines": lines, "free": any(x <= 0 for line in lines for x, _ in line.points)}


def _extent(one: SizeBin) -> str:
    """The areas of a bin."""
    low, high = one["smallest"], one["largest"]
    return f"from {low} px" if high is None else f"{low} to {high} px" if low > 1 else f"up to {high} px"


def _known(*values: float | None) -> bool:
    """Whether all values were measured; JSON has None for what is NaN in Python."""
    return all(value is not None and math.isfinite(value) for value in values)


def _cell(one: SizeBin) -> dict[str, Any]:
    """Pd, and what it was counted from."""
    return {"value": one["Pd"] if one["targets"] else None, "found": one["found"], "targets": one["targets"]}
