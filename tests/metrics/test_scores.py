"""The scores of one pass equal those of the single metrics."""

import math

import numpy as np
import pytest

from fewlabel.core.errors import DataError
from fewlabel.metrics.hierarchical import HierarchicalMetric
from fewlabel.metrics.overlap import OverlapMetric
from fewlabel.metrics.scores import evaluate
from fewlabel.metrics.sizes import SizeMetric
from fewlabel.metrics.targets import TargetMetric


@pytest.mark.parametrize("rule", ["nearest", "legacy"])
def test_equals_the_single_metrics(rule):
    rng = np.random.default_rng(3)
    pairs = [(rng.random((20, 30)) < 0.05, rng.random((20, 30)) < 0.05) for _ in range(4)]
    overlap, targets, hierarchical = OverlapMetric(), TargetMetric(rule), HierarchicalMetric()
    sizes = SizeMetric(edges=(2, 4), matching=rule)
    for pair in pairs:
        overlap.update(*pair)
        targets.update(*pair)
        hierarchical.update(*pair)
        sizes.update(*pair)
    scores = evaluate(iter(pairs), rule)
    bins = scores.pop("Pd_by_area")
    assert scores == {**overlap.compute(), **targets.compute(), "hIoU": hierarchical.compute()["hIoU"]}
    assert [sum(row[key] for row in bins) for key in ("targets", "found")] == sizes.counts.sum(1).tolist()
    assert scores["targets"] > 0 and 0 < scores["Pd"] <= 100


def test_no_images():
    scores = evaluate([])
    assert all(math.isnan(scores[name]) for name in ("IoU", "nIoU", "Pd", "Fa", "hIoU"))
    assert all(math.isnan(row["Pd"]) and row["targets"] == 0 for row in scores["Pd_by_area"])
    assert (scores["images"], scores["targets"], scores["matching"]) == (0, 0, "nearest")


def test_a_bad_pair_stops_the_scoring():
    with pytest.raises(DataError):
        evaluate([(np.zeros((2, 2), bool), np.zeros((2, 3), bool))])


def test_real_truth_scores_itself_perfectly(real_data):
    from PIL import Image

    paths = sorted((real_data / "NUAA-SIRST" / "masks").glob("*.png"))[:40]
    masks = [np.asarray(Image.open(path).convert("L")) > 127 for path in paths]
    scores = evaluate((mask, mask) for mask in masks)
    assert scores["IoU"] == scores["nIoU"] == scores["Pd"] == scores["hIoU"] == 100.0
    assert scores["Fa"] == 0.0 and scores["targets"] >= 40
