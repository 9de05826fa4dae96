"""Detector and camera model: relative radiance → 14-bit counts, with the defects of an uncooled or cooled array."""

import numpy as np
from numpy.typing import NDArray

from fewlabel.data.synth.fields import Array, blur, unit_deviation

FULL_SCALE = 16383
"""Largest count of the 14-bit converter."""


def noise_sigma(radiance: Array, shot: float, read: float) -> Array:
    """Temporal noise (H, W), standard deviation in units of the full scale: sqrt(read² + shot² · radiance).

    `shot` is the photon noise at full scale, so its variance grows linearly with the signal (Poisson statistics).
    """
    return np.sqrt(np.float32(read**2) + np.float32(shot**2) * np.clip(radiance, 0, 1))


def temporal_noise(rng: np.random.Generator, sigma: Array, correlation: tuple[float, float]) -> Array:
    """Gaussian noise (H, W) of local standard deviation `sigma`.

    `correlation` is the (y, x) length in pixels over which resampling, compression and read-out smear the noise; the
    deviation is kept. (0, 0) gives white noise.
    """
    white = rng.standard_normal(sigma.shape, dtype=np.float32)
    if max(correlation) > 0:
        white = blur(white, correlation)
        white = unit_deviation(white)
    return white * sigma


def fixed_pattern(rng: np.random.Generator, radiance: Array, column: float, row: float, gain: float) -> Array:
    """Residual non-uniformity after calibration (H, W): column offsets, row offsets, and gain that varies by column.

    Args:
        rng: source of all randomness.
        radiance: (H, W) that the gain error multiplies.
        column: standard deviation of the column offsets (vertical stripes), full scale = 1.
        row: standard deviation of the row offsets (horizontal stripes).
        gain: standard deviation of the relative column gain.
    """
    height, width = radiance.shape
    offsets_x = rng.standard_normal((width,), dtype=np.float32) * np.float32(column)
    offsets_y = rng.standard_normal((height,), dtype=np.float32) * np.float32(row)
    gains = rng.standard_normal((width,), dtype=np.float32) * np.float32(gain)
    return np.asarray(offsets_x[None, :] + offsets_y[:, None] + gains[None, :] * radiance, np.float32)


def bad_pixels(rng: np.random.Generator, counts: Array, hot: int, dead: int, avoid: NDArray[np.bool_]) -> None:
    """Set single hot and dead pixels in `counts` (H, W, full scale = 1) in place, outside `avoid` (H, W)."""
    height, width = counts.shape
    for number, low, high in ((hot, 0.7, 1.0), (dead, 0.0, 0.1)):
        y, x = rng.integers(0, height, number), rng.integers(0, width, number)
        values = rng.uniform(low, high, number).astype(np.float32)
        counts[y, x] = np.where(avoid[y, x], counts[y, x], values)


def sharpen(counts: Array, strength: float, sigma: float) -> Array:
    """Detail enhancement of many cameras, x + strength (x - blurred x): gives small targets a dark halo."""
    return counts + np.float32(strength) * (counts - blur(counts, sigma))


def quantise(counts: Array, bits: int) -> NDArray[np.uint16]:
    """Counts (H, W), full scale = 1 → uint16 0 to 16383 on 2^bits equal levels (cameras keep 14 bits or fewer)."""
    levels = np.float32(2**bits - 1)
    steps = np.rint(np.clip(counts, 0, 1) * levels) / levels
    return np.rint(steps * np.float32(FULL_SCALE)).astype(np.uint16)
