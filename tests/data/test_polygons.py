"""Polygons, boxes and run-length codes against the COCO tools and against loops over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle
from scipy import ndimage
from tests.data.writers.contract import label_map

from fewlabel.core.masks import EIGHT_CONNECTED, decode, encode
from fewlabel.data.polygons import ShapeError, fill_box, instances, loops, outline, rasterise, run_lengths

sides = st.integers(1, 24)
coordinate = st.floats(-30, 60) | st.integers(-3, 30).map(float)


@st.composite
def any_mask(draw):
    """Noise, blocks, or blocks with specks: holes, parts and pixels that touch at corners."""
    height, width, seed = draw(sides), draw(sides), draw(st.integers(0, 10**6))
    mask = label_map(seed, height, width, draw(st.integers(1, 3))) == 1
    if draw(st.booleans()):
        mask ^= np.random.default_rng(seed).random(mask.shape) < 0.1
    return mask


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8), min_size=1, max_size=3), sides, sides
)
def test_polygons_are_filled_as_by_the_coco_tools(parts, height, width):
    try:
        got = decode(rasterise([np.array(part) for part in parts], (height, width)))
    except ShapeError as error:
        low, high = np.concatenate(parts).min(axis=0), np.concatenate(parts).max(axis=0)
        outside = (high < 0).any() or low[0] > width or low[1] > height
        assert len(parts) > 1 or outside, error
        return
    flat = [np.array(part).ravel().tolist() for part in parts]
    wanted = oracle.decode(oracle.merge(oracle.frPyObjects(flat, height, width))).astype(bool)
    if wanted.any():
        np.testing.assert_array_equal(got, wanted)
    else:
        assert got.sum() == 1


def test_far_corners_are_cut():
    """Far corners would take the rasteriser gigabytes; the part within the image stays."""
    triangle = np.array([[2.0, 2.0], [1e12, 2.0], [2.0, 1e12]])
    near = decode(rasterise([triangle], (10, 12)))
    assert near[2:, 2:].all() and near.sum() == 8 * 10
    stripe = np.array([[-1e9, 3], [1e9, 3], [1e9, 5], [-1e9, 5]])
    assert decode(rasterise([stripe], (8, 6))).sum() == 2 * 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-9000, 9000), st.floats(-9000, 9000)), min_size=3, max_size=6))
def test_cutting_changes_nothing_within_the_image(points):
    polygon = np.array(points)
    try:
        got = decode(rasterise([polygon], (12, 10)))
    except ShapeError:
        return
    wanted = oracle.decode(oracle.frPyObjects([polygon.ravel().tolist()], 12, 10))[..., 0].astype(bool)
    # A cut edge is drawn from another end point, so pixels whose middle it all but meets may change sides.
    assert (got ^ wanted).sum() <= 4 + (got.sum() == 1 and not wanted.any())


@pytest.mark.parametrize(
    ("polygon", "words"),
    [
        ([(0, 0), (3, 3)], "has 2 points, expected at least 3"),
        ([(0, 0), (3, np.nan), (1, 1)], "not a finite number"),
        ([(0, 0), (3, np.inf), (1, 1)], "not a finite number"),
        ([(-5, 0), (-3, 4), (-1, 1)], "lies outside its image of 8 x 9"),
        ([(0, 9), (3, 12), (1, 10)], "lies outside its image"),
    ],
)
def test_polygons_that_mean_nothing(polygon, words):
    with pytest.raises(ShapeError, match=words):
        rasterise([np.array(polygon, float)], (8, 9))


def test_thin_polygon_has_a_pixel():
    mask = decode(rasterise([np.array([[3.1, 4.1], [3.2, 4.1], [3.2, 4.3]])], (8, 9)))
    assert np.argwhere(mask).tolist() == [[4, 3]]
    edge = decode(rasterise([np.array([[9.0, 8.0], [9.0, 9.0], [10.0, 9.0]])], (8, 9)))
    assert np.argwhere(edge).tolist() == [[7, 8]]


@settings(max_examples=200, deadline=None)
@given(coordinate, coordinate, coordinate, coordinate, sides, sides)
def test_box_is_filled_by_pixel_middles(a, b, c, d, height, width):
    x0, x1, y0, y1 = min(a, b), max(a, b), min(c, d), max(c, d)
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        with pytest.raises(ShapeError, match="lies outside its image"):
            fill_box((x0, y0, x1, y1), (height, width))
        return
    rle, box = fill_box((x0, y0, x1, y1), (height, width))
    mask = decode(rle)
    assert encode(mask) == rle
    wanted = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            wanted[row, column] = x0 <= column + 0.500001 < x1 and y0 <= row + 0.500001 < y1
    if wanted.any():
        np.testing.assert_array_equal(mask, wanted)
    else:
        ys, xs = np.nonzero(mask)
        assert len({*xs}) == 1 or len({*ys}) == 1
        assert len(ys) >= 1
    np.testing.assert_allclose(box, np.clip([x0, y0, x1, y1], 0, [width, height] * 2), rtol=1e-6, atol=1e-30)


def test_boxes_that_mean_nothing():
    for box, words in (((0, 0, np.nan, 1), "finite"), ((3, 0, 2, 1), "negative width"), ((0, 9, 2, 10), "outside")):
        with pytest.raises(ShapeError, match=words):
            fill_box(box, (8, 9))


@settings(max_examples=300, deadline=None)
@given(any_mask())
def test_outline_gives_the_mask_back(mask):
    if not mask.any():
        assert loops(mask) == []
        return
    polygon = outline(mask)
    steps = polygon - np.roll(polygon, 1, axis=0)
    assert ((steps != 0).sum(axis=1) == 1).all(), "edges run along pixels"
    flat = [polygon.ravel().astype(float).tolist()]
    np.testing.assert_array_equal(oracle.decode(oracle.frPyObjects(flat, *mask.shape))[..., 0], mask)
    assert rasterise([polygon], mask.shape) == encode(mask)


@settings(max_examples=200, deadline=None)
@given(any_mask())
def test_one_loop_per_part_and_hole(mask):
    found = loops(mask)
    parts = ndimage.label(mask, structure=EIGHT_CONNECTED)[1]
    holes = ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1
    assert len(found) == parts + holes
    crossings = [(int(loop[0, 1]), int(loop[0, 0])) for loop in found]
    assert crossings == sorted(crossings)
    perimeter = sum(int(abs(loop - np.roll(loop, 1, axis=0)).sum()) for loop in found)
    padded = np.pad(mask, 1).astype(int)
    assert perimeter == abs(np.diff(padded, axis=0)).sum() + abs(np.diff(padded, axis=1)).sum()
    assert all(min(loop[loop[:, 1] == loop[0, 1], 0]) == loop[0, 0] for loop in found)


def test_outline_of_noise_is_fast_enough():
    """Thousands of parts must not take minutes or recursion."""
    mask = np.random.default_rng(0).random((200, 200)) < 0.3
    assert rasterise([outline(mask)], mask.shape) == encode(mask)


@settings(max_examples=100, deadline=None)
@given(any_mask())
def test_run_lengths(mask):
    column = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(np.concatenate([[0], column, [2]])))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    if sum(counts) != mask.size:
        counts.append(mask.size - sum(counts))
    assert run_lengths(counts, mask.shape) == encode(mask)
    code = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert run_lengths(code, mask.shape) == run_lengths(code.decode(), mask.shape) == encode(mask)


@pytest.mark.parametrize(
    "counts",
    [[3, 2], [80], [10, -1, 71], [72.0], [True] * 72, "z" * 40, "é", "", b"\xc8\xc9", None, {"a": 1}, [[72]], [10**30]],
)
def test_run_lengths_that_are_damaged(counts):
    with pytest.raises(ShapeError, match="run-length code"):
        run_lengths(counts, (8, 9))


def test_a_rounded_edge_at_the_middle_of_a_pixel():
    """1.5 and 4.5 written with ten digits as shares of a width and read again."""
    for off in (-1e-9, 0, 1e-9):
        mask = decode(fill_box((1.5 + off, 0, 4.5 + off, 1), (1, 8))[0])
        assert mask[0].tolist() == [False, True, True, True, False, False, False, False]


def test_instances_keep_exact_boxes():
    assert fill_box((2, 1, 2 - 1e-12, 3), (8, 9))[1].tolist() == [2, 1, 2, 3], "rounding is no swapped corner"
    rle, box = fill_box((1.25, 2.5, 4.75, 6.0), (8, 9))
    made = instances((8, 9), [rle, rle], [1, 0], [box, None])
    assert made.boxes.tolist() == [[1.25, 2.5, 4.75, 6.0], [1, 2, 5, 6]] and made.classes.tolist() == [1, 0]
    assert made.scores.tolist() == [1, 1] and made.source == "human"
    assert len(instances((8, 9), [], [])) == 0
