"""RLE, boxes and components against pycocotools, brute force and scipy."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle

from fewlabel.core import masks
from fewlabel.core.errors import DataError

mask_arrays = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17))


@given(mask_arrays)
def test_rle_round_trip_and_oracle(mask: np.ndarray) -> None:
    rle = masks.encode(mask)
    assert rle["size"] == list(mask.shape)
    assert rle["counts"] == oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(masks.decode(rle), mask)
    assert masks.areas([rle]).tolist() == [int(mask.sum())]


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9))))
def test_boxes_contain_exactly_the_mask(stack: np.ndarray) -> None:
    for mask, box in zip(stack, masks.boxes(stack), strict=True):
        x0, y0, x1, y1 = box.astype(int)
        if not mask.any():
            assert box.tolist() == [0, 0, 0, 0]
            continue
        inside = mask[y0:y1, x0:x1]
        assert inside.sum() == mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def flood(mask: np.ndarray) -> np.ndarray:
    """Eight-connected components by breadth-first search, in raster order."""
    labels = np.zeros(mask.shape, np.int32)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        queue = deque([start])
        labels[start] = count
        while queue:
            y, x = queue.popleft()
            for ny in range(max(y - 1, 0), min(y + 2, mask.shape[0])):
                for nx in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                    if mask[ny, nx] and not labels[ny, nx]:
                        labels[ny, nx] = count
                        queue.append((ny, nx))
    return labels


@given(mask_arrays)
def test_components_against_flood_fill(mask: np.ndarray) -> None:
    labels, count = masks.components(mask)
    expected = flood(mask)
    np.testing.assert_array_equal(labels, expected)
    assert count == expected.max(initial=0)
    stack = labels[None] == np.arange(1, count + 1)[:, None, None]
    np.testing.assert_array_equal(masks.component_boxes(labels, count), masks.boxes(stack))
    backwards = range(count, 0, -1)
    assert masks.encode_components(labels, backwards) == masks.encode_many(stack)[::-1]


def test_encode_refuses_a_stack() -> None:
    with pytest.raises(DataError, match="expected \\(H, W\\)"):
        masks.encode(np.zeros((2, 3, 3), bool))
