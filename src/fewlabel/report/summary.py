"""The sentences at the top of a report: what the scores say, and what they do not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewlabel.report.contents import PseudoLabels, ScoreRow

LEVEL = 0.05
"""Differences below this many points vanish in the one decimal that the page shows."""
OTHERS = {
    "IoU": (
        ("nIoU", 1, "\u00a0%", "nIoU"),
        ("Pd", 1, "\u00a0%", "the share of targets found (Pd)"),
        ("Fa", -1, " per million pixels", "the false alarms (Fa)"),
    ),
    "AP50": (
        ("AP", 1, "\u00a0%", "AP"),
        ("recall", 1, "\u00a0%", "recall"),
        ("precision", 1, "\u00a0%", "precision"),
    ),
    "AP": (
        ("AP50", 1, "\u00a0%", "AP50"),
        ("AP75", 1, "\u00a0%", "AP75"),
        ("boundary_AP", 1, "\u00a0%", "boundary AP"),
    ),
}
"""By the main metric: key, sign (1 where higher is better), unit and name of those that may tell another story."""


@dataclass(frozen=True)
class Difference:
    """fewlabel against one other row.

    Attributes:
        name: Name of the other row.
        other: Main metric of the other row in percent.
        gain: That of fewlabel minus it, in points.
    """

    name: str
    other: float
    gain: float


@dataclass(frozen=True)
class Verdict:
    """What the scores say.

    Attributes:
        tone: `better`, `worse` or `level` against labels only; `unknown` when one of the two was not measured.
        headline: One sentence.
        details: Further sentences: rivals, the other metrics, the gap to all labels, the caution about one seed.
        metric: The main metric: `IoU`, `AP50` of students that give boxes, `AP` of those that give objects.
        value: That of fewlabel in percent, or None.
        differences: fewlabel against each other row that has it.
    """

    tone: str
    headline: str
    details: tuple[str, ...]
    metric: str
    value: float | None
    differences: tuple[Difference, ...]


def score(row: ScoreRow | None, metric: str) -> float | None:
    """The value of `metric` in `row`, or None when there is no row, no such metric or no finite value."""
    value = None if row is None else row.metrics.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def main_metric(rows: Sequence[ScoreRow]) -> str:
    """What methods are compared by: `AP` of objects, `AP50` where the students give boxes, else `IoU`."""
    if any("boundary_AP" in row.metrics for row in rows):
        return "AP"
    return "AP50" if any("AP50" in row.metrics for row in rows) else "IoU"


def judge(rows: Sequence[ScoreRow], rivals: Sequence[str] = ()) -> Verdict:
    """Compare `fewlabel` with the other rows, by the main metric on the test images.

    Args:
        rows: Score rows; of rows with the same method the first counts.
        rivals: Methods that get a sentence of their own, whoever is higher.

    Returns:
        The verdict. It is `better` or `worse` only when the difference to `labels-only` shows in one decimal.
    """
    by_method: dict[str, ScoreRow] = {}
    for row in rows:
        by_method.setdefault(row.method, row)
    ours, base, full = (by_method.get(method) for method in ("fewlabel", "labels-only", "all-labels"))
    metric = main_metric(rows)
    value, low, high = score(ours, metric), score(base, metric), score(full, metric)
    differences = () if value is None else _differences(metric, value, rows)
    if value is None:
        return Verdict("unknown", "This run holds no score of a fewlabel student.", (), metric, None, differences)
    others = _rivals(metric, by_method, rivals, value)
    if ours is None or base is None or low is None:
        text = (
            f"The fewlabel student reached an {metric} of {value:.1f}\u00a0%; without a student trained on the labels "
            "only, nothing can be said about the gain."
        )
        return Verdict("unknown", text, tuple(others), metric, value, differences)

    gain = value - low
    values = f"({value:.1f}\u00a0% against {low:.1f}\u00a0%)"
    if abs(gain) < LEVEL:
        tone = "level"
        text = f"fewlabel did not beat training on the labels only: their {metric} is level {values}."
    elif gain > 0:
        tone = "better"
        text = f"fewlabel beat training on the labels only by {gain:.1f} points of {metric} {values}."
    else:
        tone = "worse"
        text = f"fewlabel did not beat training on the labels only: it lost {-gain:.1f} points of {metric} {values}."
    details = [*others, *_other_metrics(metric, ours, base, gain)]
    details += _other_baselines(metric, by_method, value, rivals)
    if high is not None and high - low >= LEVEL and gain >= LEVEL:
        if value < high:
            details.append(
                f"That is {100 * gain / (high - low):.0f}\u00a0% of the way from the labels only to all labels."
            )
        else:
            details.append(f"It also reached the student that was trained on all labels ({high:.1f}\u00a0%).")
    elif high is not None:
        details.append(f"The student that was trained on all labels reached {high:.1f}\u00a0%.")
    details.append(
        "This is one split and one seed: how far such a difference moves between seeds cannot be seen from one run."
    )
    return Verdict(tone, text, tuple(details), metric, value, differences)


def _differences(metric: str, value: float, rows: Sequence[ScoreRow]) -> tuple[Difference, ...]:
    """Main metric of fewlabel against each other row that has one."""
    pairs = [(row.name, score(row, metric)) for row in rows if row.method != "fewlabel"]
    return tuple(Difference(name, other, value - other) for name, other in pairs if other is not None)


def _other_metrics(main: str, ours: ScoreRow, base: ScoreRow, gain: float) -> list[str]:
    """Say where another metric tells a different story from the main one; nothing when all agree."""
    if ours.matching != base.matching:
        return ["Pd and Fa of the two were measured with different matching rules and cannot be compared."]
    against = []
    for metric, sign, unit, noun in OTHERS[main]:
        new, old = score(ours, metric), score(base, metric)
        if new is None or old is None or round(new, 1) == round(old, 1):
            continue
        if sign * (new - old) * (gain if abs(gain) >= LEVEL else 1) < 0:
            verb = "rose" if new > old else "fell"
            against.append(f"{noun} {verb} from {old:.1f} to {new:.1f}{unit}")
    if not against:
        return []
    worse = gain > -LEVEL
    return [f"{'Not everything improved' if worse else 'Not everything got worse'}: {'; '.join(against)}."]


def _rivals(metric: str, by_method: dict[str, ScoreRow], rivals: Sequence[str], value: float) -> list[str]:
    """How far fewlabel is from each of some methods."""
    sentences = []
    for row in (by_method[method] for method in rivals if method in by_method):
        if (other := score(row, metric)) is None:
            continue
        gain = value - other
        points = f"{abs(gain):.1f} points {'above' if gain > 0 else 'below'}" if abs(gain) >= LEVEL else "level with"
        sentences.append(f"{row.name} reached {other:.1f}\u00a0%: fewlabel is {points} it.")
    return sentences


def _other_baselines(
    metric: str, by_method: dict[str, ScoreRow], value: float, rivals: Sequence[str] = ()
) -> list[str]:
    """Name each further row, all labels and those with a sentence apart, that did better than fewlabel."""
    skipped = {"fewlabel", "labels-only", "all-labels", *rivals}
    better = [
        f"{row.name} ({other:.1f}\u00a0%)"
        for method, row in by_method.items()
        if method not in skipped and (other := score(row, metric)) is not None and other - value >= LEVEL
    ]
    return [f"Higher than fewlabel: {', '.join(better)}."] if better else []


def label_warning(labels: PseudoLabels | None) -> str:
    """Say that no pseudo-label holds a target, which no score shows; nothing where one does."""
    if labels is None or not labels.images or labels.accepted:
        return ""
    images = f"{labels.images} unlabelled image{'s' if labels.images > 1 else ''}"
    if labels.proposed:
        found = f"the gate accepted none of the {labels.proposed} targets that the teacher proposed in {images}"
        what = "look at the gate's reasons, or train the teacher longer"
    else:
        found = f"the teacher proposed no target in {images}"
        what = "train the teacher longer, label more images, or lower label.threshold"
    return f"{found}, so no pseudo-label shows fewlabel's student a target; {what}."


def sam_line(name: str) -> str:
    """Say which SAM was adapted, so that nobody takes results of the embedded one for those of Meta's."""
    if name.lower().startswith("nano"):
        return (
            f"SAM of this run: {name}. It is nano-SAM, the small promptable model that comes with fewlabel; every "
            "result on this page is a result of nano-SAM and says nothing about Meta's SAM."
        )
    return f"SAM of this run: {name}."
