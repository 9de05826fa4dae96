"""Components of bands against scipy's labels of the whole mask."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewlabel.core import masks
from fewlabel.core.banded import banded_components, banded_instances
from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances


def cut(mask, values, cuts):
    """Bands of an image, at sorted rows."""
    edges = [0, *sorted({c for c in cuts if 0 < c < len(mask)}), len(mask)]
    return [(mask[a:b], values[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def check(mask, cuts, rng):
    values = rng.random(mask.shape).astype(np.float32)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    result = banded_instances(cut(mask, values, cuts), mask.shape, source="student", round=2)
    assert result.rles == tuple(masks.encode(labels == number) for number in range(1, count + 1))
    assert (result.source, result.round) == ("student", 2)
    np.testing.assert_array_equal(result.boxes, Instances.from_semantic(mask).boxes)
    means = ndimage.mean(values.astype(np.float64), labels, np.arange(1, count + 1)) if count else []
    np.testing.assert_allclose(result.scores, means, rtol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 20)),
    st.lists(st.integers(1, 23), max_size=12),
    st.floats(0.02, 0.98),
    st.integers(0, 2**31),
)
def test_components_are_those_of_the_whole_mask(size, cuts, share, seed):
    rng = np.random.default_rng(seed)
    check(rng.random(size) < share, cuts, rng)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 40])
def test_shapes_that_join_late(step):
    """A fork, its mirror image, a spiral, corners alone, and nothing."""
    rng = np.random.default_rng(0)
    comb = np.zeros((40, 41), bool)
    comb[:35, ::2] = True
    comb[35, :] = True
    spiral = np.zeros((40, 41), bool)
    for k in range(0, 18, 4):
        spiral[k, k : 41 - k] = spiral[39 - k, k : 41 - k] = spiral[k : 40 - k, 40 - k] = True
        spiral[k + 2 : 40 - k, k] = True
        spiral[k + 2 : k + 5, k : k + 5] |= np.eye(3, 5, dtype=bool)
    corners = np.indices((40, 41)).sum(axis=0) % 2 == 0
    for mask in (comb, comb[::-1], spiral, spiral.T, corners, np.zeros((40, 41), bool), np.ones((40, 41), bool)):
        check(mask, range(step, len(mask), step), rng)


def test_each_component_comes_as_soon_as_it_has_ended():
    mask = np.zeros((9, 8), bool)
    mask[0, 0] = mask[1:5, 3] = mask[8, 7] = True
    parts = list(banded_components(cut(mask, mask.astype(float), [3, 6]), mask.shape))
    assert [part.firsts.tolist() for part in parts] == [[[0, 0]], [[1, 3]], [[8, 7]]]
    assert [part.areas.tolist() for part in parts] == [[1], [4], [1]]
    assert [part.totals.tolist() for part in parts] == [[1.0], [4.0], [1.0]]
    assert parts[1].boxes.tolist() == [[3, 1, 4, 5]]


def test_memory_is_that_of_a_band():
    rng = np.random.default_rng(0)
    band = (rng.random((16, 500)) < 0.1, np.ones((16, 500), np.float32))
    peaks = []
    for count in (4, 64):
        tracemalloc.start()
        for _ in banded_components((band for _ in range(count)), (16 * count, 500)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_bands_of_another_size_are_refused():
    band = (np.ones((3, 4), bool), np.ones((3, 4)))
    for bands, size in (
        ([band], (3, 5)),
        ([band, band], (5, 4)),
        ([(band[0], np.ones((2, 4)))], (3, 4)),
        ([(band[0][:0], band[1][:0])], (3, 4)),
    ):
        with pytest.raises(DataError, match="The band at row"):
            banded_instances(bands, size)
    with pytest.raises(DataError, match="3 rows in all, expected 6"):
        banded_instances([band], (6, 4))
