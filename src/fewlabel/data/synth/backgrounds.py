"""Infrared backgrounds as functions rng, size → float32 (H, W) relative radiance, nominally 0 (cold) to 1 (hot).

Each kind is a physical caricature: emission of a sky that warms towards the horizon, clouds as power-law fields,
cumulus as saturating level sets of such fields, sea as wind-stretched waves, terrain behind a skyline, and buildings.
Bright structures made here (cloud tips, glints, warm windows, lamp-like blobs) are clutter and never labelled.
"""

from collections.abc import Callable

import numpy as np

from fewlabel.data.synth.fields import Array, Size, blur, curve, log_uniform, power_law, ramp, smoothstep

Background = Callable[[np.random.Generator, Size], Array]


def clear_sky(rng: np.random.Generator, size: Size) -> Array:
    """Nearly uniform sky: a gentle ramp and faint, very smooth haze."""
    level = rng.uniform(0.1, 0.7)
    angle = rng.normal(np.pi / 2, 0.3) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    slope = log_uniform(rng, 0.005, 0.25)
    haze = log_uniform(rng, 0.001, 0.02) * power_law(rng, size, rng.uniform(3.0, 4.5), log_uniform(rng, 0.5, 4.0))
    return np.float32(level) + np.float32(slope) * ramp(size, angle) + haze.astype(np.float32)


def stratus(rng: np.random.Generator, size: Size) -> Array:
    """Soft layered cloud or wispy cirrus: one or two power-law fields, sometimes folded into filaments."""
    field = power_law(rng, size, rng.uniform(3.0, 4.4), log_uniform(rng, 0.4, 4.0))
    if rng.random() < 0.4:
        field -= np.float32(rng.uniform(0.2, 1.0)) * np.abs(power_law(rng, size, rng.uniform(3.0, 4.0)))
    contrast = log_uniform(rng, 0.01, 0.15)
    return np.float32(rng.uniform(0.2, 0.6)) + np.float32(contrast) * field


def cumulus(rng: np.random.Generator, size: Size) -> Array:
    """Heaped clouds over a colder sky: where a power-law field exceeds a threshold, emission 1 - exp(-k · excess).

    That is the grey-body law for a cloud whose optical depth grows with the excess: large k gives sharp edges and
    saturated cores, small k soft flanks.
    """
    shape = power_law(rng, size, rng.uniform(3.2, 4.4), log_uniform(rng, 0.6, 2.0))
    texture = power_law(rng, size, rng.uniform(2.8, 3.8))
    ragged = np.float32(rng.uniform(0.05, 0.35))
    excess = np.clip(shape + ragged * texture - np.float32(rng.uniform(-0.6, 1.4)), 0, None)
    cover = 1 - np.exp(np.float32(-log_uniform(rng, 0.5, 6.0)) * excess)
    sky = np.float32(rng.uniform(0.02, 0.4)) + np.float32(rng.uniform(0.0, 0.1)) * ramp(size, np.pi / 2)
    bright = np.float32(log_uniform(rng, 0.08, 1.2))
    body = 1 + np.float32(rng.uniform(0.02, 0.25)) * texture + np.float32(rng.uniform(0.0, 0.25)) * shape
    return sky + np.float32(0.004) * texture + bright * cover * body


def sea(rng: np.random.Generator, size: Size) -> Array:
    """Sea seen at a low angle: waves stretched along x that shrink towards the horizon, swell, and sun glints."""
    height, width = size
    horizon = int(rng.uniform(-0.3, 0.5) * height)
    depth = np.clip((np.arange(height, dtype=np.float32) - horizon) / height, 0, 1.5)[:, None]
    fine = power_law(rng, size, rng.uniform(1.2, 2.6), log_uniform(rng, 3.0, 12.0))
    swell = power_law(rng, size, rng.uniform(2.2, 3.2), log_uniform(rng, 3.0, 8.0))
    waves = np.float32(log_uniform(rng, 0.005, 0.05)) * (fine + np.float32(0.7) * swell)
    water = np.float32(rng.uniform(0.15, 0.5)) + np.float32(rng.uniform(-0.25, 0.25)) * depth + waves * (0.4 + depth)
    if rng.random() < 0.5:
        crest = np.clip(fine + np.float32(0.5) * swell - np.float32(rng.uniform(2.2, 2.9)), 0, None)
        column = np.float32(rng.uniform(0, width))
        lane = np.exp(
            -0.5 * ((np.arange(width, dtype=np.float32) - column) / np.float32(rng.uniform(0.08, 0.5) * width)) ** 2
        )
        water = water + np.float32(rng.uniform(0.08, 0.3)) * crest * lane[None, :]
    sky = np.float32(rng.uniform(0.0, 0.5)) + np.float32(rng.uniform(0, 0.25)) * ramp(size, np.pi / 2)
    above = smoothstep(horizon - np.arange(height, dtype=np.float32), 0.0, rng.uniform(1.0, 4.0))[:, None]
    return (water * (1 - above) + sky * above).astype(np.float32)


