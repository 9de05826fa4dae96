"""Pd by target area against single targets, and against Pd over all of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.metrics.sizes import EDGES, SizeMetric, size_update
from fewlabel.metrics.targets import target_update


def block(mask, row, column, height, width):
    mask[row : row + height, column : column + width] = True
    return mask


@st.composite
def mask_pairs(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    density = draw(st.sampled_from([0.1, 0.3, 0.5]))
    return rng.random(size) < density, rng.random(size) < density


@pytest.mark.parametrize("rule", ["nearest", "legacy"])
@settings(max_examples=80, deadline=None)
@given(pair=mask_pairs(), edges=st.lists(st.integers(1, 30), unique=True, max_size=4).map(sorted))
def test_bins_add_up_to_all_targets(rule, pair, edges):
    counts = size_update(*pair, edges=edges, matching=rule)
    whole = target_update(*pair, matching=rule)
    assert counts.shape == (2, len(edges) + 1)
    assert counts.sum(1).tolist() == [whole.targets, whole.found]
    assert (counts[1] <= counts[0]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(1, 81), unique=True, max_size=4).map(sorted),
)
def test_targets_far_apart_are_counted_one_by_one(targets, edges):
    truth, prediction = np.zeros((12 * len(targets), 12), bool), np.zeros((12 * len(targets), 12), bool)
    for k, (height, width, found) in enumerate(targets):
        block(truth, 12 * k, 0, height, width)
        if found:
            block(prediction, 12 * k, 0, height, width)
    metric = SizeMetric(edges)
    metric.update(prediction, truth)
    for row in metric.compute():
        bound = math.inf if row["largest"] is None else row["largest"]
        own = [found for height, width, found in targets if row["smallest"] <= height * width <= bound]
        assert (row["targets"], row["found"]) == (len(own), sum(own))
        assert row["Pd"] == pytest.approx(100 * sum(own) / len(own) if own else math.nan, nan_ok=True)


def test_default_bins_join_without_gap():
    rows = SizeMetric().compute()
    assert [(row["smallest"], row["largest"]) for row in rows] == [(1, 9), (10, 25), (26, 81), (82, None)]
    assert all(math.isnan(row["Pd"]) for row in rows)


def test_a_bound_belongs_to_the_bin_below():
    truth = block(np.zeros((30, 30), bool), 0, 0, 3, 3)
    block(truth, 10, 10, 2, 5)
    assert size_update(truth, truth)[0].tolist() == [1, 1, 0, 0]


def test_images_add_up():
    metric = SizeMetric(EDGES)
    small = block(np.zeros((9, 9), bool), 4, 4, 1, 1)
    large = block(np.zeros((30, 30), bool), 5, 5, 12, 12)
    metric.update(small, small)
    metric.update(np.zeros_like(small), small)
    metric.update(large, large)
    assert [row["Pd"] for row in metric.compute()] == pytest.approx([50, math.nan, math.nan, 100], nan_ok=True)


@pytest.mark.parametrize("bad", [(0, 3), (9, 9), (25, 9), (-1,), (2.5,)])
def test_bounds_must_be_whole_and_rise(bad):
    with pytest.raises(RecipeError, match="not whole, positive and rising"):
        SizeMetric(bad)


def test_bad_masks_and_rules_are_refused():
    with pytest.raises(DataError, match="rows x columns"):
        size_update(np.zeros((3, 4), bool), np.zeros((4, 3), bool))
    with pytest.raises(RecipeError, match="'closest'"):
        SizeMetric(matching="closest")
