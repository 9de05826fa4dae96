import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data.tiles import bands, blend_weights, over_tiles, pad, tiles, window

sizes = st.integers(1, 90)
tilings = st.tuples(st.integers(2, 40), st.integers(0, 39)).filter(lambda pair: pair[1] < pair[0])


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, tilings)
def test_tiles_cover_the_image_stay_inside_and_overlap_enough(height, width, tiling):
    tile, overlap = tiling
    places = tiles(height, width, tile, overlap)
    assert places == sorted(set(places))
    for side, starts in ((height, {top for top, _ in places}), (width, {left for _, left in places})):
        ordered = sorted(starts)
        assert ordered[0] == 0
        assert ordered[-1] == max(side - tile, 0)
        assert all(after <= before + tile - overlap for before, after in zip(ordered, ordered[1:], strict=False))
    assert len(places) == len({top for top, _ in places}) * len({left for _, left in places})


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, tilings)
def test_shares_of_every_pixel_sum_to_one(height, width, tiling):
    tile, overlap = tiling
    height, width = max(height, tile), max(width, tile)
    total = np.zeros((height, width))
    for (top, left), share in blend_weights(height, width, tile, overlap):
        assert (share > 0).all()
        total[top : top + tile, left : left + tile] += share
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, tilings, st.integers(1, 5), st.integers(0, 2**31))
def test_pointwise_and_constant_functions_are_reproduced(height, width, tiling, batch, seed):
    image = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    tile, overlap = tiling
    np.testing.assert_allclose(over_tiles(image, lambda x: 2 * x + 1, tile, overlap, batch), 2 * image + 1, atol=1e-5)
    constant = over_tiles(image, lambda x: np.full_like(x, 0.25), tile, overlap, batch)
    assert constant.shape == image.shape
    np.testing.assert_allclose(constant, 0.25, atol=1e-6)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_an_image_no_larger_than_a_tile_is_not_tiled(height, width, seed):
    image = np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)

    def blur(x):  # depends on neighbours, so that blending or another padding would show
        return x + np.roll(x, 1, axis=-1) * np.roll(x, 2, axis=-2)

    np.testing.assert_array_equal(over_tiles(image, blur, 16, 4, 2), blur(pad(image, 16))[:, :height, :width])


def test_blending_hides_the_seams():
    """A function that is wrong at tile borders is right after blending, up to the small weights of borders."""
    ramp = np.zeros((16, 16))
    ramp[:1] = ramp[-1:] = ramp[:, :1] = ramp[:, -1:] = 1.0
    blended = over_tiles(np.zeros((1, 28, 28), np.float32), lambda x: np.broadcast_to(ramp, x.shape), 16, 8)
    assert blended[0, 2:-2, 2:-2].max() < 0.05


def test_padding_reflects_also_more_than_once():
    np.testing.assert_array_equal(pad(np.array([[0, 1, 2]]), 7)[0], [0, 1, 2, 1, 0, 1, 2])
    assert pad(np.ones((2, 1, 1)), 5).shape == (2, 5, 5)
    large = np.ones((9, 9))
    assert pad(large, 5) is large


def test_window_is_symmetric_and_full_inside():
    shape = window(32, 8)
    np.testing.assert_array_equal(shape, shape[::-1])
    np.testing.assert_array_equal(shape, shape.T)
    assert shape[8:24, 8:24].min() == 1.0
    assert shape[0, 0] > 0
    assert (window(8, 0) == 1).all()


def test_sizes_without_a_tiling_are_refused():
    for sizes in ((0, 5, 4, 1), (5, 5, 4, 4), (5, 5, 4, -1)):
        with pytest.raises(ValueError, match="no tiling"):
            tiles(*sizes)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, tilings, st.integers(1, 5), st.integers(0, 2**31))
def test_bands_are_over_tiles_bit_for_bit(height, width, tiling, batch, seed):
    image = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    tile, overlap = tiling
    asked = []

    def rows(top, stop):
        asked.append((top, stop))
        return image[top:stop]

    def blur(x):  # depends on neighbours and on the place in the tile
        return (x + np.roll(x, 1, axis=-1) * np.roll(x, 2, axis=-2)) * np.linspace(0.5, 1.5, tile, dtype=np.float32)

    parts = list(bands(rows, height, width, blur, tile, overlap, batch))
    assert [top for top, _ in parts] == np.cumsum([0, *(len(values) for _, values in parts)])[:-1].tolist()
    assert all(values.dtype == np.float32 and 1 <= len(values) <= tile for _, values in parts)
    whole = over_tiles(image[None], blur, tile, overlap, batch)[0]
    np.testing.assert_array_equal(np.concatenate([values for _, values in parts]), whole)
    # Each row is read once, in order, and no sooner than its tiles need it.
    assert [top for top, _ in asked] == [0, *(stop for _, stop in asked[:-1])] and asked[-1][1] == height


def test_bands_hold_a_few_rows_of_tiles():
    """Peak memory does not depend on the height."""
    import tracemalloc

    peaks = []
    for height in (128, 1024):
        tracemalloc.start()
        for _ in bands(lambda top, stop: np.zeros((stop - top, 256), np.float32), height, 256, lambda x: x, 32, 8):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2**20
