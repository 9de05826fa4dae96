"""Gain and offset invariance of the network input."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.radiometry import standardise, to_unit


@given(st.floats(0.01, 1000), st.floats(-1e4, 1e4), st.integers(0, 2**16))
def test_standardise_ignores_gain_and_offset(gain: float, offset: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).normal(size=(9, 7)).astype(np.float32)
    reference = standardise(pixels)
    changed = standardise(pixels.astype(np.float64) * gain + offset)
    if gain > 1e-4 * abs(offset):  # below that a recorded image would count as constant
        np.testing.assert_allclose(changed, reference, atol=1e-4)
    assert abs(reference.mean()) < 1e-5 and abs(reference.std() - 1) < 1e-4


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
