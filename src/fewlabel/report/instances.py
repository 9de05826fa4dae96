"""The report of a run of instance segmentation: one HTML file that needs no network, no script and no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewlabel.core.files import write_text
from fewlabel.report.charts import Line, averaged, line_chart
from fewlabel.report.contents import RunReport
from fewlabel.report.methods import method_name
from fewlabel.report.objects import ObjectPicture, draw
from fewlabel.report.page import Metric, curves, render, score_table
from fewlabel.report.summary import Verdict, judge, sam_line

METRICS: tuple[Metric, ...] = (
    ("AP", "AP", "%", True),
    ("AP50", "AP50", "%", True),
    ("AP75", "AP75", "%", True),
    ("AP_small", "AP small", "%", True),
    ("AP_medium", "AP medium", "%", True),
    ("AP_large", "AP large", "%", True),
    ("boundary_AP", "boundary AP", "%", True),
)
"""Columns of the score table; methods are compared by the first."""
RIVALS = ("guided-distillation", "smaller")
"""Methods that the summary compares fewlabel with in a sentence of their own, besides labels only and all labels."""
PARTS = ("class", "mask", "dice", "similarity", "unlabelled")
"""Terms of the loss that are drawn."""
NAMED = 12
"""Most classes that are named at the top."""
OPEN = 20
"""Most classes whose table is unfolded."""
END = 5
"""The end of a training is its last fifth."""
FIGURES = (
    ("pseudo", "", "Pseudo-labels per image", "the teacher's objects that pass the filter", None),
    ("accepted", "pseudo", "Share accepted", "pseudo-labels whose mask became SAM's", (0.0, 1.05)),
    ("agreement", "pseudo", "Mean IoU with the teacher's mask", "of SAM's mask, accepted or not", (0.0, 1.05)),
)
"""What is drawn of the guidance: key of the log, what it is divided by, title, meaning, and ends of the axis."""


@dataclass(frozen=True)
class InstanceReport(RunReport):
    """Everything that the report of objects shows; `sam` is empty where no part asked one.

    Attributes:
        classes: Names of the classes by id.
        ships: The method whose network ships: `fewlabel` or `smaller`.
        refined: Trainings, by the names of `curves`, whose pseudo-labels SAM refined.
        burn_in: Steps for which the teacher of stage 1 stays.
        unlabelled: Unlabelled images with what the teacher says of them, and what refinement makes of that.
        test: Test images with what the network that ships finds.
    """

    classes: Sequence[str] = ()
    ships: str = "fewlabel"
    refined: Sequence[str] = ()
    burn_in: int = 0
    unlabelled: Sequence[ObjectPicture] = ()
    test: Sequence[ObjectPicture] = ()


def build(data: InstanceReport) -> str:
    """Turn the contents of a report into one HTML page that loads nothing; a pure function of `data`."""
    guided = guidance(data)
    return render(
        "instances.html.j2",
        data=data,
        facts=data.facts,
        verdict=verdict(data),
        warning=warning(guided),
        sam=sam_line(data.sam) if data.sam else "No part of this run asked a SAM.",
        facts_more=[("classes", len(data.classes))] if data.classes else [],
        named=data.classes if 1 < len(data.classes) <= NAMED else (),
        scores=score_table(data.scores, METRICS),
        classes=class_table(data),
        unfolded=len(data.classes) <= OPEN,
        curves=curves(data, PARTS),
        guided=guided,
        ships=method_name(data.ships),
        pictures={
            "unlabelled": [draw(picture, data.classes) for picture in data.unlabelled],
            "test": [draw(picture, data.classes) for picture in data.test],
        },
        seconds=sum(stage.seconds for stage in data.stages),
    )


def write(data: InstanceReport, path: Path) -> None:
    """Write `build(data)` to `path` as UTF-8, atomically."""
    write_text(path, build(data))


def verdict(data: InstanceReport) -> Verdict:
    """What the scores say, or that there are none because there is no test list."""
    if not data.scores and not data.facts.test:
        text = "The data set has no test list, so no network was scored and nothing can be said about the gain."
        return Verdict("unknown", text, (), METRICS[0][0], None, ())
    return judge(data.scores, RIVALS)


def class_table(data: InstanceReport) -> dict[str, Any] | None:
    """AP of each class by each method.

    Args:
        data: What the report says.

    Returns:
        `methods`: name and method of the columns; `rows`: name of the class, its objects in the test images (None where
        not counted), and AP of each method (None where not measured). None with fewer than two classes or no scores.
    """
    rows = [row for row in data.scores if len(row.by_class) == len(data.classes)]
    if len(data.classes) < 2 or not rows:
        return None
    table = []
    for number, name in enumerate(data.classes):
        kinds = [row.by_class[number] for row in rows]
        table.append({"name": name, "objects": kinds[0].get("instances"), "values": [kind.get("AP") for kind in kinds]})
    return {"methods": [(row.name, row.method) for row in rows], "rows": table}


def guidance(data: InstanceReport) -> dict[str, Any] | None:
    """What became of the pseudo-labels over each training that had some.

    Args:
        data: What the report says.

    Returns:
        `charts`: title, meaning and picture of each figure; `lines` for a legend; `rows`: name, method and, over the
        last fifth of its training, the figures (None where not measured). None where nothing was guided.
    """
    guided = {name: records for name, records in data.curves.items() if any("pseudo" in record for record in records)}
    if not guided:
        return None
    styles = {name: number for number, name in enumerate(sorted(guided, key=lambda name: name != "fewlabel"))}
    charts: list[dict[str, Any]] = []
    legend: list[Line] = []
    for key, per, title, meaning, bounds in FIGURES:
        names = [name for name in guided if not per or name in data.refined]
        lines = [averaged(method_name(name), guided[name], key, per, styles[name]) for name in names]
        lines = [line for line in lines if line.points]
        legend = legend or lines
        if lines:
            last = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in lines)
            chart = line_chart(lines, description=f"{title}, {meaning}; last: {last}.", bounds=bounds)
            charts.append({"title": title, "meaning": meaning, "chart": chart})
    rows = [_end(name, records, name in data.refined) for name, records in guided.items()]
    return {"charts": charts, "lines": sorted(legend, key=_style), "rows": rows}


def _style(line: Line) -> int:
    return line.style


def _end(name: str, records: Sequence[Mapping[str, Any]], refined: bool) -> dict[str, Any]:
    """Figures of the last fifth of a training: pseudo-labels per image, share accepted, mean IoU with the teacher's."""
    logged = [record for record in records if "pseudo" in record]
    last = logged[-max(1, len(logged) // END) :]
    proposed, accepted, agreement = (sum(record[key] for record in last) for key in ("pseudo", "accepted", "agreement"))
    shares = [total / proposed if refined and proposed else None for total in (accepted, agreement)]
    return {
        "name": method_name(name),
        "method": name,
        "pseudo": proposed / len(last),
        "accepted": None if shares[0] is None else 100 * shares[0],
        "agreement": shares[1],
    }


def warning(guided: Mapping[str, Any] | None) -> str:
    """Name trainings whose teacher proposed nothing any more, which no score shows; nothing where all did."""
    silent = [row["name"] for row in guided["rows"] if row["pseudo"] == 0] if guided is not None else []
    if not silent:
        return ""
    return (
        f"in the last fifth of the training of {' and of '.join(silent)} the teacher proposed no object in unlabelled"
        " images, so the student learned nothing from them but that they are empty: lower"
        " student.filter.class_threshold, train the teacher longer, or label more images."
    )
