"""Class-agnostic scenes of overlapping objects with exact instance labels, for pre-training a promptable segmenter.

Half of the scenes (by default) are generic: textured ground with ellipses, polygons, blobs, rings and bars of any
colour. The others look like microscopy: glowing nuclei on dark ground (fluorescence), dyed nuclei on bright ground
(stained), and grey cells on bright ground (brightfield). Objects are painted back to front; labels are what is seen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fewlabel.core.errors import DataError
from fewlabel.data.synth.fields import Array, blur, log_uniform, power_law, ramp, smoothstep
from fewlabel.data.synth.shapes import OUTLINES, outline

LEAST_CONTRAST = 0.1
"""Least difference (largest over channels) between an object's colour and the mean of what lies below it."""

STYLES = ("generic", "fluorescence", "stained", "brightfield")


class ObjectsConfig(BaseModel):
    """What the renderer draws from. Pairs are inclusive ranges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    styles: tuple[float, float, float, float] = Field(
        default=(0.5, 0.26, 0.16, 0.08),
        description="probability of generic, fluorescence, stained and brightfield scenes",
    )
    objects: tuple[int, int] = Field(default=(1, 15), description="objects painted in a generic scene")
    cells: tuple[int, int] = Field(default=(4, 90), description="cells painted in a microscopy scene (log-uniform)")
    radius: tuple[float, float] = Field(
        default=(4.0, 70.0), description="object half size in pixels, generic (log-uniform)"
    )
    cell_radius: tuple[float, float] = Field(
        default=(4.0, 26.0), description="typical cell radius of a scene in pixels"
    )
    least_area: int = Field(default=12, ge=1, description="objects with fewer visible pixels get no label")


@dataclass(frozen=True)
class ObjectScene:
    """One rendered image.

    Attributes:
        pixels: uint8 (3, H, W), RGB.
        labels: int32 (H, W), 0 = ground, 1..N = visible part of each object, without gaps in the numbers.
        style: one of STYLES.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    style: str


def render(
    rng: np.random.Generator, size: tuple[int, int] | int = 256, config: ObjectsConfig | None = None
) -> ObjectScene:
    """Render one scene. The same generator state, size and config give the same bits.

    Args:
        rng: source of all randomness.
        size: (height, width) or one side, in pixels, at least 16.
        config: ranges.

    Raises:
        DataError: a side is below 16 px.
    """
    config = config or ObjectsConfig()
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 16:
        raise DataError(f"An object scene of {shape[0]}x{shape[1]} px was asked for; use at least 16x16.")
    odds = np.asarray(config.styles)
    style = STYLES[int(rng.choice(len(STYLES), p=odds / odds.sum()))]
    texture = power_law(rng, shape, rng.uniform(1.0, 3.0), log_uniform(rng, 0.4, 2.5))
    labels = np.zeros(shape, np.int32)
    if style == "generic":
        canvas = _ground(rng, shape, texture)
        _paint_objects(rng, canvas, labels, texture, config)
    else:
        canvas = _paint_cells(rng, style, labels, texture, config)
    return ObjectScene(_photograph(rng, canvas, style), _renumber(labels, config.least_area), style)


def _ground(rng: np.random.Generator, shape: tuple[int, int], texture: Array) -> Array:
    """Coloured ground float32 (3, H, W), about 0 to 1: two colours blended, texture, sometimes a second material."""
    first, second = rng.uniform(0.05, 0.95, (2, 3, 1, 1)).astype(np.float32)
    share = ramp(shape, rng.uniform(0, 2 * np.pi)) * np.float32(rng.uniform(0, 1)) + np.float32(0.5)
    if rng.random() < 0.4:
        share = share + np.float32(0.3) * (power_law(rng, shape, 3.0) > rng.uniform(-0.5, 1.0))
    tint = rng.uniform(0.6, 1.0, (3, 1, 1)).astype(np.float32)
    return first * (1 - share) + second * share + np.float32(log_uniform(rng, 0.005, 0.15)) * tint * texture


