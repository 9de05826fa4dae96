"""The scores of one pass equal those of the single metrics."""

import math

import numpy as np
import pytest

from fewlabel.core.errors import DataError
from fewlabel.metrics.overlap import OverlapMetric
from fewlabel.metrics.scores import evaluate
from fewlabel.metrics.targets import TargetMetric


@pytest.mark.parametrize("rule", ["nearest", "legacy"])
def test_equals_the_single_metrics(rule):
    rng = np.random.default_rng(3)
    pairs = [(rng.random((20, 30)) < 0.05, rng.random((20, 30)) < 0.05) for _ in range(4)]
    overlap, targets = OverlapMetric(), TargetMetric(rule)
    for pair in pairs:
        overlap.update(*pair)
        targets.update(*pair)
    scores = evaluate(iter(pairs), rule)
    assert scores == {**overlap.compute(), **targets.compute()}
    assert scores["targets"] > 0 and 0 < scores["Pd"] <= 100


def test_no_images():
    scores = evaluate([])
    assert all(math.isnan(scores[name]) for name in ("IoU", "nIoU", "Pd", "Fa"))
    assert (scores["images"], scores["targets"], scores["matching"]) == (0, 0, "nearest")


def test_a_bad_pair_stops_the_scoring():
    with pytest.raises(DataError):
        evaluate([(np.zeros((2, 2), bool), np.zeros((2, 3), bool))])


def test_real_truth_scores_itself_perfectly(real_data):
    from PIL import Image

    paths = sorted((real_data / "NUAA-SIRST" / "masks").glob("*.png"))[:40]
    masks = [np.asarray(Image.open(path).convert("L")) > 127 for path in paths]
    scores = evaluate((mask, mask) for mask in masks)
    assert scores["IoU"] == scores["nIoU"] == scores["Pd"] == 100.0
    assert scores["Fa"] == 0.0 and scores["targets"] >= 40
