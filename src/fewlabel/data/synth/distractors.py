"""Target-like clutter that is never labelled: large blobs, thin lines, cold spots, glint groups."""

import numpy as np

from fewlabel.data.synth.fields import Array, log_uniform


def add_distractors(rng: np.random.Generator, scene: Array, sigma: float) -> None:
    """Draw one to three pieces of clutter into `scene` (H, W, relative radiance) in place.

    Kinds: a bright or dark body much larger than any target, a thin straight line that crosses the picture (wire,
    contrail, mast), a small *cold* spot, and a ragged group of bright grains on a hot body.

    Args:
        rng: source of all randomness.
        scene: background radiance, changed in place.
        sigma: local contrast unit (noise and clutter), full scale = 1; strengths are drawn as multiples of it.
    """
    painters = (_body, _line, _cold_spot, _grains)
    for _ in range(int(rng.choice(4, p=(0.0, 0.7, 0.22, 0.08)))):
        painters[int(rng.integers(len(painters)))](rng, scene, sigma)


def _body(rng: np.random.Generator, scene: Array, sigma: float) -> None:
    """Disc or ellipse of radius 12 px and more with a soft rim: sun, moon, near vehicle, heated roof."""
    height, width = scene.shape
    radius = log_uniform(rng, 12, max(14, 0.2 * min(height, width)))
    y = (np.arange(height, dtype=np.float32)[:, None] - rng.uniform(0, height)) / radius
    x = (np.arange(width, dtype=np.float32)[None, :] - rng.uniform(0, width)) / (radius * rng.uniform(0.6, 2.0))
    rim = log_uniform(rng, 0.05, 0.8)
    inside = np.clip((1 - np.hypot(y, x)) / rim + 0.5, 0, 1)
    scene += (rng.choice([-0.5, 1.0]) * min(log_uniform(rng, 3, 40) * sigma, 0.5) * inside).astype(np.float32)


def _line(rng: np.random.Generator, scene: Array, sigma: float) -> None:
    """Straight line of 0.5 to 2 px width through the whole picture."""
    height, width = scene.shape
    angle = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None] - rng.uniform(0, height)
    x = np.arange(width, dtype=np.float32)[None, :] - rng.uniform(0, width)
    distance = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    profile = np.exp(-0.5 * (distance / np.float32(rng.uniform(0.5, 2.0))) ** 2)
    scene += np.float32(rng.choice([-1.0, 1.0]) * min(log_uniform(rng, 1, 10) * sigma, 0.25)) * profile


def _cold_spot(rng: np.random.Generator, scene: Array, sigma: float) -> None:
    """Small dark Gaussian: same size as a target, opposite sign."""
    _spot(rng, scene, rng.uniform(0.6, 2.5), -min(log_uniform(rng, 4, 20) * sigma, 0.4))


def _grains(rng: np.random.Generator, scene: Array, sigma: float) -> None:
    """A dozen touching bright grains over tens of pixels: rock, foliage or a broken cloud tip."""
    height, width = scene.shape
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    strength = min(log_uniform(rng, 2, 10) * sigma, 0.3)
    for dy, dx in rng.normal(0, 8, (14, 2)):
        _spot(rng, scene, rng.uniform(1.5, 5), strength * rng.uniform(0.4, 1), (cy + dy, cx + dx))


def _spot(
    rng: np.random.Generator, scene: Array, sigma: float, strength: float, centre: tuple[float, float] | None = None
) -> None:
    """Add one Gaussian of `sigma` pixels in place, at `centre` (y, x) or anywhere."""
    height, width = scene.shape
    cy, cx = centre or (rng.uniform(0, height), rng.uniform(0, width))
    reach = int(np.ceil(3 * sigma)) + 1
    y0, y1 = max(0, int(cy) - reach), min(height, int(cy) + reach + 1)
    x0, x1 = max(0, int(cx) - reach), min(width, int(cx) + reach + 1)
    if y1 > y0 and x1 > x0:
        y, x = np.arange(y0, y1)[:, None] - cy, np.arange(x0, x1)[None, :] - cx
        scene[y0:y1, x0:x1] += (strength * np.exp(-0.5 * (y**2 + x**2) / sigma**2)).astype(np.float32)
