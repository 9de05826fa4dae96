"""Geometry of run-length codes against dense masks, pycocotools and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle
from scipy import ndimage

from fewlabel.core import masks, rle
from fewlabel.core.errors import DataError

quick = settings(max_examples=60, deadline=None)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)
mask_arrays = hnp.arrays(np.bool_, shapes)
pairs = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape)))


@st.composite
def crops(draw):
    """A mask and a box inside it: top, left, height, width, each at least 1."""
    mask = draw(mask_arrays)
    top, left = draw(st.integers(0, mask.shape[0] - 1)), draw(st.integers(0, mask.shape[1] - 1))
    height, width = draw(st.integers(1, mask.shape[0] - top)), draw(st.integers(1, mask.shape[1] - left))
    return mask, (top, left, height, width)


def dense(runs: rle.Spans, size: tuple[int, int]) -> np.ndarray:
    """A mask from its runs, by a loop."""
    flat = np.zeros(size[0] * size[1], bool)
    for start, stop in zip(runs.starts, runs.stops, strict=True):
        assert start < stop
        assert not flat[start:stop].any()
        flat[start:stop] = True
    return flat.reshape(size[1], size[0]).T


def place(code: rle.Rle, top: int, left: int, size: tuple[int, int]) -> rle.Rle:
    """The mask of a crop where the crop was cut from."""
    return rle.from_spans(rle.shift(rle.spans(code), code["size"][0], top, left, size[0]), size)


@quick
@given(mask_arrays)
def test_runs_of_a_code_and_back(mask):
    code = masks.encode(mask)
    runs = rle.spans(code)
    np.testing.assert_array_equal(dense(runs, mask.shape), mask)
    assert rle.from_spans(runs, mask.shape) == code
    assert runs.area == mask.sum()
    assert rle.box(runs, mask.shape[0]) == tuple(masks.boxes(mask[None])[0].astype(int))
    if mask.any():
        assert rle.first_pixel(runs, mask.shape[0]) == tuple(np.argwhere(mask)[0])


@quick
@given(crops())
def test_crop_and_place(drawn):
    mask, (top, left, height, width) = drawn
    inside = mask[top : top + height, left : left + width]
    code = masks.encode(inside)
    assert rle.crop(masks.encode(mask), top, left, height, width) == code
    whole = np.zeros_like(mask)
    whole[top : top + height, left : left + width] = inside
    assert place(code, top, left, mask.shape) == masks.encode(whole)
    runs = rle.clip(rle.spans(masks.encode(mask)), mask.shape[0], (left, top, left + width, top + height))
    np.testing.assert_array_equal(dense(runs, mask.shape), whole)


@quick
@given(pairs)
def test_shared_pixels(pair):
    first, second = pair
    runs = [rle.spans(masks.encode(mask)) for mask in pair]
    assert rle.shared(*runs) == (first & second).sum()
    union = runs[0].area + runs[1].area - rle.shared(*runs)
    if first.any() and second.any():
        codes = masks.encode_many(np.stack(pair))
        assert rle.shared(*runs) / union == pytest.approx(oracle.iou(codes[:1], codes[1:], [0])[0, 0], abs=1e-12)


@quick
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))))
def test_any_number_of_masks(stack):
    codes = masks.encode_many(stack)
    runs = [rle.spans(code) for code in codes]
    assert rle.from_spans(rle.join(runs), stack.shape[1:]) == masks.encode(stack.any(axis=0))
    together = rle.Spans(np.concatenate([r.starts for r in runs]), np.concatenate([r.stops for r in runs]))
    edges = np.cumsum([0, *(len(r.starts) for r in runs)])
    assert rle.from_many_spans(together, edges, stack.shape[1:]) == codes


@quick
@given(hnp.arrays(np.uint8, shapes, elements=st.integers(0, 3)), st.integers(0, 5), st.integers(0, 5))
def test_runs_of_labels_that_touch(labels, top, left):
    """Regions with labels that touch and have several parts, in a larger image."""
    height, width = labels.shape[0] + top + 2, labels.shape[1] + left + 1
    owner, runs = rle.label_spans(labels, height, top, left)
    assert (np.diff(owner) >= 0).all()
    for label in (1, 2, 3):
        expected = np.zeros((height, width), bool)
        expected[top : top + labels.shape[0], left : left + labels.shape[1]] = labels == label
        mine = owner == label
        assert rle.from_spans(rle.Spans(runs.starts[mine], runs.stops[mine]), (height, width)) == masks.encode(expected)


def test_a_noisy_image_has_the_bytes_of_whole_masks():
    labels, count = ndimage.label(np.random.default_rng(0).random((61, 47)) < 0.4, structure=np.ones((3, 3)))
    numbers = [*range(count, 0, -2), count + 5, 1, 1]
    expected = [masks.encode(labels == number) for number in numbers]
    assert masks.encode_components(labels, numbers) == expected
    assert masks.encode_components(labels, []) == []


def test_offsets_beyond_31_bits():
    size = (60_000, 70_000)  # 4.2e9 pixels, just within COCO's 32 bits
    code = place(masks.encode(np.ones((2, 3), bool)), 59_998, 69_997, size)
    runs = rle.spans(code)
    assert runs.stops.tolist() == [60_000 * column for column in (69_998, 69_999, 70_000)]
    assert rle.box(runs, size[0]) == (69_997, 59_998, 70_000, 60_000)
    assert oracle.area(code) == runs.area == 6
    assert rle.crop(code, 59_997, 69_996, 3, 4) == masks.encode(np.pad(np.ones((2, 3), bool), ((1, 0), (1, 0))))


def test_memory_follows_the_runs_not_the_image():
    import tracemalloc

    code = masks.encode(np.ones((40, 30), bool))
    tracemalloc.start()
    rle.shared(*(rle.spans(place(code, top, 20_000, (50_000, 50_000))) for top in (30_000, 30_020)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_faults_are_named():
    code = masks.encode(np.ones((3, 4), bool))
    for window in ((-1, 0, 2, 2), (0, 3, 2, 2)):
        with pytest.raises(DataError, match=r"A crop of 2 x 2 .* does not lie in an image of 3 x 4"):
            rle.crop(code, *window)
    with pytest.raises(DataError, match="expected 20 for the size"):
        rle.spans({"size": [4, 5], "counts": code["counts"]})
