"""Pd by area and Pd against Fa: every value on the page is one that was measured."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np

from fewlabel.metrics.roc import RocMetric
from fewlabel.metrics.scores import evaluate
from fewlabel.report.contents import PseudoLabels, ReportData, ScoreRow
from fewlabel.report.detection import ROC_SIZE, roc, size_table


def measured(method: str, seed: int) -> ScoreRow:
    """Scores of random maps, from the metrics themselves."""
    rng = np.random.default_rng(seed)
    images = [(rng.random((40, 40)), rng.random((40, 40)) < 0.01) for _ in range(3)]
    curve = RocMetric((0.5, 0.9, 0.99, 0.9999))
    for scores, truth in images:
        curve.update(scores, truth)
    masks = [(scores > 0.5, truth) for scores, truth in images]
    return ScoreRow.from_scores(method, {**evaluate(masks), "roc": curve.compute()})


def test_bins_are_those_that_were_counted() -> None:
    row = measured("fewlabel", 0)
    labels = PseudoLabels(3, 1, 0, 0, quality={"Pd_by_area": row.sizes})
    table = size_table([ScoreRow("labels-only", {}), row], labels)
    assert table is not None and table["bins"] == ["up to 9 px", "10 to 25 px", "26 to 81 px", "from 82 px"]
    assert [line["method"] for line in table["rows"]] == ["fewlabel", ""]
    for line in table["rows"]:
        assert sum(cell["targets"] for cell in line["cells"]) == row.metrics["targets"]
        assert [cell["value"] is None for cell in line["cells"]] == [cell["targets"] == 0 for cell in line["cells"]]
    assert size_table([ScoreRow("labels-only", {})], None) is None
    other = ScoreRow("other", {}, sizes=row.sizes[:2])
    counted = size_table([row, other], None)
    assert counted is not None and len(counted["rows"]) == 1


def test_the_large_dot_is_the_score_of_the_table() -> None:
    rows = [measured("labels-only", 1), measured("fewlabel", 2)]
    drawn = roc(rows)
    assert drawn is not None
    assert [line.spot for line in drawn["lines"]] == [(row.metrics["Fa"], row.metrics["Pd"]) for row in rows]
    assert [line.style for line in drawn["lines"]] == [1, 0]  # fewlabel in the accent's colour
    assert all(line.spot in line.points for line in drawn["lines"])  # flooded as it is, the curve goes through it
    tree = ElementTree.fromstring(str(drawn["chart"]))
    dots = [item for item in tree.iter("circle") if item.get("r") == "5.0"]
    assert len(dots) == 2 and "dot s0" in str(dots[-1].get("class"))  # fewlabel on top
    for polyline in tree.iter("polyline"):
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", polyline.get("points", "")):
            assert 0 <= float(x) <= ROC_SIZE[0] and 0 <= float(y) <= ROC_SIZE[1]


def test_flooded_images_are_left_out_where_no_score_lies_there(report_data: ReportData) -> None:
    (row, *_) = report_data.scores
    assert row.curve is not None
    curve = row.curve | {"Fa": [400_000.0, *row.curve["Fa"][1:]]}
    drawn = roc([replace(row, curve=curve)])
    assert drawn is not None and len(drawn["lines"][0].points) == len(row.curve["Fa"]) - 1
    drawn = roc([replace(row, curve=curve, metrics={"Fa": 400_000.0, "Pd": row.curve["Pd"][0]})])
    assert drawn is not None and len(drawn["lines"][0].points) == len(row.curve["Fa"])


def test_undefined_points_are_left_out(report_data: ReportData) -> None:
    undefined = {"thresholds": [0.5, 0.9], "Pd": [None, math.nan], "Fa": [1.0, 2.0]}
    row = ScoreRow.from_scores("fewlabel", {"roc": undefined | {"matching": "nearest", "images": 1, "targets": 0}})
    assert roc([row]) is None and roc([ScoreRow("fewlabel", {"Pd": 1.0})]) is None
    drawn = roc([row, *report_data.scores])
    assert drawn is not None and len(drawn["lines"]) == len(report_data.scores) and drawn["free"]
