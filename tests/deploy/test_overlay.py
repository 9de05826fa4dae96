"""Overlays keep the target visible and draw around it alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.deploy.overlay import COLOUR, box_lines, outline, overlay, stretch


def test_one_pixel_gets_a_ring_with_a_gap():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True
    expected[3:6, 3:6] = False
    assert np.array_equal(outline(mask), expected)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_the_line_is_two_pixels_from_the_mask(mask):
    """Brute force: the Chebyshev distance to the nearest target pixel is 2 on the line and nowhere else."""
    line = outline(mask)
    points = np.argwhere(mask)
    for place in np.ndindex(mask.shape):
        distance = np.abs(points - place).max(axis=1).min() if len(points) else np.inf
        assert line[place] == (distance == 2)


def test_any_depth_fills_the_display():
    rng = np.random.default_rng(0)
    for top in (1.0, 255.0, 16383.0, 65535.0):
        grey = (rng.random((60, 70)) * top).astype(np.float32)
        shown = stretch(grey)
        assert shown.dtype == np.uint8 and shown.min() == 0 and shown.max() == 255
    assert not stretch(np.full((5, 5), 7.0, np.float32)).any()
    spot = np.zeros((200, 200), np.float32)
    spot[3, 3] = 5.0  # above both percentiles' reach
    assert stretch(spot)[3, 3] == 255


def test_colours():
    mask = np.zeros((20, 20), bool)
    mask[10, 10] = True
    picture = overlay(np.arange(400, dtype=np.float32).reshape(20, 20), outline(mask))
    assert picture.shape == (20, 20, 3) and picture.dtype == np.uint8
    assert (picture[outline(mask)] == COLOUR).all()
    rest = picture[~outline(mask)]
    assert (rest[:, 0] == rest[:, 1]).all() and (rest[:, 1] == rest[:, 2]).all()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_line_of_a_box_is_that_of_the_pixels_it_touches(data):
    height, width = data.draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    x0, x1 = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y0, y1 = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    mask = np.zeros((height, width), bool)
    mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    if mask.any():
        lines = box_lines(np.array([[x0, y0, x1, y1]]), (height, width))
        np.testing.assert_array_equal(lines, outline(mask))


def test_boxes_have_a_line_each():
    boxes = np.array([[3, 3, 6, 6], [20, 10, 22, 15]], np.float32)
    lines = box_lines(boxes, (30, 40))
    single = [box_lines(box[None], (30, 40)) for box in boxes]
    np.testing.assert_array_equal(lines, single[0] | single[1])
    assert not box_lines(boxes[:0], (30, 40)).any()
