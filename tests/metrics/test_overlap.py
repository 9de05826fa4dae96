"""IoU and nIoU against per-pixel loops and hand cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.core.errors import DataError
from fewlabel.metrics.overlap import OverlapMetric, overlap_compute, overlap_update

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
pairs = sizes.flatmap(lambda size: st.tuples(hnp.arrays(bool, size), hnp.arrays(bool, size)))


def reference(images):
    """IoU and nIoU by sets of pixel coordinates."""
    inter = union = 0
    ratios = []
    for prediction, target in images:
        p = {(r, c) for r, row in enumerate(prediction.tolist()) for c, value in enumerate(row) if value}
        t = {(r, c) for r, row in enumerate(target.tolist()) for c, value in enumerate(row) if value}
        inter, union = inter + len(p & t), union + len(p | t)
        ratios.append(len(p & t) / len(p | t) if p | t else 1.0)
    return inter / union * 100 if union else math.nan, sum(ratios) / len(ratios) * 100


@settings(max_examples=100, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=5))
def test_equals_the_reference(images):
    metric = OverlapMetric()
    for prediction, target in images:
        metric.update(prediction, target)
    scores = metric.compute()
    iou, niou = reference(images)
    assert scores["IoU"] == pytest.approx(iou, nan_ok=True)
    assert scores["nIoU"] == pytest.approx(niou)
    assert scores["images"] == len(images)


def test_hand_case():
    prediction, target = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    prediction[0, :3] = True
    target[0, 1:4] = True
    assert overlap_update(prediction, target) == (2, 4)
    # One image 2/4, another 1/1: summed 3/5, mean of ratios 3/4.
    scores = overlap_compute([2, 1], [4, 1])
    assert scores["IoU"] == pytest.approx(60.0)
    assert scores["nIoU"] == pytest.approx(75.0)


def test_empty_image_counts_as_right_and_is_reported():
    scores = overlap_compute([1, 0], [2, 0])
    assert scores["IoU"] == pytest.approx(50.0)
    assert scores["nIoU"] == pytest.approx(75.0)
    assert scores["empty_images"] == 1


def test_false_alarm_on_an_empty_truth_scores_zero():
    prediction, target = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    metric = OverlapMetric()
    metric.update(prediction, target)
    assert metric.compute() == {"IoU": 0.0, "nIoU": 0.0, "images": 1, "empty_images": 0}


def test_nothing_gives_nan_and_a_count():
    scores = OverlapMetric().compute()
    assert math.isnan(scores["IoU"]) and math.isnan(scores["nIoU"]) and scores["images"] == 0
    only_empty = overlap_compute([0], [0])
    assert math.isnan(only_empty["IoU"]) and only_empty["nIoU"] == 100.0


@pytest.mark.parametrize(
    ("prediction", "target", "words"),
    [
        (np.zeros((3, 4), bool), np.zeros((4, 3), bool), "3 x 4 but the true one is 4 x 3"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4), bool), "predicted mask has type uint8"),
        (np.zeros((3, 4), bool), np.zeros((1, 3, 4), bool), "true mask has type bool and shape"),
        (np.zeros((0, 4), bool), np.zeros((0, 4), bool), "at least one pixel"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, target, words):
    with pytest.raises(DataError, match=words):
        OverlapMetric().update(prediction, target)