def terrain(rng: np.random.Generator, size: Size) -> Array:
    """Sky over one to three ridges of textured ground, each with its own temperature and a sometimes glowing rim."""
    scene = _sky(rng, size)
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    line = rng.uniform(0.15, 0.75) * height
    texture = power_law(rng, size, rng.uniform(1.8, 3.2), log_uniform(rng, 1.0, 4.0))
    for _ in range(int(rng.integers(1, 4))):
        ridge = np.float32(line) + np.float32(log_uniform(rng, 0.002, 0.08) * height) * curve(
            rng, width, rng.uniform(1.6, 3.2)
        )
        inside = smoothstep(rows - ridge[None, :], 0.0, rng.uniform(1.0, 3.0))
        level = np.float32(rng.uniform(0.05, 0.9))
        body = level + np.float32(log_uniform(rng, 0.005, 0.12)) * texture
        if rng.random() < 0.3:
            fade = np.float32(log_uniform(rng, 2.0, 30.0))
            body = body + np.float32(rng.uniform(-0.2, 0.3)) * np.exp(-np.abs(rows - ridge[None, :]) / fade)
        scene = scene * (1 - inside) + body * inside
        line += rng.uniform(0.05, 0.35) * height
    return scene


def fields_and_rows(rng: np.random.Generator, size: Size) -> Array:
    """Ground seen from above or aslant: patchy plots and broken bright rows, cut out of stretched fields."""
    plots = power_law(rng, size, rng.uniform(2.0, 3.0), log_uniform(rng, 2.0, 12.0))
    detail = power_law(rng, size, rng.uniform(1.2, 2.2), log_uniform(rng, 1.0, 4.0))
    rows = smoothstep(plots + np.float32(0.25) * detail, rng.uniform(-0.5, 0.8), log_uniform(rng, 0.1, 1.0))
    contrast = np.float32(log_uniform(rng, 0.04, 0.5))
    ground = np.float32(rng.uniform(0.1, 0.4)) + contrast * rows + np.float32(log_uniform(rng, 0.005, 0.05)) * detail
    if rng.random() < 0.5:
        dark = power_law(rng, size, rng.uniform(1.5, 2.5))
        ground = ground - contrast * np.float32(0.5) * smoothstep(dark, rng.uniform(1.0, 2.0), 0.4)
    return ground


def buildings(rng: np.random.Generator, size: Size) -> Array:
    """Blocks with rows of windows, warm roof edges and masts in front of sky, terrain or cloud."""
    scene = terrain(rng, size) if rng.random() < 0.4 else _sky(rng, size)
    height, width = size
    texture = power_law(rng, size, rng.uniform(1.5, 2.5))
    for _ in range(int(rng.integers(1, 6))):
        w, h = (max(2, int(side * rng.uniform(0.08, 0.5))) for side in (width, height))
        left, top = int(rng.integers(-w // 2, width)), int(rng.uniform(0.35, 0.95) * height)
        bottom = height if rng.random() < 0.7 else min(height, top + h)
        x0, x1 = max(left, 0), min(left + w, width)
        if x1 <= x0 or bottom <= top:
            continue
        wall = np.float32(rng.uniform(0.1, 0.8))
        block = wall + np.float32(0.02) * texture[top:bottom, x0:x1]
        if rng.random() < 0.6:
            block = block + np.float32(rng.uniform(-0.2, 0.25)) * _windows(rng, block.shape)
        scene[top:bottom, x0:x1] = block
        if rng.random() < 0.5:
            edge = int(rng.integers(1, 4))
            scene[top : top + edge, x0:x1] += np.float32(rng.uniform(-0.15, 0.3))
        if rng.random() < 0.3:
            mast, tall = int(rng.integers(x0, x1)), int(rng.uniform(0.05, 0.3) * height)
            scene[max(0, top - tall) : top, mast : mast + int(rng.integers(1, 3))] = wall + np.float32(0.1)
    return blur(scene, 0.5)


def mixture(rng: np.random.Generator, size: Size) -> Array:
    """Two kinds in one picture: clouds above a skyline, or two fields joined by a soft random border."""
    pairs: tuple[tuple[Background, Background], ...] = (
        (cumulus, terrain),
        (stratus, sea),
        (cumulus, stratus),
        (clear_sky, cumulus),
        (stratus, fields_and_rows),
    )
    first, second = pairs[int(rng.integers(len(pairs)))]
    border = ramp(size, np.pi / 2) * 6 + np.float32(rng.uniform(0.1, 0.6)) * power_law(rng, size, 3.0)
    share = smoothstep(border, rng.uniform(-1.5, 1.5), log_uniform(rng, 0.05, 2.0))
    return first(rng, size) * (1 - share) + second(rng, size) * share


def _sky(rng: np.random.Generator, size: Size) -> Array:
    """Sky above a skyline: clear (often brighter towards the horizon), stratus or cumulus."""
    choice = rng.random()
    if choice < 0.6:
        glow = np.float32(log_uniform(rng, 0.01, 0.6)) * (ramp(size, np.pi / 2) + np.float32(0.5)) ** 2
        return clear_sky(rng, size) * np.float32(rng.uniform(0.2, 1.0)) + glow
    return stratus(rng, size) if choice < 0.8 else cumulus(rng, size)


def _windows(rng: np.random.Generator, size: Size) -> Array:
    """Regular grid of rectangles, 1 in a window and 0 on the wall; float32 (H, W)."""
    pitch_y, pitch_x = (int(rng.integers(4, 14)) for _ in range(2))
    y, x = np.arange(size[0]) % pitch_y, np.arange(size[1]) % pitch_x
    open_y, open_x = y < max(1, int(pitch_y * rng.uniform(0.3, 0.7))), x < max(1, int(pitch_x * rng.uniform(0.3, 0.7)))
    return (open_y[:, None] & open_x[None, :]).astype(np.float32)


KINDS: dict[str, Background] = {
    "clear_sky": clear_sky,
    "stratus": stratus,
    "cumulus": cumulus,
    "sea": sea,
    "terrain": terrain,
    "fields": fields_and_rows,
    "buildings": buildings,
    "mixture": mixture,
}
