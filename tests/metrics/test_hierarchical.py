"""hIoU against all possible matchings of small pictures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.metrics.hierarchical import HierarchicalMetric, assign, hierarchical_update, overlaps

points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5, unique=True)


@st.composite
def mask_pairs(draw):
    """A true mask and one that resembles it: moved, and with pixels changed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    truth = rng.random(size) < draw(st.sampled_from([0.1, 0.25, 0.4]))
    moved = np.roll(truth, draw(st.integers(0, 2)), axis=1)
    return moved ^ (rng.random(size) < draw(st.sampled_from([0, 0.1]))), truth


def matchings(rows, columns):
    """All one-to-one matchings of two small sets, as lists of pairs."""
    for size in range(min(len(rows), len(columns)) + 1):
        for chosen in itertools.combinations(rows, size):
            for partners in itertools.permutations(columns, size):
                yield list(zip(chosen, partners, strict=True))


@settings(max_examples=150, deadline=None)
@given(points, points, st.sampled_from([1.5, 3.0, 5.0]))
def test_assignment_is_the_best_of_all(targets, detections, distance):
    a, b = np.array(targets, float).reshape(-1, 2), np.array(detections, float).reshape(-1, 2)
    found = assign(a, b, distance)

    def cost(pairs):
        return sum(math.dist(a[t], b[d]) for t, d in pairs)

    allowed = [
        pairs
        for pairs in matchings(range(len(a)), range(len(b)))
        if all(round(math.dist(a[t], b[d]), 9) < distance for t, d in pairs)
    ]
    best = min(allowed, key=lambda pairs: (-len(pairs), cost(pairs)))
    assert sorted(set(found)) == sorted(found) and found in [sorted(pairs) for pairs in allowed]
    assert len(found) == len(best) and cost(found) == pytest.approx(cost(best), abs=1e-7)


def sets(mask):
    labels, count = components(mask)
    return [frozenset(zip(*np.nonzero(labels == k + 1), strict=True)) for k in range(count)]


@settings(max_examples=150, deadline=None)
@given(mask_pairs())
def test_equals_the_reference(pair):
    prediction, truth = pair
    targets, detections = sets(truth), sets(prediction)
    ious = {(t, d): len(a & b) / len(a | b) for t, a in enumerate(targets) for d, b in enumerate(detections)}
    certain = [pair for pair, iou in ious.items() if iou >= 0.5]
    assert len({t for t, _ in certain}) == len({d for _, d in certain}) == len(certain)
    rest = [
        [k for k in range(len(group)) if k not in {pair[side] for pair in certain}]
        for side, group in enumerate((targets, detections))
    ]
    centres = [[np.mean(sorted(group), axis=0) for group in groups] for groups in (targets, detections)]
    near = assign(
        np.array([centres[0][t] for t in rest[0]]).reshape(-1, 2),
        np.array([centres[1][d] for d in rest[1]]).reshape(-1, 2),
    )
    pairs = certain + [(rest[0][t], rest[1][d]) for t, d in near]
    counts = hierarchical_update(prediction, truth)
    assert (counts.targets, counts.detections, counts.matched) == (len(targets), len(detections), len(pairs))
    assert counts.overlap == pytest.approx(sum(ious[pair] for pair in pairs))


@settings(max_examples=60, deadline=None)
@given(mask_pairs())
def test_overlaps_are_those_of_sets(pair):
    (a, n), (b, m) = components(pair[0]), components(pair[1])
    first, second = sets(pair[0]), sets(pair[1])
    expected = {(t, d): len(x & y) / len(x | y) for t, x in enumerate(first) for d, y in enumerate(second) if x & y}
    assert overlaps(a, n, b, m) == pytest.approx(expected)


@settings(max_examples=80, deadline=None)
@given(mask_pairs())
def test_symmetric_bounded_and_the_product_of_its_factors(pair):
    prediction, truth = pair
    metric, swapped = HierarchicalMetric(), HierarchicalMetric()
    metric.update(prediction, truth)
    swapped.update(truth, prediction)
    scores = metric.compute()
    if not truth.any() and not prediction.any():
        assert math.isnan(scores["hIoU"])
        return
    assert 0 <= scores["hIoU"] <= scores["localisation"] <= 100
    assert scores["matched"] == swapped.compute()["matched"]
    if scores["matched"]:
        assert scores["hIoU"] == pytest.approx(scores["localisation"] * scores["segmentation"] / 100)


@settings(max_examples=40, deadline=None)
@given(mask_pairs())
def test_only_the_truth_itself_is_perfect(pair):
    prediction, truth = pair
    metric = HierarchicalMetric()
    metric.update(truth, truth)
    metric.update(prediction, truth)
    if truth.any():
        assert (metric.compute()["hIoU"] == pytest.approx(100)) == np.array_equal(prediction, truth)


def mask(size, *where):
    result = np.zeros(size, bool)
    for row, column in where:
        result[row, column] = True
    return result


def test_hand_case():
    """Two targets; one found with IoU 1/2, one missed; one false detection: (1 / 3) * (1 / 2)."""
    truth = mask((20, 20), (2, 2), (2, 3), (15, 15))
    prediction = mask((20, 20), (2, 2), (9, 9))
    metric = HierarchicalMetric()
    metric.update(prediction, truth)
    assert metric.compute() == {
        "hIoU": pytest.approx(100 / 6),
        "localisation": pytest.approx(100 / 3),
        "segmentation": pytest.approx(50),
        "images": 1,
        "targets": 2,
        "detections": 2,
        "matched": 1,
    }


def test_a_large_target_is_matched_by_overlap_beyond_the_distance():
    truth, prediction = np.zeros((6, 40), bool), np.zeros((6, 40), bool)
    truth[1:5, :30] = prediction[1:5, 5:35] = True
    counts = hierarchical_update(prediction, truth)
    assert counts.matched == 1 and counts.overlap == pytest.approx(25 / 35)


def test_most_pairs_before_shortest_distance():
    """The nearest pair alone would leave the others 4 apart: two pairs of distance 2 are matched instead."""
    targets, detections = np.array([[0.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 2.0], [0.0, 5.5]])
    assert assign(targets, detections) == [(0, 0), (1, 1)]


def test_a_far_component_does_not_spoil_the_pairs_within_bounds():
    """Least total distance over all components would pair T0-D1 (3.5) and T1-D0 (3.5): none is within bounds."""
    targets, detections = np.array([[0.0, 0.0], [0.0, 6.0]]), np.array([[0.0, 2.5], [0.0, -3.5]])
    assert assign(targets, detections) == [(0, 0)]


def test_thousands_of_false_alarms_stay_quick():
    truth = mask((300, 300), (100, 100), (200, 200))
    prediction = np.zeros((300, 300), bool)
    prediction[::2, ::2] = True
    counts = hierarchical_update(prediction, truth)
    assert (counts.targets, counts.detections, counts.matched) == (2, 22500, 2)
    assert counts.overlap == 2


def test_nothing_gives_nan_and_bad_masks_are_refused():
    assert math.isnan(HierarchicalMetric().compute()["hIoU"])
    with pytest.raises(DataError, match="rows x columns"):
        HierarchicalMetric().update(np.zeros((3, 4), bool), np.zeros((4, 3), bool))
