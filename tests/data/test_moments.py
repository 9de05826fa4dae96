"""Moments by windows against numpy and the dense standardise."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.core.radiometry import Radiometry, apply, standardise
from fewlabel.core.types import Image
from fewlabel.data import moments
from fewlabel.data.moments import (
    WHOLE,
    Moments,
    grey_moments,
    grey_rows,
    prepared_windows,
    standardised_rows,
    whole_rows,
)
from fewlabel.data.windows import ImageWindows, open_windows

values = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1e6, 1e6, width=32))


@given(values, st.lists(st.integers(0, 30), max_size=4), st.floats(-1e7, 1e7))
def test_parts_give_the_whole(array, cuts, offset):
    array = array.astype(np.float64) + offset
    parts = [part for part in np.split(array, sorted(cuts)) if len(part)]
    total = sum((Moments.of(part) for part in parts), Moments())
    assert total.count == len(array)
    assert total.largest == np.abs(array).max()
    assert total.mean == pytest.approx(array.mean(), rel=1e-12, abs=1e-9)
    # The sums are centred: their error is that of the spread, plus what rounding the values to float64 leaves.
    assert total.deviation == pytest.approx(array.std(), rel=1e-9, abs=1e-13 * total.largest)


@pytest.mark.parametrize("offset", [0, 16_000])
def test_an_image_by_windows_is_the_dense_one(monkeypatch, tmp_path, offset):
    monkeypatch.setattr(moments, "ROWS", 20)
    monkeypatch.setattr(moments, "STRIPE", 33)
    drawn = np.random.default_rng(0).normal(0, 30, (131, 97)) + np.linspace(0, 50, 97)
    pixels = (drawn + 300 + offset).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(32, 32), compression="zlib")
    reader = open_windows(tmp_path / "a.tif")
    result = grey_moments(reader)
    assert result.count == pixels.size and result.largest == pixels.max()
    assert result.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert result.deviation == pytest.approx(pixels.std(), rel=1e-12)
    dense = standardise(pixels.astype(np.float32))
    np.testing.assert_allclose(standardised_rows(reader, result)(40, 131), dense[40:], rtol=1e-6, atol=1e-6)


def test_colours_become_the_grey_of_the_image():
    image = Image("a", np.random.default_rng(0).uniform(0, 255, (3, 70, 41)).astype(np.float32))
    reader = ImageWindows(image)
    np.testing.assert_allclose(grey_rows(reader)(5, 70), image.grey()[5:], rtol=1e-6)
    np.testing.assert_allclose(
        standardised_rows(reader, grey_moments(reader))(0, 70), standardise(image.grey()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("level", [0.0, 0.1, 70_000.0])
def test_an_image_of_one_value_is_zeros(level):
    pixels = np.full((1, 300, 50), level, np.float32)
    reader = ImageWindows(Image("a", pixels))
    assert not standardised_rows(reader, grey_moments(reader))(0, 9).any()
    assert not standardise(pixels[0]).any()


def test_rows_follow_the_blocks_of_the_file(tmp_path):
    """No tile is decoded twice for the statistics, also where tiles are higher than the rows read at once."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones((1500, 64), np.uint8), tile=(448, 64), compression="zlib")
    reader = open_windows(tmp_path / "a.tif")
    tops = []
    whole = reader.read
    reader.read = lambda top, left, height, width: tops.append(top) or whole(top, left, height, width)
    grey_moments(reader)
    assert tops == [0, 448, 896, 1344]


@pytest.mark.parametrize("policy", ["standard", "fixed", "min-max"])
def test_prepared_windows_are_those_of_the_whole(tmp_path, policy):
    values = np.random.default_rng(5).normal(-300, 40, (700, 90)).astype(np.float32)
    values[-1, 3], values[300, 80] = -900, 700
    tifffile.imwrite(tmp_path / "a.tif", values, rowsperstrip=48, compression="zlib")
    radiometry = Radiometry(policy="fixed", low=-400, high=0) if policy == "fixed" else Radiometry(policy=policy)
    windows = prepared_windows(radiometry, open_windows(tmp_path / "a.tif"))
    whole = apply(radiometry, values)
    exact = {"rtol": 1e-6, "atol": 1e-6} if policy == "standard" else {"rtol": 0, "atol": 0}
    for top, left, height, width in ((0, 0, 700, 90), (13, 7, 130, 1), (699, 89, 1, 1), (250, 40, 100, 50)):
        part = windows(top, left, height, width)
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, whole[top : top + height, left : left + width], **exact)
    rows = whole_rows(windows, 90)
    np.testing.assert_array_equal(rows(40, 300), windows(40, 0, 260, 90))


@pytest.mark.parametrize("policy", ["standard", "min-max"])
def test_windows_of_an_image_of_one_value_are_zeros(policy):
    flat = Image("flat", np.full((1, 70, 50), 16000, np.float32))
    windows = prepared_windows(Radiometry(policy=policy), ImageWindows(flat))
    np.testing.assert_array_equal(windows(3, 2, 60, 40), np.zeros((60, 40), np.float32))


@pytest.mark.parametrize("policy", WHOLE)
def test_radiometry_that_needs_the_whole_image_has_no_windows(policy):
    flat = Image("flat", np.zeros((1, 70, 50), np.float32))
    with pytest.raises(ValueError, match=f"'{policy}' needs the whole image"):
        prepared_windows(Radiometry(policy=policy), ImageWindows(flat))