def _paint_objects(
    rng: np.random.Generator, canvas: Array, labels: NDArray[np.int32], texture: Array, config: ObjectsConfig
) -> None:
    """Paint generic objects back to front into canvas (3, H, W) and labels (H, W), in place."""
    height, width = labels.shape
    palette = rng.uniform(0, 1, (int(rng.integers(1, 5)), 3))
    alike = rng.random() < 0.35
    fixed = OUTLINES[int(rng.integers(len(OUTLINES)))]
    most = min(config.radius[1], 0.35 * min(height, width))
    common = log_uniform(rng, config.radius[0], most)
    for number in range(1, int(rng.integers(config.objects[0], config.objects[1] + 1)) + 1):
        kind = fixed if alike else OUTLINES[int(rng.integers(len(OUTLINES)))]
        radius = common * rng.uniform(0.8, 1.25) if alike else log_uniform(rng, config.radius[0], most)
        level = outline(rng, kind, radius)
        y0, x0 = (int(rng.integers(0, side)) - level.shape[0] // 2 for side in (height, width))
        colour = palette[int(rng.integers(len(palette)))] if rng.random() < 0.5 else rng.uniform(0, 1, 3)
        gloss = rng.uniform(-0.35, 0.35) if rng.random() < 0.5 else 0.0
        _stamp(rng, canvas, labels, level, (y0, x0), number, colour, gloss, log_uniform(rng, 0.005, 0.12), texture)


def _stamp(
    rng: np.random.Generator,
    canvas: Array,
    labels: NDArray[np.int32],
    level: Array,
    corner: tuple[int, int],
    number: int,
    colour: NDArray[np.float64],
    gloss: float,
    grain: float,
    texture: Array,
) -> None:
    """Paint one object over what is there: flat colour, shading towards one side, `gloss` towards the rim, texture."""
    (y0, x0), side = corner, level.shape[0]
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(side, labels.shape[0] - y0), min(side, labels.shape[1] - x0)
    if bottom <= top or right <= left:
        return
    level = level[top:bottom, left:right]
    inside = level <= 1
    window = (slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right))
    shade = np.float32(rng.uniform(0, 0.4)) * ramp(level.shape, rng.uniform(0, 2 * np.pi))
    shade += np.float32(gloss) * (np.float32(0.5) - np.clip(level, 0, 1) ** 2)
    patch = texture[: level.shape[0], : level.shape[1]]
    shade[: patch.shape[0], : patch.shape[1]] += np.float32(grain) * patch
    region = canvas[:, window[0], window[1]]
    if np.abs(colour - region.mean(axis=(1, 2))).max() < LEAST_CONTRAST:
        colour = (colour + 0.5) % 1.0
    paint = colour.astype(np.float32)[:, None, None] * (1 + shade) + np.float32(0.25) * shade
    np.copyto(region, paint, where=inside[None])
    labels[window][inside] = number


