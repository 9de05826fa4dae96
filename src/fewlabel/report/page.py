"""The report of a run: one HTML file that needs no network, no script and no other file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fewlabel.core.files import write_text
from fewlabel.core.progress import duration
from fewlabel.report.charts import Line, line_chart, loss_chart, parts_chart, validation_chart
from fewlabel.report.contents import (
    DataFacts,
    Example,
    PseudoLabels,
    ReportData,
    RouterWeights,
    RunReport,
    ScoreRow,
    StageTime,
)
from fewlabel.report.detection import roc, size_table
from fewlabel.report.methods import method_name
from fewlabel.report.pictures import pictures
from fewlabel.report.summary import judge, label_warning, sam_line, score

__all__ = [
    "DataFacts",
    "Example",
    "PseudoLabels",
    "ReportData",
    "RouterWeights",
    "ScoreRow",
    "StageTime",
    "build",
    "write",
]

Metric = tuple[str, str, str, bool]
"""Key, name, unit, and whether higher is better."""
METRICS: tuple[Metric, ...] = (
    ("IoU", "IoU", "%", True),
    ("nIoU", "nIoU", "%", True),
    ("hIoU", "hIoU", "%", True),
    ("Pd", "Pd", "%", True),
    ("Fa", "Fa", "per 10⁶ px", False),
)
"""Of students that give a probability for each pixel."""
BOX_METRICS: tuple[Metric, ...] = tuple((key, key, "%", True) for key in ("AP50", "AP", "AR50", "precision", "recall"))
"""Of students that give boxes."""


def build(data: ReportData) -> str:
    """Turn the contents of a report into one HTML page.

    Args:
        data: What the report says.

    Returns:
        The page; a pure function of `data`. All text is escaped, pictures are embedded, nothing is loaded.
    """
    return render(
        "report.html.j2",
        data=data,
        facts=data.facts,
        verdict=judge(data.scores),
        warning=label_warning(data.pseudo_labels),
        sam=sam_line(data.sam),
        scores=score_table(data.scores, BOX_METRICS if data.boxes else METRICS),
        qualities=(*BOX_METRICS, *METRICS) if data.boxes else METRICS,
        sizes=size_table(data.scores, data.pseudo_labels),
        roc=roc(data.scores),
        matchings=sorted({row.matching for row in data.scores}),
        outcomes=outcomes(data.pseudo_labels),
        curves=curves(data),
        router=router(data.router),
        examples=examples(data),
        seconds=sum(stage.seconds for stage in data.stages),
    )


def render(template: str, **values: Any) -> str:
    """A page from one of the templates: all text escaped, nothing undefined."""
    environment = Environment(
        loader=PackageLoader("fewlabel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, number=number)
    return environment.get_template(template).render(**values)


def write(data: ReportData, path: Path) -> None:
    """Write `build(data)` to `path` as UTF-8, atomically."""
    write_text(path, build(data))


def number(value: float | None, digits: int = 1) -> str:
    """A number with `digits` decimals, or a dash for None and values that are not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def score_table(scores: Sequence[ScoreRow], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Rows for the score table, each cell with its share of a bar.

    Args:
        scores: The methods in the order of the table.
        metrics: The columns, the one that methods are compared by first.

    Returns:
        `metrics`: the columns; `rows`: name, method, matching, difference
        in that one to labels only (None where that is unknown or the row itself), and per metric the value (None when
        not measured) and the bar's length in percent: of 100 % for the shares, of the highest value for Fa.
    """
    main = metrics[0][0]
    highest = max((value for row in scores if (value := score(row, "Fa")) is not None), default=0.0)
    base = next((score(row, main) for row in scores if row.method == "labels-only"), None)
    rows = []
    for row in scores:
        cells = []
        for key, _, _, _ in metrics:
            value = score(row, key)
            full = (highest or 1.0) if key == "Fa" else 100.0
            cells.append({"value": value, "bar": 0.0 if value is None else min(max(100 * value / full, 0.0), 100.0)})
        value = score(row, main)
        gain = None if value is None or base is None or row.method == "labels-only" else value - base
        rows.append({"name": row.name, "method": row.method, "matching": row.matching, "gain": gain, "cells": cells})
    return {"metrics": metrics, "rows": rows}


def outcomes(labels: PseudoLabels | None) -> list[dict[str, Any]]:
    """What became of the proposed targets: kind, count and share in percent; empty when nothing was proposed."""
    if labels is None or not labels.proposed:
        return []
    counts = {"accepted": labels.accepted, "ignored": labels.ignored, "rejected": labels.rejected}
    return [{"kind": kind, "count": n, "share": 100 * n / labels.proposed} for kind, n in counts.items()]


def curves(data: RunReport, parts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Charts of each training that logged something.

    Args:
        data: What the report says.
        parts: Terms of the loss that are drawn as well, where they were logged.

    Returns:
        Name, loss chart, chart of the loss's parts with its lines or None, validation chart and its sentence.
    """
    drawn = []
    for name, records in data.curves.items():
        loss, terms = loss_chart(name, records), parts_chart(name, records, parts)
        validation, text = validation_chart(name, records)
        if loss or validation:
            shown = {"name": method_name(name), "loss": loss, "parts": terms}
            drawn.append(shown | {"validation": validation, "text": text})
    return drawn


def router(weights: RouterWeights | None) -> dict[str, Any] | None:
    """Rows of the gate heat map and the chart of the gates' entropy; None when there is no router."""
    if weights is None or not weights.levels:
        return None
    rows = [
        {"level": level, "gate": gate, "weights": [float(value) for value in values]}
        for level, pair in weights.levels.items()
        for gate, values in zip(("image gate", "final gate"), pair, strict=True)
    ]
    lines = [Line(level, points, style=i) for i, (level, points) in enumerate(weights.entropy.items())]
    last: Mapping[str, float] = {line.name: line.points[-1][1] for line in lines if line.points}
    text = "Mean entropy of the final gates, 1 = all experts used alike; last: " + ", ".join(
        f"{name} {value:.2f}" for name, value in last.items()
    )
    chart = line_chart(
        lines,
        description=f"{text}.",
        bounds=(0.0, 1.2),
        reference=("all experts used alike", 1.0),
    )
    return {"experts": weights.experts, "rows": rows, "chart": chart, "lines": lines}


def examples(data: ReportData) -> list[dict[str, Any]]:
    """Pictures of each example: its name, size, enlarged window and panels as plain values."""
    return [pictures(example, data.operators) for example in data.examples]
