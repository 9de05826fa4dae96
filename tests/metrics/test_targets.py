"""Pd and Fa against a flood fill with exact fractions, and the cases that published code gets wrong."""

import math
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.metrics.targets import TargetMetric, match, target_update

RULES = ("nearest", "legacy")


def flood_fill(mask):
    """8-connected components in raster order of their first pixel, as lists of (row, column)."""
    height, width = mask.shape
    seen, parts = set(), []
    for start in ((r, c) for r in range(height) for c in range(width)):
        if not mask[start] or start in seen:
            continue
        seen.add(start)
        queue, part = deque([start]), []
        while queue:
            r, c = queue.popleft()
            part.append((r, c))
            for near in ((r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and mask[near] and near not in seen:
                    seen.add(near)
                    queue.append(near)
        parts.append(part)
    return parts


def squared_distance(a, b):
    """Exact squared distance of two components' centroids."""
    return sum((Fraction(sum(p[k] for p in a), len(a)) - Fraction(sum(p[k] for p in b), len(b))) ** 2 for k in (0, 1))


def reference(prediction, target, rule):
    """Targets, found targets and false pixels, by exact arithmetic and repeated search over what is still free."""
    targets, detections = flood_fill(target), flood_fill(prediction)
    free_targets, free = list(range(len(targets))), list(range(len(detections)))
    found = 0
    if rule == "legacy":
        for part in targets:
            for d in free:
                if squared_distance(part, detections[d]) < 9:
                    free.remove(d)
                    found += 1
                    break
    else:
        while True:
            options = [(squared_distance(targets[t], detections[d]), t, d) for t in free_targets for d in free]
            options = [option for option in options if option[0] < 9]
            if not options:
                break
            _, t, d = min(options)
            free_targets.remove(t)
            free.remove(d)
            found += 1
    return len(targets), found, sum(len(detections[d]) for d in free)


@st.composite
def mask_pairs(draw):
    """Two masks with a density that gives several components."""
    size = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    density = draw(st.sampled_from([0.05, 0.15, 0.3, 0.6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(size) < density, rng.random(size) < density


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=150, deadline=None)
@given(pair=mask_pairs())
def test_equals_the_reference(rule, pair):
    counts = target_update(*pair, matching=rule)
    assert (counts.targets, counts.found, counts.false_pixels) == reference(*pair, rule)
    assert counts.pixels == pair[0].size


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_perfect_prediction_finds_every_target(mask):
    counts = target_update(mask, mask, "nearest")
    assert counts.found == counts.targets
    assert counts.false_pixels == 0


def points(size, *where):
    mask = np.zeros(size, bool)
    for row, column in where:
        mask[row, column] = True
    return mask


@pytest.mark.parametrize("rule", RULES)
def test_two_targets_share_one_detection_and_only_one_is_found(rule):
    target, prediction = points((9, 9), (4, 2), (4, 6)), points((9, 9), (4, 4))
    counts = target_update(prediction, target, rule)
    assert (counts.targets, counts.found, counts.false_pixels) == (2, 1, 0)


@pytest.mark.parametrize("rule", RULES)
def test_equal_area_trap(rule):
    """A detection that found nothing counts in Fa even if its area equals that of one that found a target."""
    target = points((20, 20), (3, 3), (3, 4))
    prediction = points((20, 20), (3, 3), (3, 4), (15, 15), (15, 16))
    metric = TargetMetric(rule)
    metric.update(prediction, target)
    scores = metric.compute()
    assert scores["Pd"] == 100.0
    assert scores["Fa"] == pytest.approx(2 / 400 * 1e6)


def test_rules_differ_where_the_nearer_detection_comes_later():
    """Target T at (5, 5); detection A at (3, 4), distance 2.24, precedes B at (5, 5), distance 0, three pixels large.

    `legacy` takes A and leaves B's 3 pixels false; `nearest` takes B and leaves A's single pixel false.
    """
    target = points((12, 12), (5, 5))
    prediction = points((12, 12), (3, 4), (5, 4), (5, 5), (5, 6))
    assert target_update(prediction, target, "legacy").false_pixels == 3
    assert target_update(prediction, target, "nearest").false_pixels == 1


def test_rules_differ_in_pd_too():
    """`legacy` may give a target's only detection away: A is first for both targets, B is near the first alone."""
    targets = np.array([[5.0, 5.0], [5.0, 9.0]])
    detections = np.array([[4.0, 7.0], [6.0, 5.0]])
    assert match(targets, detections, "legacy") == [(0, 0)]
    assert sorted(match(targets, detections, "nearest")) == [(0, 1), (1, 0)]


def test_three_pixels_are_too_far():
    target = points((1, 9), (0, 0))
    assert target_update(points((1, 9), (0, 3)), target).found == 0
    assert target_update(points((1, 9), (0, 2)), target).found == 1
    # Exactly 3 apart on paper, a rounding error less in floating point.
    assert 16 / 3 - 7 / 3 < 3
    assert match(np.array([[7 / 3, 0.0]]), np.array([[16 / 3, 0.0]])) == []


def test_diagonal_pixels_are_one_target():
    assert target_update(points((4, 4)), points((4, 4), (0, 0), (1, 1), (2, 2))).targets == 1


def test_without_targets_pd_is_nan_and_false_alarms_count():
    metric = TargetMetric()
    metric.update(points((10, 10), (0, 0)), points((10, 10)))
    scores = metric.compute()
    assert math.isnan(scores["Pd"]) and scores["targets"] == 0
    assert scores["Fa"] == pytest.approx(10_000.0)
    assert math.isnan(TargetMetric().compute()["Fa"])


def test_counts_add_up_over_images_of_different_sizes():
    metric = TargetMetric("legacy")
    metric.update(points((10, 10), (2, 2)), points((10, 10), (2, 2)))
    metric.update(points((30, 10), (2, 2)), points((30, 10), (20, 2)))
    scores = metric.compute()
    assert scores == {"Pd": 50.0, "Fa": 1e6 / 400, "matching": "legacy", "images": 2, "targets": 2}


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="rows x columns"):
        TargetMetric().update(points((3, 4)), points((4, 4)))
    with pytest.raises(RecipeError, match="'closest' is not known; choose one of nearest, legacy"):
        TargetMetric("closest")