def _paint_cells(
    rng: np.random.Generator, style: str, labels: NDArray[np.int32], texture: Array, config: ObjectsConfig
) -> Array:
    """Microscopy scene: returns float32 (3, H, W) and fills labels (H, W). Cells touch, cluster, seldom overlap."""
    height, width = labels.shape
    typical = min(log_uniform(rng, *config.cell_radius), 0.2 * min(height, width))
    room = int(0.7 * height * width / (np.pi * typical**2)) + 1
    wanted = min(int(round(log_uniform(rng, config.cells[0], config.cells[1]))), room)
    density = np.zeros(labels.shape, np.float32)
    glow = np.zeros(labels.shape, np.float32)
    clusters = rng.uniform(0, 1, (max(1, wanted // 6), 2)) * (height, width)
    clustered, spread = rng.random() < 0.5, rng.uniform(0.06, 0.2) * min(height, width) + typical
    stretch, vary = rng.random() < 0.2, rng.uniform(0.02, 0.6)
    grain, rim = log_uniform(rng, 0.02, 0.25), rng.uniform(-0.3, 0.6)
    for number in range(1, wanted + 1):
        radius = typical * float(np.clip(rng.normal(1, 0.2), 0.5, 1.6))
        level = outline(rng, "ellipse" if stretch else "nucleus" if rng.random() < 0.9 else "wavy", radius)
        inside = level <= 1
        for _attempt in range(6):
            middle = (
                rng.normal(clusters[number % len(clusters)], spread) if clustered else rng.uniform((0, 0), labels.shape)
            )
            y0, x0 = (int(c) - level.shape[0] // 2 for c in middle)
            top, left = max(0, -y0), max(0, -x0)
            bottom, right = min(level.shape[0], height - y0), min(level.shape[0], width - x0)
            if bottom <= top or right <= left:
                continue
            window = (slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right))
            part = inside[top:bottom, left:right]
            if part.any() and (labels[window][part] > 0).mean() <= 0.1:
                body = (1 - np.float32(rim) * np.clip(level[top:bottom, left:right], 0, 1) ** 2) * part
                body *= np.float32(max(0.3, rng.normal(1, vary)))
                body *= 1 + np.float32(grain) * texture[window]
                np.maximum(density[window], body, out=density[window])
                glow[window] += part
                labels[window][part] = number
                break
    return _stain(rng, style, density, blur(glow, typical * 0.6), texture)


def _stain(rng: np.random.Generator, style: str, density: Array, glow: Array, texture: Array) -> Array:
    """Turn cell density (H, W), about 0 to 1, into colour float32 (3, H, W) after the style's physics.

    Fluorescence adds light to a dark ground, out-of-focus glow included. Stains absorb after Beer-Lambert:
    light · exp(-density · absorbance), with tissue as weakly dyed clutter.
    """
    haze = power_law(rng, density.shape, rng.uniform(2.5, 3.5))
    if style == "fluorescence":
        light = np.float32(log_uniform(rng, 0.12, 0.95)) * density + np.float32(rng.uniform(0, 0.06)) * glow
        light += np.float32(rng.uniform(0.0, 0.1)) + np.float32(log_uniform(rng, 0.001, 0.02)) * haze
        tint = rng.uniform(0, 1, 3) if rng.random() < 0.15 else np.ones(3)
        return light[None] * tint.astype(np.float32)[:, None, None]
    tissue = np.clip(haze * np.float32(rng.uniform(0.05, 0.4)) + np.float32(rng.uniform(0, 0.4)), 0, None)
    if rng.random() < 0.4:
        tissue += np.float32(rng.uniform(0.2, 1.0)) * smoothstep(
            haze, rng.uniform(-1.0, 1.0), log_uniform(rng, 0.05, 0.5)
        )
    tissue *= 1 + np.float32(0.15) * texture
    if style == "stained":
        dye = np.array([rng.uniform(0.6, 1.6), rng.uniform(0.9, 2.2), rng.uniform(0.1, 0.6)])
        counter = np.array([rng.uniform(0.0, 0.3), rng.uniform(0.2, 0.8), rng.uniform(0.0, 0.4)])
    else:
        dye = np.full(3, rng.uniform(0.3, 1.6))
        counter = np.full(3, rng.uniform(0.05, 0.5))
    lamp = rng.uniform(0.75, 1.0) * rng.uniform(0.9, 1.0, 3)
    absorbance = dye.astype(np.float32)[:, None, None] * density + counter.astype(np.float32)[:, None, None] * tissue
    return lamp.astype(np.float32)[:, None, None] * np.exp(-absorbance)


def _photograph(rng: np.random.Generator, canvas: Array, style: str) -> NDArray[np.uint8]:
    """Camera: blur, light fall-off, sometimes grey, noise, 8 bits. float32 (3, H, W) → uint8 (3, H, W)."""
    sigma = rng.uniform(0.3, 1.2) if rng.random() < 0.85 else rng.uniform(1.2, 2.2)
    grey = style in ("fluorescence", "brightfield") and bool(np.ptp(canvas[:, 0, 0]) == 0)
    if not grey and rng.random() < 0.35:
        canvas, grey = canvas.mean(axis=0, keepdims=True), True
    elif grey:
        canvas = canvas[:1]
    canvas = np.stack([blur(plane, sigma) for plane in canvas])
    canvas = canvas * (1 + np.float32(rng.uniform(0, 0.3)) * ramp(canvas.shape[1:], rng.uniform(0, 2 * np.pi)))
    if style == "generic" and rng.random() < 0.2:
        canvas = 1 - canvas
    noise = np.float32(log_uniform(rng, 0.002, {"generic": 0.06, "fluorescence": 0.012}.get(style, 0.03)))
    canvas = canvas + noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    counts = np.rint(np.clip(canvas, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.array(np.broadcast_to(counts, (3, *counts.shape[1:])), order="C")


def _renumber(labels: NDArray[np.int32], least: int) -> NDArray[np.int32]:
    """Labels (H, W) without objects of fewer than `least` visible pixels, numbered 1..N in painting order."""
    keep = np.bincount(labels.ravel()) >= least
    keep[0] = False
    table = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return table[labels]
