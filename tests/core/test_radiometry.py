"""Gain and offset invariance of the network input."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.radiometry import standardise, to_unit


@given(st.floats(-30, 30), st.floats(-1e4, 1e4), st.integers(0, 2**16))
def test_standardise_ignores_gain_and_offset_over_many_decades(decade: float, offset: float, seed: int) -> None:
    """The unit never matters; the offset, in standard deviations, may be ten thousand times the contrast."""
    pixels = np.random.default_rng(seed).normal(size=(9, 7)).astype(np.float32)
    reference = standardise(pixels)
    changed = 10**decade * (pixels.astype(np.float64) + offset)
    np.testing.assert_allclose(standardise(changed), reference, atol=1e-4)
    np.testing.assert_allclose(standardise(torch.from_numpy(changed)).numpy(), reference, atol=1e-4)
    assert abs(reference.mean()) < 1e-5 and abs(reference.std() - 1) < 1e-4


def test_float_images_in_small_units_are_not_taken_for_constant() -> None:
    pixels = np.random.default_rng(0).normal(1e-4, 5e-7, size=(32, 32)).astype(np.float32)
    assert abs(standardise(pixels).std() - 1) < 1e-3
    assert abs(standardise(torch.from_numpy(pixels)).numpy().std() - 1) < 1e-3


@given(st.floats(-30, 30), st.booleans(), st.integers(0, 2**16))
def test_rounding_of_a_constant_image_is_no_contrast(decade: float, negative: bool, seed: int) -> None:
    """Pixels that differ by up to two steps of float32, as a sum over channels leaves them, are one value."""
    value = np.float32(10**decade * (-1 if negative else 1))
    steps = np.random.default_rng(seed).integers(-2, 3, size=(8, 8))
    pixels = (value + steps * np.spacing(value)).astype(np.float32)
    assert not standardise(pixels).any()
    assert not standardise(torch.from_numpy(pixels)).any()


def test_constant_images_become_zero_and_torch_agrees_with_numpy() -> None:
    assert not standardise(np.full((4, 4), 7.0, np.float32)).any()
    assert not standardise(torch.full((2, 1, 4, 4), 7.0)).any()
    assert standardise(np.zeros((1, 1), np.float32)).tolist() == [[0.0]]
    pixels = np.random.default_rng(0).normal(3, 2, size=(2, 1, 8, 5)).astype(np.float32)
    np.testing.assert_allclose(standardise(torch.from_numpy(pixels)).numpy(), standardise(pixels), atol=1e-6)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20))
def test_to_unit_is_monotone_and_bounded(values: list[float]) -> None:
    z = np.sort(np.array(values, np.float32))
    unit = to_unit(z)
    assert (np.diff(unit) >= 0).all() and (unit >= 0).all() and (unit <= 1).all()
    assert to_unit(np.float32(0)) == 0.5
    np.testing.assert_allclose(to_unit(torch.from_numpy(z)).numpy(), unit, rtol=1e-6)
