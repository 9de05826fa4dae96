"""Painting of microscopy scenes: cells that touch and cluster, membranes and nuclei, and the physics of stains."""

import numpy as np
from numpy.typing import NDArray

from fewlabel.data.synth.fields import Array, blur, log_uniform, power_law, smoothstep
from fewlabel.data.synth.objects_kinds import Catalogue, Kind
from fewlabel.data.synth.objects_paint import Sheet, draw_part, overlap
from fewlabel.data.synth.shapes import outline

MOST_OVERLAP = 0.1  # share of a new cell that may cover others
ATTEMPTS = 6  # to find room for a cell


def paint_cells(
    rng: np.random.Generator, sheet: Sheet, texture: Array, catalogue: Catalogue, cells: tuple[int, int]
) -> Array:
    """Paint a microscopy scene onto a sheet, in place; up to four classes of the catalogue are present.

    Args:
        rng: source of all randomness.
        sheet: receives labels, parts and classes.
        texture: float32 (H, W), a random field of deviation 1.
        catalogue: the classes; its style decides the physics.
        cells: least and largest number of cells (log-uniform); fewer are painted where there is no room.

    Returns:
        float32 (3, H, W), about 0 to 1.
    """
    shape = (sheet.labels.shape[0], sheet.labels.shape[1])
    present = rng.permutation(len(catalogue.kinds))[: int(rng.integers(1, 5))]
    zoom = log_uniform(rng, 0.8, 1.25)
    typical = min(zoom * float(np.mean([catalogue.kinds[n].radius for n in present])), 0.2 * min(shape))
    room = int(0.7 * shape[0] * shape[1] / (np.pi * typical**2)) + 1
    wanted = min(int(round(log_uniform(rng, *cells))), room)
    middles = _Middles(rng, shape, wanted, typical)
    vary, defocus = rng.uniform(0.02, 0.6), log_uniform(rng, 0.02, 0.7)
    coloured = rng.random() < 0.25
    density = np.zeros((3 if coloured else 1, *shape), np.float32)
    glow = np.zeros(shape, np.float32)
    rim = rng.uniform(-0.3, 0.6)
    for _ in range(wanted):
        number = int(present[int(rng.integers(len(present)))])
        kind = catalogue.kinds[number]
        radius = float(np.clip(zoom * log_uniform(rng, *kind.radius) * rng.normal(1, 0.1), 3.0, 0.25 * min(shape)))
        whole = outline(rng, kind.outline, radius)
        half = whole.shape[0] // 2
        for _attempt in range(ATTEMPTS):
            middle = middles.draw(rng, radius)
            place = overlap(whole.shape[0], (int(middle[0]) - half, int(middle[1]) - half), shape)
            if place is None:
                continue
            window, patch = place
            level = whole[patch]
            inside = level <= 1
            covered = np.count_nonzero(sheet.labels[window][inside])
            if not inside.any() or covered > MOST_OVERLAP * np.count_nonzero(inside):
                continue
            part = draw_part(rng, kind, whole, radius)
            shown = None if part is None else part[patch]
            brightness = max(0.3, rng.normal(1, vary)) * (0.6 + 0.5 * max(kind.colour))
            body = np.float32(brightness) * _body(kind, level, shown, rim, defocus * rng.uniform(0.2, 1.0))
            body *= 1 + np.float32(min(kind.strength, 0.25)) * texture[window]
            dye = np.array(kind.colour, np.float32) / max(kind.colour) if coloured else np.ones(1, np.float32)
            region = density[:, window[0], window[1]]
            np.maximum(region, dye[:, None, None] * body, out=region)
            glow[window] += inside
            sheet.add(window, inside, number, shown)
            middles.placed(middle, radius)
            break
    if catalogue.style == "fluorescence":  # only light adds up out of focus
        glow = blur(glow, typical * 0.6)
    return stain(rng, catalogue.style, density, glow, texture)


def _body(kind: Kind, level: Array, part: NDArray[np.bool_] | None, rim: float, defocus: float) -> Array:
    """Density of one cell, float32 (h, w), about 0 to 1: falls by `rim` from middle to outline, then to 0.

    The edge is `defocus` of the radius wide and falls to a half at the outline, so that what is labelled is what a
    sharper lens would show.
    """
    seen = np.minimum(level, 1)
    edge = np.float32(0.5) + (1 - level) * np.float32(1 / defocus)
    body = np.minimum(np.maximum(edge, 0), 1) * (1 - np.float32(rim) * seen * seen)
    if kind.membrane:
        band = (seen - np.float32(0.92)) * np.float32(1 / 0.08)
        body += np.float32(kind.membrane) * np.exp(-band * band) * (level <= 1)
    if part is not None:
        body *= 1 + np.float32(0.9 * kind.gloss + (0.6 if kind.gloss >= 0 else -0.5)) * part
    return np.asarray(body, np.float32)


class _Middles:
    """Where cells lie: anywhere, in clusters, or beside one that is there already, touching it."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], wanted: int, typical: float) -> None:
        self.shape = shape
        self.clusters = rng.uniform(0, 1, (max(1, wanted // 6), 2)) * shape
        self.clustered, self.spread = rng.random() < 0.5, rng.uniform(0.06, 0.2) * min(shape) + typical
        self.touching = float(rng.uniform(0.3, 0.8)) if rng.random() < 0.5 else 0.0
        self.there: list[tuple[float, float, float]] = []

    def draw(self, rng: np.random.Generator, radius: float) -> tuple[float, float]:
        """A middle (y, x) for the next cell; may lie outside of the image."""
        if self.there and rng.random() < self.touching:
            y, x, other = self.there[int(rng.integers(len(self.there)))]
            angle, distance = rng.uniform(0, 2 * np.pi), (radius + other) * rng.uniform(0.7, 1.0)
            return y + distance * np.sin(angle), x + distance * np.cos(angle)
        if self.clustered:
            middle = rng.normal(self.clusters[len(self.there) % len(self.clusters)], self.spread)
        else:
            middle = rng.uniform((0, 0), self.shape)
        return float(middle[0]), float(middle[1])

    def placed(self, middle: tuple[float, float], radius: float) -> None:
        """Remember a cell."""
        self.there.append((*middle, radius))


def stain(rng: np.random.Generator, style: str, density: Array, glow: Array, texture: Array) -> Array:
    """Turn cell density into colour after the style's physics.

    Fluorescence adds light to a dark ground, out-of-focus glow included. Stains absorb after Beer-Lambert:
    light · exp(-density · absorbance), with tissue as weakly dyed clutter.

    Args:
        rng: source of all randomness.
        style: "fluorescence", "stained" or "brightfield".
        density: float32 (1 or 3, H, W), about 0 to 1; three channels are three dyes.
        glow: float32 (H, W), light out of focus; used by fluorescence.
        texture: float32 (H, W), of the tissue.

    Returns:
        float32 (3, H, W), about 0 to 1.
    """
    haze = power_law(rng, glow.shape, rng.uniform(2.5, 3.5))
    if style == "fluorescence":
        light = np.float32(log_uniform(rng, 0.12, 0.95)) * density + np.float32(rng.uniform(0, 0.06)) * glow
        light += np.float32(rng.uniform(0.0, 0.1)) + np.float32(log_uniform(rng, 0.001, 0.02)) * haze
        tint = rng.uniform(0, 1, 3) if rng.random() < 0.15 else np.ones(3)
        return light * tint.astype(np.float32)[:, None, None]
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
