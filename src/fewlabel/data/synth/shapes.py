"""Outlines of single objects as level functions on a patch: below 1 inside, 1 on the border, above 1 outside."""

import numpy as np

from fewlabel.data.synth.fields import Array, blur

OUTLINES = ("ellipse", "polygon", "wavy", "ring", "bar", "noise", "nucleus", "star", "cross")


def outline(rng: np.random.Generator, kind: str, radius: float) -> Array:
    """Level function of a random shape on a square patch that holds it.

    Args:
        rng: source of all randomness.
        kind: one of OUTLINES.
        radius: about half the object's size in pixels (half the length for bars).

    Returns:
        float32 (P, P): a normalised distance, 0 near the middle (on the centre line of rings), 1 on the outline.
    """
    half = int(np.ceil(radius * 1.35)) + 2
    axis = np.arange(-half, half + 1, dtype=np.float32)
    shift = rng.uniform(-0.5, 0.5, 2)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = axis[:, None] - np.float32(shift[0]), axis[None, :] - np.float32(shift[1])
    u = np.asarray((x * cos + y * sin) / np.float32(radius), np.float32)
    v = np.asarray((y * cos - x * sin) / np.float32(radius), np.float32)
    if kind == "ellipse":
        return np.hypot(u, v / np.float32(rng.uniform(0.35, 1.0)))
    if kind == "bar":
        return np.maximum(np.abs(u), np.abs(v) / np.float32(max(rng.uniform(0.05, 0.3), 1.2 / radius)))
    if kind == "polygon":
        return _polygon(rng, u, v)
    if kind == "ring":
        inner = rng.uniform(0.35, 0.8)
        middle, thickness = (1 + inner) / 2, (1 - inner) / 2
        return np.abs(np.hypot(u, v / np.float32(rng.uniform(0.6, 1.0))) - np.float32(middle)) / np.float32(thickness)
    if kind == "star":
        return _star(rng, u, v)
    if kind == "cross":
        arm = np.float32(max(rng.uniform(0.2, 0.4), 1.2 / radius))
        across, down = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(across, down / arm), np.maximum(across / arm, down))
    if kind == "noise":
        rough = blur(rng.standard_normal(u.shape, dtype=np.float32), radius / 3.5)
        return np.hypot(u, v) + np.float32(0.35) * rough / (rough.std() + np.float32(1e-6))
    squeeze, waves = (rng.uniform(0.55, 1.0), (2, 3)) if kind == "nucleus" else (rng.uniform(0.5, 1.0), (2, 3, 4, 5))
    strength = 0.06 if kind == "nucleus" else 0.14
    v = v / np.float32(squeeze)
    theta = np.arctan2(v, u)
    radial = np.ones_like(u)
    for k in waves:
        radial += np.float32(rng.normal(0, strength / np.sqrt(k - 1))) * np.cos(
            k * theta + np.float32(rng.uniform(0, 7))
        )
    return np.asarray(np.hypot(u, v) / np.clip(radial, 0.4, 1.3), np.float32)


def _polygon(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Convex polygon of 3 to 8 sides: the largest of the signed distances to its edges."""
    sides = int(rng.integers(3, 9))
    normals = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * (2 * np.pi / sides)
    level = np.full(u.shape, -np.inf, np.float32)
    for normal, apothem in zip(normals, rng.uniform(0.5, 0.85, sides), strict=True):
        edge = (u * np.float32(np.cos(normal)) + v * np.float32(np.sin(normal))) / np.float32(apothem)
        level = np.maximum(level, edge)
    return np.asarray(np.maximum(level, np.hypot(u, v) / np.float32(1.2)), np.float32)


def _star(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Star of 4 to 7 points: the radius of the outline falls linearly in angle from each tip to the notch beside it."""
    points, notch = int(rng.integers(4, 8)), np.float32(rng.uniform(0.35, 0.6))
    turn = np.arctan2(v, u) * np.float32(points / (2 * np.pi))
    to_tip = 2 * np.abs(turn - np.rint(turn))  # 0 at a tip, 1 at a notch
    return np.asarray(np.hypot(u, v) / (1 - (1 - notch) * to_tip), np.float32)
