"""Overlays keep the target visible and draw around it alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.deploy.overlay import COLOUR, outline, overlay, stretch


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
    picture = overlay(np.arange(400, dtype=np.float32).reshape(20, 20), mask)
    assert picture.shape == (20, 20, 3) and picture.dtype == np.uint8
    assert (picture[outline(mask)] == COLOUR).all()
    rest = picture[~outline(mask)]
    assert (rest[:, 0] == rest[:, 1]).all() and (rest[:, 1] == rest[:, 2]).all()
