"""Classes of synthetic objects: what all objects of one class have in common, drawn once for a data set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewlabel.core.errors import DataError
from fewlabel.data.synth.fields import Array, log_uniform

TEXTURES = ("plain", "grain", "stripes", "spots", "checks")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink", "pale", "dark")
PARTS = ("core", "half", "rim")
CELL_PARTS = ("core", "core", "rim")
STYLES = ("generic", "fluorescence", "stained", "brightfield")
GENERIC_OUTLINES = ("ellipse", "polygon", "wavy", "ring", "bar", "noise", "star", "cross")
CELL_OUTLINES = ("nucleus", "ellipse", "wavy")
CELL_ODDS = (0.6, 0.3, 0.1)
PART_CONTRAST = 0.15
"""Least difference between the grey of a class and of its parts, which must be seen in grey images too."""
MOST_CLASSES = 20


@dataclass(frozen=True)
class Kind:
    """A class of objects. No two classes of a catalogue share outline, colour family and texture.

    Attributes:
        outline: one of `shapes.OUTLINES`.
        family: one of COLOURS.
        colour: red, green and blue of a typical object, 0 to 1; of cells the strength of light or dye per channel.
        spread: standard deviation of an object's colour about it.
        texture: one of TEXTURES.
        strength: amplitude of the texture.
        period: of stripes, spots and checks, pixels.
        radius: (least, largest) half size in pixels.
        gloss: brightness of the middle over the rim.
        membrane: extra density along the outline of cells.
        part: one of PARTS, or None for objects without parts.
        part_colour: red, green and blue of the part, about 0 to 1.
    """

    outline: str
    family: str
    colour: tuple[float, float, float]
    spread: float
    texture: str
    strength: float
    period: float
    radius: tuple[float, float]
    gloss: float
    membrane: float
    part: str | None
    part_colour: tuple[float, float, float]

    @property
    def name(self) -> str:
        """Outline, colour family and texture, such as `ring-red-stripes`: what tells the class from the others."""
        return f"{self.outline}-{self.family}-{self.texture}"


@dataclass(frozen=True)
class Catalogue:
    """The classes of one data set: a `style` of STYLES and `kinds`, whose order gives the class numbers 0, 1, ..."""

    style: str
    kinds: tuple[Kind, ...]


def draw_catalogue(
    rng: np.random.Generator, style: str, classes: int, radius: tuple[float, float], parts: float
) -> Catalogue:
    """Draw classes that can be told apart by outline, colour family or texture.

    Args:
        rng: source of all randomness.
        style: one of STYLES. Cells of the three microscopy styles have round outlines; their classes also differ by
            size and membrane.
        classes: number of classes, 1 to 20.
        radius: least and largest half size over all classes, pixels; each class spans a factor of at most 2.
        parts: share of classes whose objects have a part.

    Raises:
        DataError: unknown style, or a number of classes out of range.
    """
    if style not in STYLES or not 1 <= classes <= MOST_CLASSES:
        raise DataError(
            f"A catalogue of {classes} classes in style {style!r} was asked for; choose 1 to {MOST_CLASSES} classes "
            f"and a style of {', '.join(STYLES)}."
        )
    outlines = GENERIC_OUTLINES if style == "generic" else CELL_OUTLINES
    odds = np.full(len(outlines), 1 / len(outlines)) if style == "generic" else np.array(CELL_ODDS)
    looks = len(COLOURS) * len(TEXTURES)
    chosen = rng.choice(len(outlines) * looks, classes, replace=False, p=np.repeat(odds / looks, looks))
    possible = PARTS if style == "generic" else CELL_PARTS
    kinds = []
    for number in chosen:
        outline, family, texture = np.unravel_index(int(number), (len(outlines), len(COLOURS), len(TEXTURES)))
        middle = log_uniform(rng, *radius)
        base = family_colour(rng, int(family))
        other = family_colour(rng, (int(family) + int(rng.integers(2, len(COLOURS) - 1))) % len(COLOURS))
        if abs(sum(other) - sum(base)) < 3 * PART_CONTRAST:
            step = 2 * PART_CONTRAST if sum(base) < 1.5 else -2 * PART_CONTRAST
            other = (base[0] + step, base[1] + step, base[2] + step)
        kinds.append(
            Kind(
                outline=outlines[outline],
                family=COLOURS[family],
                colour=base,
                spread=log_uniform(rng, 0.01, 0.12),
                texture=TEXTURES[texture],
                strength=log_uniform(rng, 0.02, 0.3),
                period=log_uniform(rng, 3.0, 16.0),
                radius=(max(radius[0], middle / 1.4), min(radius[1], middle * 1.4)),
                gloss=float(rng.uniform(-0.35, 0.35)) if rng.random() < 0.5 else 0.0,
                membrane=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.4 else 0.0,
                part=possible[int(rng.integers(len(possible)))] if rng.random() < parts else None,
                part_colour=other,
            )
        )
    return Catalogue(style, tuple(kinds))


def family_colour(rng: np.random.Generator, family: int) -> tuple[float, float, float]:
    """A colour of a family of COLOURS, 0 to 1 each: eight hues, then greys that are pale or dark (HSV to RGB)."""
    value, saturation = rng.uniform(0.45, 1.0), rng.uniform(0.35, 1.0)
    hue = (family + rng.uniform(-0.35, 0.35)) / 8
    if COLOURS[family] in ("pale", "dark"):
        value = rng.uniform(0.75, 1.0) if COLOURS[family] == "pale" else rng.uniform(0.0, 0.35)
        saturation = rng.uniform(0.0, 0.12)
    steps = [(offset + 6 * hue) % 6 for offset in (5, 3, 1)]
    red, green, blue = (float(value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0)))) for k in steps)
    return red, green, blue


def pattern(rng: np.random.Generator, kind: Kind, grain: Array) -> Array:
    """The texture of one object of a class on its patch.

    Args:
        rng: turns and shifts the pattern.
        kind: the class.
        grain: float32 (h, w), a piece of a random field with deviation 1, which is the texture "grain".

    Returns:
        float32 (h, w), about -1 to 1 times the class's strength.
    """
    if kind.texture == "plain":
        return np.zeros(grain.shape, np.float32)
    if kind.texture == "grain":
        return np.float32(kind.strength) * grain
    y = np.arange(grain.shape[0], dtype=np.float32)[:, None]
    x = np.arange(grain.shape[1], dtype=np.float32)[None, :]
    angle, shift = rng.uniform(0, np.pi), rng.uniform(0, 7, 2).astype(np.float32)
    rate = 2 * np.pi / kind.period
    cos, sin = np.float32(rate * np.cos(angle)), np.float32(rate * np.sin(angle))
    first = np.sin(x * cos + y * sin + shift[0])
    if kind.texture == "stripes":
        return np.float32(kind.strength) * np.clip(3 * first, -1, 1)
    second = np.sin(y * cos - x * sin + shift[1])
    if kind.texture == "checks":
        return np.float32(kind.strength) * np.sign(first) * np.sign(second)
    return np.float32(kind.strength) * np.clip(4 * (first * second - 0.25), -1, 1)


def part_of(rng: np.random.Generator, part: str, level: Array, core: Array) -> NDArray[np.bool_]:
    """Pixels of an object's part: always inside the object.

    Args:
        rng: source of all randomness.
        part: one of PARTS: another outline within, one side of a straight cut, or a band along the outline.
        level: float32 (P, P), the object's level function.
        core: float32 (Q, Q), Q <= P, level function of the outline within; used by "core" alone.

    Returns:
        bool (P, P).
    """
    inside = level <= 1
    if part == "rim":
        return inside & (level > np.float32(rng.uniform(0.55, 0.8)))
    result = np.zeros(level.shape, bool)
    if part == "core":
        slack = level.shape[0] - core.shape[0]
        corner = [int(np.clip(round(slack / 2 + rng.normal(0, 0.08) * level.shape[0]), 0, slack)) for _ in range(2)]
        result[corner[0] : corner[0] + core.shape[0], corner[1] : corner[1] + core.shape[1]] = core <= 1
    else:
        axis = np.linspace(-1, 1, level.shape[0], dtype=np.float32)
        angle, cut = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(-0.2, 0.3))
        result = axis[:, None] * np.float32(np.sin(angle)) + axis[None, :] * np.float32(np.cos(angle)) > cut
    return result & inside
