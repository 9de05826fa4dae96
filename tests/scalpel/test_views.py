"""Views of an image: exact mirrors, and scaled frames that line up with the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data.augment import AugmentConfig
from fewlabel.scalpel.views import SCALES, flips, resized, unflip, views_of

SIZES = st.tuples(st.integers(40, 75), st.integers(40, 75))


def blob(size, row, column, sigma=3.0):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)).astype(np.float32)


def centre(plane):
    """Row and column of the centre of mass, in pixel centres of the plane's own frame."""
    rows, columns = np.indices(plane.shape) + 0.5
    return np.array([(plane * rows).sum(), (plane * columns).sum()]) / plane.sum()


def test_number_and_sizes_of_the_views():
    image = np.random.default_rng(0).normal(size=(45, 61)).astype(np.float32)
    assert [group.images.shape for group in views_of(image, "one")] == [(1, 45, 61)]
    assert [group.images.shape for group in views_of(image, "flips")] == [(4, 45, 61)]
    sizes = [group.images.shape for group in views_of(image, "flips-scales")]
    assert sizes == [(4, 45, 61), (1, 34, 46), (1, 60, 81)]
    one = views_of(image, "one")[0]
    np.testing.assert_array_equal(one.back(one.images)[0], image)


def test_scales_are_those_that_teachers_are_trained_on():
    config = AugmentConfig()
    assert (config.scale_low, config.scale_high) == SCALES


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_mirrors_come_back_exactly(size):
    image = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for plane in unflip(flips(image)):
        np.testing.assert_array_equal(plane, image)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from(SCALES), st.integers(0, 2**31))
def test_a_place_keeps_its_coordinates_there_and_back(size, scale, seed):
    """Half-pixel centres: (x + 1/2) is multiplied by new side / old side, for odd sizes too."""
    rng = np.random.default_rng(seed)
    image = blob(size, rng.uniform(14, size[0] - 14), rng.uniform(14, size[1] - 14))
    there = (round(size[0] * scale), round(size[1] * scale))
    seen = resized(image[None], there)
    factor = np.array(there) / np.array(size)
    np.testing.assert_allclose(centre(seen[0]), centre(image) * factor, atol=0.02)
    back = resized(seen, size)
    assert back.shape == (1, *size)
    np.testing.assert_allclose(centre(back[0]), centre(image), atol=0.02)
    assert np.abs(back[0] - image).max() < 0.12


@settings(max_examples=30, deadline=None)
@given(SIZES, st.sampled_from(SCALES))
def test_a_slope_comes_back_as_it_was(size, scale):
    rows, columns = np.indices(size).astype(np.float32)
    image = 2 * rows - columns
    back = resized(resized(image[None], (round(size[0] * scale), round(size[1] * scale))), size)[0]
    np.testing.assert_allclose(back[4:-4, 4:-4], image[4:-4, 4:-4], atol=0.2)  # half a pixel would be 0.5 to 1.5


@pytest.mark.parametrize("sigma", [0.8, 1.5])
def test_a_small_target_survives_the_smallest_scale(sigma):
    """The whole chain, with a teacher that repeats what it sees: a target of 2 x 2 or 4 x 4 pixels stays one."""
    image = blob((48, 48), 20.5, 24.5, sigma)
    for group in views_of(image, "flips-scales")[1:]:
        back = group.back(group.images)[0]
        assert back.max() > 0.5 * image.max()
        assert np.unravel_index(back.argmax(), back.shape) in [(20, 24), (20, 25), (21, 24), (21, 25)]
