import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.masks import components
from fewlabel.students.detector.boxes import CropBoxes
from fewlabel.students.detector.boxes import crop_boxes as boxes_of_objects


def crop_boxes(target: np.ndarray, weight: np.ndarray) -> CropBoxes:
    """With the 8-connected parts of the target as objects."""
    return boxes_of_objects(components(target)[0], weight)


def neighbours(pixel, size):
    row, column = pixel
    for r in range(max(0, row - 1), min(size[0], row + 2)):
        for c in range(max(0, column - 1), min(size[1], column + 2)):
            yield r, c


def pieces(pixels, size):
    """8-connected pieces of a set of pixels, in raster order of their first pixel."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start not in left:
            continue
        piece, front = {start}, [start]
        left.remove(start)
        while front:
            for near in neighbours(front.pop(), size):
                if near in left:
                    left.remove(near)
                    piece.add(near)
                    front.append(near)
        found.append(piece)
    return found


def reference(target, weight):
    size = target.shape
    pixels = {tuple(p) for p in np.argwhere(target).tolist()}
    counted = {tuple(p) for p in np.argwhere(target & (weight > 0)).tolist()}
    doubtful = pixels | {tuple(p) for p in np.argwhere(weight == 0).tolist()}
    boxes = [
        (min(c for _, c in piece), min(r for r, _ in piece), max(c for _, c in piece) + 1, max(r for r, _ in piece) + 1)
        for piece in pieces(pixels, size)
        if piece & counted
    ]
    ignored = np.zeros(size, bool)
    for piece in pieces(doubtful, size):
        if not piece & counted:
            for pixel in piece:
                for near in neighbours(pixel, size):
                    ignored[near] = True
    return np.array(boxes, np.float32).reshape(-1, 4), ignored


@st.composite
def crops(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    target = rng.random(size) < draw(st.sampled_from([0, 0.05, 0.15, 0.4]))
    weight = (rng.random(size) >= draw(st.sampled_from([0, 0.05, 0.2, 1.0]))).astype(np.float32)
    return target, weight


@settings(max_examples=150, deadline=None)
@given(crops())
def test_equals_the_reference(crop):
    known = crop_boxes(*crop)
    boxes, ignored = reference(*crop)
    assert known.boxes.dtype == np.float32
    np.testing.assert_array_equal(known.boxes, boxes)
    np.testing.assert_array_equal(known.ignored, ignored)


@settings(max_examples=80, deadline=None)
@given(crops())
def test_counted_targets_are_never_ignored(crop):
    target, weight = crop
    assert not (crop_boxes(target, weight).ignored & target & (weight > 0)).any()


def test_a_doubtful_rim_belongs_to_its_target():
    target, weight = np.zeros((9, 9), bool), np.ones((9, 9), np.float32)
    target[3:5, 3:6] = True
    weight[2:6, 2:7] = 0
    weight[3:5, 3:6] = 1
    known = crop_boxes(target, weight)
    assert known.boxes.tolist() == [[3, 3, 6, 5]]
    assert not known.ignored.any()


@pytest.mark.parametrize("called_target", [True, False])
def test_a_region_without_a_counted_target_has_no_box_and_is_ignored_with_one_pixel_around(called_target: bool):
    target, weight = np.zeros((9, 9), bool), np.ones((9, 9), np.float32)
    weight[3:5, 3:6] = 0
    target[3:5, 3:6] = called_target
    target[8, 8] = True
    known = crop_boxes(target, weight)
    assert known.boxes.tolist() == [[8, 8, 9, 9]]
    expected = np.zeros((9, 9), bool)
    expected[2:6, 2:7] = True
    np.testing.assert_array_equal(known.ignored, expected)


def brute_force(objects: np.ndarray, weight: np.ndarray) -> list[list[int]]:
    """Boxes by a loop over the objects, in the raster order of their first pixels."""
    found = {}
    for number in np.unique(objects[objects > 0]):
        rows, columns = np.nonzero(objects == number)
        if (weight[rows, columns] > 0).any():
            first = (int(rows[0]), int(columns[0]))
            found[first] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [found[first] for first in sorted(found)]


@settings(max_examples=100, deadline=None)
@given(crops(), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_touching_objects_and_objects_in_pieces_have_their_own_boxes(crop, seed, count):
    target, weight = crop
    objects = (target * np.random.default_rng(seed).integers(1, count + 1, target.shape)).astype(np.int32)
    known = boxes_of_objects(objects, weight)
    assert known.boxes.tolist() == brute_force(objects, weight)
    np.testing.assert_array_equal(known.ignored, crop_boxes(target, weight).ignored)
