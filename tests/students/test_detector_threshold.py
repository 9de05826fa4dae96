import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.metrics.boxes import BoxMetric
from fewlabel.students.detector.predict import Detections
from fewlabel.students.detector.threshold import UNKNOWN, OperatingPoint, choose_threshold, finds

Pairs = list[tuple[Detections, np.ndarray]]


def detections(rows: list[tuple[float, float, float, float, float]]) -> Detections:
    """Boxes and scores by falling score."""
    table = np.array(sorted(rows, key=lambda row: -row[4]), np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def at(x: float, score: float) -> tuple[float, float, float, float, float]:
    """A box of 4 x 4 pixels at a column."""
    return (x, 0, x + 4, 4, score)


TRUE = np.array([[0, 0, 4, 4], [20, 0, 24, 4]], np.float32)


def test_a_target_is_found_once_and_by_half_its_box() -> None:
    found = detections([at(0, 0.9), at(1, 0.8), at(21, 0.7), at(22, 0.6), at(50, 0.5)])
    assert finds(found, TRUE).tolist() == [True, False, True, False, False]
    assert finds(found, TRUE[:0]).tolist() == [False] * 5
    assert finds(detections([]), TRUE).shape == (0,)


@st.composite
def some_pairs(draw) -> Pairs:
    """Images with targets in a row and detections at and beside them, with few different scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        true = np.array([at(12 * k, 0)[:4] for k in range(rng.integers(0, 4))], np.float32).reshape(-1, 4)
        places = [12 * rng.integers(0, 5) + rng.integers(0, 3) for _ in range(rng.integers(0, 7))]
        pairs.append((detections([at(x, rng.integers(1, 8) / 8) for x in places]), true))
    return pairs


def f1_at(pairs: Pairs, threshold: float) -> float:
    point = OperatingPoint(threshold)
    for found, true in pairs:
        point.update(found, true)
    scores = point.compute()
    if not scores["precision"] > 0:
        return 0.0
    return 2 * scores["precision"] * scores["recall"] / (scores["precision"] + scores["recall"])


@settings(max_examples=80, deadline=None)
@given(some_pairs())
def test_the_threshold_is_the_middle_of_the_widest_range_of_the_best_f1(pairs: Pairs) -> None:
    """Brute force: F1 between any two neighbouring scores of a fine grid."""
    chosen = choose_threshold(iter(pairs))
    assert (chosen.images, chosen.targets) == (len(pairs), sum(len(true) for _, true in pairs))
    steps = [f1_at(pairs, k / 8 + 1 / 16) for k in range(8)]  # all scores are eighths
    best = max(steps)
    if best == 0:
        assert (chosen.value, chosen.F1) == (UNKNOWN, None)
        return
    assert chosen.F1 == pytest.approx(best) == pytest.approx(f1_at(pairs, chosen.value))
    present = sorted({0.0, 1.0, *(float(score) for found, _ in pairs for score in found.scores)})
    ranges = [(low, high) for low, high in pairwise(present) if f1_at(pairs, (low + high) / 2) > best - 1e-9]
    widest = max(high - low for low, high in ranges)
    assert any(chosen.value == pytest.approx((low + high) / 2) for low, high in ranges if high - low > widest - 1e-9)


@settings(max_examples=40, deadline=None)
@given(some_pairs())
def test_recall_of_all_boxes_is_that_of_coco(pairs: Pairs) -> None:
    metric, point = BoxMetric(), OperatingPoint(0.0)
    for found, true in pairs:
        metric.update(found.boxes, found.scores, true)
        point.update(found, true)
    expected = metric.compute()["AR50"]
    got = point.compute()["recall"]
    assert got == pytest.approx(expected) or (math.isnan(got) and math.isnan(expected))


def test_precision_and_recall_count_only_what_is_above_the_threshold() -> None:
    point = OperatingPoint(0.5)
    point.update(detections([at(0, 0.9), at(50, 0.8), at(60, 0.7), at(20, 0.5)]), TRUE)
    assert point.compute() == {"precision": pytest.approx(100 / 3), "recall": 50.0}
    empty = OperatingPoint(0.5).compute()
    assert math.isnan(empty["precision"]) and math.isnan(empty["recall"])


def test_without_anything_found_there_is_nothing_to_choose() -> None:
    for pairs in ([], [(detections([]), TRUE)], [(detections([at(50, 0.9)]), TRUE)]):
        chosen = choose_threshold(pairs)
        assert (chosen.value, chosen.F1) == (UNKNOWN, None)
