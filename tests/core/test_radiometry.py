"""From recorded units to network input: what gain and offset do, and every policy against its formula."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm

from fewlabel.core.radiometry import Radiometry, apply, standardise, to_unit


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


POLICIES = {
    "standard": Radiometry(),
    "percentile": Radiometry(policy="percentile"),
    "min-max": Radiometry(policy="min-max"),
    "fixed": Radiometry(policy="fixed", low=-40, high=120),
    "clahe": Radiometry(policy="clahe", tiles=3),
}
INVARIANT = [name for name in POLICIES if name != "fixed"]


def scene(seed: int = 0, shape: tuple[int, int] = (41, 37)) -> np.ndarray:
    """A noisy slope with a hot spot, in degrees."""
    grey = np.random.default_rng(seed).normal(20, 3, shape) + np.linspace(-5, 5, shape[1])
    grey[7:9, 11:13] += 60
    return grey.astype(np.float32)


def clahe_by_loop(grey: np.ndarray, tiles: int, clip: float) -> np.ndarray:
    """Zuiderveld's method pixel by pixel in plain Python."""
    low, high, (height, width) = float(grey.min()), float(grey.max()), grey.shape
    across, down = min(tiles, width), min(tiles, height)

    def tile_map(i: int, j: int, value: float) -> float:
        rows = range(i * height // down, (i + 1) * height // down)
        columns = range(j * width // across, (j + 1) * width // across)
        counts = [0.0] * 256
        for y in rows:
            for x in columns:
                counts[min(255, int((float(grey[y, x]) - low) / (high - low) * 256))] += 1
        number = len(rows) * len(columns)
        limit = clip * number / 256
        excess = sum(max(0.0, count - limit) for count in counts)
        counts = [min(count, limit) + excess / 256 for count in counts]
        place = (value - low) / (high - low) * 256
        bin = min(255, int(place))
        return (sum(counts[:bin]) + (place - bin) * counts[bin]) / number

    def around(pixel: int, side: int, count: int) -> tuple[int, int, float]:
        centres = [(i * side // count + (i + 1) * side // count - 1) / 2 for i in range(count)]
        if pixel <= centres[0]:
            return 0, 0, 0.0
        for i in range(count - 1):
            if pixel <= centres[i + 1]:
                return i, i + 1, (pixel - centres[i]) / (centres[i + 1] - centres[i])
        return count - 1, count - 1, 0.0

    out = np.empty(grey.shape)
    for y in range(height):
        for x in range(width):
            top, bottom, v = around(y, height, down)
            left, right, h = around(x, width, across)
            value = float(grey[y, x])
            upper = (1 - h) * tile_map(top, left, value) + h * tile_map(top, right, value)
            lower = (1 - h) * tile_map(bottom, left, value) + h * tile_map(bottom, right, value)
            out[y, x] = 12**0.5 * ((1 - v) * upper + v * lower - 0.5)
    return out


@pytest.mark.parametrize(("shape", "tiles", "clip"), [((11, 14), 3, 2.0), ((2, 9), 4, 1.0), ((7, 5), 1, 500.0)])
def test_clahe_is_that_of_the_brute_force_loop(shape: tuple[int, int], tiles: int, clip: float) -> None:
    grey = np.random.default_rng(1).gamma(1, 100, shape).astype(np.float32) - 50
    result = apply(Radiometry(policy="clahe", tiles=tiles, clip=clip), grey)
    np.testing.assert_allclose(result, clahe_by_loop(grey, tiles, clip), atol=1e-5)


def test_clahe_without_limit_spreads_evenly_and_with_one_stays_near_the_line() -> None:
    grey = np.random.default_rng(0).gamma(2, 50, (64, 64)).astype(np.float32)
    even = np.sort(apply(Radiometry(policy="clahe", tiles=1, clip=1e6), grey).ravel())
    np.testing.assert_allclose(even, np.linspace(-(3**0.5), 3**0.5, even.size), atol=0.02)
    order = np.argsort(grey.ravel())
    slopes = np.diff(
        apply(Radiometry(policy="clahe", tiles=1, clip=2), grey).ravel()[order].astype(float)
    ) / np.maximum(np.diff(apply(POLICIES["min-max"], grey).ravel()[order].astype(float)), 1e-9)
    assert slopes.min() > -1e-3 and slopes.max() < 3 + 0.2  # 0.2: float32 steps between close values


def test_standard_is_standardise_bit_for_bit() -> None:
    for grey in (scene(), np.full((5, 4), 7.0, np.float32), 1e30 * scene(2)):
        np.testing.assert_array_equal(apply(Radiometry(), grey), standardise(grey))


def test_percentile_min_max_and_fixed_are_the_lines_that_they_say() -> None:
    grey = scene()
    result = apply(Radiometry(policy="percentile", low=10, high=75), grey)
    first, last = np.quantile(grey.astype(float), [0.1, 0.75])
    z = norm.ppf([0.1, 0.75])
    np.testing.assert_allclose(result, np.polyval(np.polyfit([first, last], z, 1), grey), atol=1e-5)
    result = apply(POLICIES["min-max"], grey)
    np.testing.assert_allclose([result.min(), result.max()], [-(3**0.5), 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(
        result, standardise(grey) * (result.std() / standardise(grey).std()) + result.mean(), atol=1e-5
    )
    np.testing.assert_allclose(apply(POLICIES["fixed"], grey), 12**0.5 * ((grey + 40) / 160 - 0.5), atol=1e-5)


def test_scale_is_what_networks_expect() -> None:
    rng = np.random.default_rng(0)
    normal, even = (
        rng.normal(290, 7, (200, 200)).astype(np.float32),
        rng.uniform(-40, 120, (200, 200)).astype(np.float32),
    )
    for name, grey in (("standard", even), ("percentile", normal), ("min-max", even), ("fixed", even), ("clahe", even)):
        result = apply(POLICIES[name], grey)
        assert result.dtype == np.float32 and result.shape == grey.shape
        assert abs(result.mean()) < 0.05 and abs(result.std() - 1) < 0.05, name


@pytest.mark.parametrize("name", INVARIANT)
@given(st.floats(-20, 20), st.floats(-1e3, 1e3), st.integers(0, 2**16))
def test_gain_and_offset_do_not_matter(name: str, decade: float, offset: float, seed: int) -> None:
    grey = scene(seed, (16, 17)).astype(np.float64)
    changed = 10**decade * (grey + offset)
    np.testing.assert_allclose(apply(POLICIES[name], changed), apply(POLICIES[name], grey), atol=2e-3)


def test_fixed_keeps_gain_and_offset() -> None:
    grey, policy = scene(), POLICIES["fixed"]
    np.testing.assert_allclose(apply(policy, grey + 8) - apply(policy, grey), 12**0.5 * 8 / 160, atol=1e-5)
    np.testing.assert_array_equal(apply(policy, grey)[:9, :9], apply(policy, grey[:9, :9]))  # no statistics at all
    assert apply(policy, grey).max() == apply(policy, grey)[7:9, 11:13].max()


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("level", [0.0, 7.0, -300.5, 1e30])
def test_image_of_one_value_becomes_zeros(name: str, level: float) -> None:
    grey = np.full((9, 7), level, np.float32)
    assert not apply(POLICIES[name], grey).any()
    grey[3, 3] = np.nextafter(np.float32(level), np.float32(np.inf))
    assert level == 0 or not apply(POLICIES[name], grey).any()


def test_image_of_one_value_keeps_its_level_where_the_range_is_fixed() -> None:
    grey = np.full((9, 7), 120, np.float32)
    np.testing.assert_allclose(apply(POLICIES["fixed"], grey), 3**0.5, rtol=1e-6)


def test_flat_image_with_targets_does_not_lose_them() -> None:
    grey = np.zeros((100, 100), np.float32)
    grey[4, 4] = 9
    np.testing.assert_array_equal(apply(POLICIES["percentile"], grey), standardise(grey))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("scale", [-1.0, 1e-30, 3e36, -3e36])
def test_huge_tiny_and_negative_values(name: str, scale: float) -> None:
    result = apply(POLICIES[name], (scale * scene()).astype(np.float32))
    assert np.isfinite(result).all() and result.dtype == np.float32


@pytest.mark.parametrize("name", POLICIES)
def test_order_of_values_is_kept(name: str) -> None:
    grey = np.sort(scene().ravel())[None]
    policy = Radiometry(policy="clahe", tiles=1) if name == "clahe" else POLICIES[name]
    assert (np.diff(apply(policy, grey)) >= 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_record_comes_back_from_json(name: str) -> None:
    text = POLICIES[name].model_dump_json()
    assert Radiometry.model_validate_json(text) == POLICIES[name]
    assert POLICIES["percentile"].low == 1 and '"high":99.0' in POLICIES["percentile"].model_dump_json()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"policy": "agc"}, "policy"),
        ({"low": 3}, "policy standard has no low"),
        ({"policy": "min-max", "clip": 3}, "policy min-max has no clip"),
        ({"policy": "fixed", "low": 3}, "policy fixed needs high"),
        ({"policy": "fixed", "low": 3, "high": 3}, "below high"),
        ({"policy": "fixed", "low": 0, "high": float("inf")}, "finite"),
        ({"policy": "percentile", "low": 0}, "above 0"),
        ({"policy": "percentile", "high": 100}, "below 100"),
        ({"policy": "clahe", "low": 1}, "policy clahe has no low"),
        ({"policy": "clahe", "tiles": 0}, "greater than or equal to 1"),
        ({"policy": "clahe", "bins": 9}, "bins"),
    ],
)
def test_senseless_records_are_refused(options: dict, word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Radiometry(**options)
