"""The curve of Pd against Fa, point by point against a search over pixels and against the metric of one mask."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.metrics.roc import THRESHOLDS, RocMetric, roc_update
from fewlabel.metrics.targets import TargetMetric


@st.composite
def scored(draw):
    """A few score maps of several levels and true masks, of different sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        images.append((rng.choice([0.1, 0.4, 0.6, 0.9], size).astype(np.float32), rng.random(size) < 0.2))
    return images


def parts(pixels):
    """8-connected components of a set of pixels, as sets in raster order."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start in left:
            left.remove(start)
            part, edge = {start}, [start]
            while edge:
                row, column = edge.pop()
                near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                part |= near
                edge += near
            found.append(part)
    return found


def brute_force(images, threshold):
    """Pd and Fa at one threshold with exact distances: nearest pair first, each component once."""
    targets = found = false = pixels = 0
    for scores, truth in images:
        real = parts({p for p in np.ndindex(truth.shape) if truth[p]})
        seen = parts({p for p in np.ndindex(scores.shape) if scores[p] > threshold})
        centres = [[[Fraction(sum(p[k] for p in c), len(c)) for k in (0, 1)] for c in group] for group in (real, seen)]
        pairs = sorted(
            (sum((a - b) ** 2 for a, b in zip(centres[0][t], centres[1][d], strict=True)), t, d)
            for t in range(len(real))
            for d in range(len(seen))
        )
        used_t, used_d = set(), set()
        for gap, t, d in pairs:
            if gap < 9 and t not in used_t and d not in used_d:
                used_t.add(t)
                used_d.add(d)
        targets, found = targets + len(real), found + len(used_t)
        false += sum(len(c) for d, c in enumerate(seen) if d not in used_d)
        pixels += truth.size
    return 100 * found / targets if targets else math.nan, 1e6 * false / pixels


@settings(max_examples=60, deadline=None)
@given(scored())
def test_every_point_equals_brute_force(images):
    thresholds = (0.0, 0.1, 0.25, 0.5, 0.75, 0.95)
    metric = RocMetric(thresholds)
    for scores, truth in images:
        metric.update(scores, truth)
    curve = metric.compute()
    for k, threshold in enumerate(thresholds):
        pd, fa = brute_force(images, threshold)
        assert curve["Pd"][k] == pytest.approx(pd, nan_ok=True)
        assert curve["Fa"][k] == pytest.approx(fa)


@pytest.mark.parametrize("rule", ["nearest", "legacy"])
def test_every_point_equals_the_metric_of_one_mask(rule):
    rng = np.random.default_rng(0)
    images = [(rng.random((40, 30)), rng.random((40, 30)) < 0.02) for _ in range(3)]
    metric = RocMetric(matching=rule)
    for scores, truth in images:
        metric.update(scores, truth)
    curve = metric.compute()
    assert curve["thresholds"] == list(THRESHOLDS) and curve["matching"] == rule
    for k, threshold in enumerate(THRESHOLDS):
        single = TargetMetric(rule)
        for scores, truth in images:
            single.update(scores > threshold, truth)
        expected = single.compute()
        assert (curve["Pd"][k], curve["Fa"][k]) == (expected["Pd"], expected["Fa"])
        assert (curve["images"], curve["targets"]) == (expected["images"], expected["targets"])


def test_default_thresholds_hold_one_half_and_mirror():
    assert 0.5 in THRESHOLDS
    np.testing.assert_allclose(np.asarray(THRESHOLDS) + THRESHOLDS[::-1], 1)


@settings(max_examples=40, deadline=None)
@given(scored())
def test_a_rising_function_of_scores_and_thresholds_changes_nothing(images):
    thresholds = np.array([0.0, 0.3, 0.5, 0.8])
    for scores, truth in images:
        plain = roc_update(scores, truth, thresholds)
        assert roc_update(np.exp(3 * scores.astype(np.float64)), truth, np.exp(3 * thresholds)) == plain


def test_a_threshold_is_exceeded_not_reached():
    scores = np.array([[0.5]])
    assert [count.found for count in roc_update(scores, scores > 0, (0.4, 0.5))] == [1, 0]


def test_lowering_the_threshold_can_lose_targets():
    """Two targets 4 pixels apart, bridged by weaker pixels: one detection, at the middle, finds one of them."""
    scores, truth = np.zeros((3, 9), np.float32), np.zeros((3, 9), bool)
    scores[1, 2:7] = 0.4
    scores[1, [2, 6]] = 0.9
    truth[1, [2, 6]] = True
    assert [count.found for count in roc_update(scores, truth, (0.2, 0.5))] == [1, 2]


def test_nothing_gives_nan():
    curve = RocMetric((0.5,)).compute()
    assert math.isnan(curve["Pd"][0]) and math.isnan(curve["Fa"][0]) and curve["images"] == 0


@pytest.mark.parametrize("bad", [(), (0.5, 0.5), (0.6, 0.5), (0.1, math.nan), (0.1, math.inf)])
def test_thresholds_must_rise(bad):
    with pytest.raises(RecipeError, match="not finite and rising"):
        RocMetric(bad)


def test_what_cannot_be_scored_is_refused():
    mask = np.zeros((3, 4), bool)
    with pytest.raises(DataError, match="type bool"):
        roc_update(mask, mask)
    with pytest.raises(DataError, match="NaN"):
        roc_update(np.full((3, 4), np.nan), mask)
    with pytest.raises(DataError, match="rows x columns"):
        roc_update(np.zeros((4, 3)), mask)
    with pytest.raises(RecipeError, match="'closest'"):
        RocMetric(matching="closest")
