"""Random fields that scenes are made of: power-law noise, curves, blur; float32, seeded by the caller."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]
Size = tuple[int, int]


@lru_cache(maxsize=32)
def _frequencies(height: int, width: int) -> tuple[Array, Array]:
    """Squared frequencies of a real 2-D transform, cycles² per pixel²: columns (height, 1), rows (1, width//2+1)."""
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None] ** 2
    fx = np.fft.rfftfreq(width).astype(np.float32)[None, :] ** 2
    return fy, fx


def power_law(rng: np.random.Generator, size: Size, slope: float, stretch: float = 1.0, coarsest: float = 2.0) -> Array:
    """Gaussian random field whose power spectrum falls as 1 / f^slope, the usual model of clouds and terrain.

    Circularly symmetric complex Gaussian Fourier coefficients times f^(-slope/2), transformed back. The field is
    computed on a frame an eighth larger and cropped, so that opposite borders do not match.

    Args:
        rng: source of all randomness.
        size: (height, width) in pixels.
        slope: exponent of the power spectrum; 2 is rough, 3 is cloud-like, 4 is smooth.
        stretch: how many times longer the structures are along x than along y (below 1: longer along y).
        coarsest: largest structure in units of the larger image side; power is flat below that frequency.

    Returns:
        float32 (H, W), mean 0 and standard deviation 1 over the image (all zeros for a single pixel).
    """
    frame_h, frame_w = (fft.next_fast_len(side + side // 8 + 1, real=True) for side in size)
    fy, fx = _frequencies(frame_h, frame_w)
    floor = np.float32((1.0 / (coarsest * max(size))) ** 2)
    power = fy / np.float32(stretch) + fx * np.float32(stretch) + floor
    amplitude = np.exp(np.float32(-slope / 4) * np.log(power))
    amplitude[0, 0] = 0
    noise = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
    spectrum = np.empty(amplitude.shape, np.complex64)
    spectrum.real = noise[0] * amplitude
    spectrum.imag = noise[1] * amplitude
    field = fft.irfft2(spectrum, s=(frame_h, frame_w))[: size[0], : size[1]]
    return unit_deviation(field)


def unit_deviation(field: Array) -> Array:
    """Field (H, W) shifted to mean 0 and scaled to standard deviation 1; a constant field becomes zeros. float32."""
    centred = field - field.mean()
    centred /= np.sqrt(np.square(centred).mean()) + np.float32(1e-12)
    return np.asarray(centred, np.float32)


def curve(rng: np.random.Generator, length: int, slope: float) -> Array:
    """One-dimensional power-law curve, e.g. a skyline: float32 (length,), mean 0, standard deviation 1."""
    n = fft.next_fast_len(length + length // 4 + 2, real=True)
    f = np.fft.rfftfreq(n)
    f[0] = np.inf
    spectrum = (rng.standard_normal(f.size) + 1j * rng.standard_normal(f.size)) * f ** (-slope / 2)
    line = fft.irfft(spectrum, n)[:length]
    return ((line - line.mean()) / (line.std() + 1e-12)).astype(np.float32)


def blur(field: Array, sigma: float | tuple[float, float]) -> Array:
    """Gaussian blur of (H, W), standard deviation in pixels (one, or one for y and one for x), borders mirrored."""
    return gaussian_filter(field, sigma, mode="reflect", truncate=3.0)


def smoothstep(x: Array, edge: float, width: float) -> Array:
    """Cubic step from 0 to 1 centred at `edge` over `width` (both in the units of x); C1-smooth."""
    t = np.clip((x - np.float32(edge)) / np.float32(max(width, 1e-6)) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def ramp(size: Size, angle: float) -> Array:
    """Linear ramp over the image along `angle` (radians, 0 = towards +x): float32 (H, W), about -0.5 to 0.5."""
    y = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[None, :]
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """One number between low and high (both > 0) whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
