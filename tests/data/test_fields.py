import numpy as np
import pytest

from fewlabel.data.synth import fields


def test_power_law_has_the_asked_spectrum():
    """Oracle: slope of the radially averaged periodogram, averaged over fields."""
    power = np.zeros((128, 128))
    window = np.outer(np.hanning(128), np.hanning(128))
    for k in range(20):
        field = fields.power_law(np.random.default_rng(k), (128, 128), 3.0)
        power += np.abs(np.fft.fft2(field * window)) ** 2
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    chosen = (f > 0.05) & (f < 0.4)
    slope = np.polyfit(np.log(f[chosen]), np.log(power[chosen]), 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.25)


def test_power_law_is_standardised_and_float32():
    field = fields.power_law(np.random.default_rng(0), (33, 70), 2.5, 3.0)
    assert field.dtype == np.float32 and field.shape == (33, 70)
    assert field.mean() == pytest.approx(0, abs=1e-4) and field.std() == pytest.approx(1, rel=1e-3)


def test_stretch_lengthens_structures_along_x():
    field = fields.power_law(np.random.default_rng(0), (128, 128), 2.5, 8.0)
    along_x, along_y = np.abs(np.diff(field, axis=1)).mean(), np.abs(np.diff(field, axis=0)).mean()
    assert along_x < 0.5 * along_y


def test_opposite_borders_do_not_match():
    jumps = []
    for k in range(10):
        field = fields.power_law(np.random.default_rng(k), (64, 64), 3.5)
        jumps.append(np.abs(field[:, 0] - field[:, -1]).mean() / np.abs(np.diff(field, axis=1)).mean())
    assert np.mean(jumps) > 3


@pytest.mark.parametrize("length", [2, 17, 256])
def test_curve_length_and_scale(length):
    line = fields.curve(np.random.default_rng(1), length, 2.0)
    assert line.shape == (length,) and line.dtype == np.float32 and np.isfinite(line).all()


def test_smoothstep_rises_from_0_to_1():
    x = np.linspace(-2, 2, 101, dtype=np.float32)
    y = fields.smoothstep(x, 0.0, 1.0)
    assert y[0] == 0 and y[-1] == 1 and y[50] == pytest.approx(0.5, abs=1e-5) and (np.diff(y) >= 0).all()


def test_log_uniform_stays_inside_and_is_uniform_in_the_logarithm():
    rng = np.random.default_rng(0)
    values = [fields.log_uniform(rng, 0.01, 100) for _ in range(2000)]
    assert min(values) >= 0.01 and max(values) <= 100
    assert np.median(values) == pytest.approx(1, rel=0.4)
