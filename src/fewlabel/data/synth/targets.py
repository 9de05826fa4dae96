"""Small targets as seen through optics: sums of Gaussians, rendered analytically at sub-pixel positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewlabel.core.masks import components
from fewlabel.data.synth.fields import Array

SHAPES = ("point", "blob", "elongated", "streak", "aircraft", "ship")


@dataclass(frozen=True)
class Parts:
    """A target before the optics, in units of its own size.

    Attributes:
        offsets: float64 (K, 2), (y, x) of each part's centre.
        axes: float64 (K, 2), standard deviation along the part's own two axes.
        angles: float64 (K,), radians, direction of the first axis, 0 = along x.
        weights: float64 (K,), peak brightness of each part before blur.
    """

    offsets: NDArray[np.float64]
    axes: NDArray[np.float64]
    angles: NDArray[np.float64]
    weights: NDArray[np.float64]


def draw_parts(rng: np.random.Generator, shape: str) -> Parts:
    """Random target of one of SHAPES, turned at random; its size is set later by `render_target`."""
    turn = rng.normal(0, 0.35) if rng.random() < 0.4 else rng.uniform(0, np.pi)
    rows: list[tuple[float, float, float, float, float, float]]
    if shape == "point":
        rows = [(0, 0, 0.05, 0.05, 0, 1)]
    elif shape == "blob":
        rows = [(0, 0, 1, rng.uniform(0.7, 1), 0, 1)]
        rows += [(*rng.normal(0, 0.9, 2), *rng.uniform(0.4, 0.9, 2), rng.uniform(0, 3), rng.uniform(0.3, 0.9))] * 1
    elif shape == "elongated":
        rows = [(0, 0, 1, rng.uniform(0.3, 0.6), 0, 1)]
    elif shape == "streak":
        length = rng.uniform(1.0, 2.2)
        fade = rng.uniform(-0.4, 0.4)
        rows = [(0, t * length, length / 3, 0.25, 0, 1 + fade * t) for t in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    elif shape == "aircraft":
        sweep, wing = rng.uniform(0.2, 0.9), rng.uniform(0.6, 1.3)
        rows = [(0, 0, 1.3, 0.28, 0, 1)]
        rows += [(side * wing * 0.6, -0.1, wing * 0.55, 0.22, side * (np.pi / 2 + sweep), 0.8) for side in (-1, 1)]
        rows += [(0, rng.choice([-1.0, 1.0]) * 1.1, 0.3, 0.3, 0, rng.uniform(0.3, 1.5))]
    else:
        rows = [(0, 0, 1.6, 0.3, 0, 1), (-0.45, rng.uniform(-0.8, 0.8), 0.4, 0.35, 0, rng.uniform(0.6, 1.6))]
        turn = rng.normal(0, 0.12)
    table = np.array(rows, dtype=np.float64)
    cos, sin = np.cos(turn), np.sin(turn)
    offsets = np.stack([table[:, 0] * cos + table[:, 1] * sin, table[:, 1] * cos - table[:, 0] * sin], 1)
    return Parts(offsets, table[:, 2:4], table[:, 4] - turn, table[:, 5])


def render_target(
    parts: Parts, scale: float, psf: float, centre: tuple[float, float], size: tuple[int, int], flat: float
) -> Array:
    """Signal of one target on a pixel grid: each part convolved with the Gaussian point spread in closed form.

    A Gaussian of covariance S seen through a point spread of variance s² is a Gaussian of covariance S + s² I whose
    peak falls by sqrt(|S| / |S + s² I|).

    Args:
        parts: shape in units of its own size.
        scale: pixels per unit of size.
        psf: standard deviation of the point spread in pixels.
        centre: (y, x) of the target; the centre of pixel (i, j) is (i, j).
        size: (height, width) of the grid.
        flat: 0 keeps the profile; larger values flatten its top, 1 - exp(-flat x), as hot extended bodies do.

    Returns:
        float32 (H, W), peak scaled to 1.
    """
    y = np.arange(size[0], dtype=np.float64)[:, None]
    x = np.arange(size[1], dtype=np.float64)[None, :]
    total = np.zeros(size)
    for (oy, ox), (a, b), angle, weight in zip(parts.offsets, parts.axes, parts.angles, parts.weights, strict=True):
        va, vb = (a * scale) ** 2, (b * scale) ** 2
        fall = np.sqrt(va * vb / ((va + psf**2) * (vb + psf**2)))
        cos, sin = np.cos(angle), np.sin(angle)
        dy, dx = y - centre[0] - oy * scale, x - centre[1] - ox * scale
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        total += weight * fall * np.exp(-0.5 * (along**2 / (va + psf**2) + across**2 / (vb + psf**2)))
    total /= total.max()
    if flat > 0:
        total = (1 - np.exp(-flat * total)) / (1 - np.exp(-flat))
    return total.astype(np.float32)


def target_mask(signal: Array, level: float) -> NDArray[np.bool_]:
    """Pixels (H, W) whose signal is at least `level` of its peak, 8-connected to the peak pixel; never empty."""
    peak = int(signal.argmax())
    labels, _ = components(signal >= level * signal.flat[peak])
    return np.asarray(labels == labels.flat[peak])


def draw_target(
    rng: np.random.Generator, shape: str, area: float, psf: float, level: float, limits: tuple[int, int]
) -> tuple[Array, NDArray[np.bool_]]:
    """Random target of about `area` mask pixels on a patch of its own.

    Args:
        rng: source of all randomness.
        shape: one of SHAPES.
        area: wanted number of mask pixels; the optics set a floor of about 4 psf².
        psf: standard deviation of the point spread in pixels.
        level: mask threshold relative to the peak.
        limits: (least, most) mask pixels wanted; where the optics alone exceed the upper one, the blur is reduced.

    Returns:
        signal float32 (P, P), peak 1, and its mask bool (P, P), both with a margin that holds the tails.
    """
    parts, flat = draw_parts(rng, shape), float(rng.choice([0.0, rng.uniform(0.5, 2.5)]))
    shift = rng.uniform(-0.5, 0.5, 2)
    reach = float(np.abs(parts.offsets).max() + 2 * parts.axes.max())
    scale = np.sqrt(area / 4) * 0.6
    for attempt in range(30):
        half = int(np.ceil(reach * scale + 3 * psf)) + 2
        signal = render_target(parts, scale, psf, (half + shift[0], half + shift[1]), (2 * half + 1,) * 2, flat)
        mask = target_mask(signal, level)
        found = int(mask.sum())
        fits = limits[0] <= found <= limits[1]
        if fits and (attempt >= 4 or abs(found - area) <= 0.1 * area):
            break
        scale *= float(np.clip(np.sqrt(area / found), 0.5, 2.0))
        if attempt >= 4 and found > limits[1]:
            psf *= 0.8
    return signal, mask


def draw_area(rng: np.random.Generator, median: float, spread: float, limits: tuple[int, int]) -> float:
    """Log-normal target area in pixels, drawn again (at most 20 times) until inside `limits`, then clipped."""
    for _ in range(20):
        area = float(median * np.exp(spread * rng.standard_normal()))
        if limits[0] <= area <= limits[1]:
            return area
    return float(np.clip(area, *limits))
