"""Painting of generic object scenes: coloured ground, then objects and their parts from back to front."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewlabel.data.synth.fields import Array, log_uniform, power_law, ramp
from fewlabel.data.synth.objects_kinds import Catalogue, Kind, part_of, pattern
from fewlabel.data.synth.shapes import outline

LEAST_CONTRAST = 0.1
"""Least difference (largest over channels) between an object's colour and the mean of what lies below it."""

Box = tuple[slice, slice]


@dataclass
class Sheet:
    """What is known of a scene while it is painted.

    Attributes:
        labels: int32 (H, W), 0 = ground, number of the topmost object.
        parts: int32 (H, W), 0 = none, number of the topmost object's part.
        classes: class of object 1, 2, ...
        wholes: object that part 1, 2, ... belongs to.
    """

    labels: NDArray[np.int32]
    parts: NDArray[np.int32]
    classes: list[int] = field(default_factory=list)
    wholes: list[int] = field(default_factory=list)

    @classmethod
    def blank(cls, shape: tuple[int, int]) -> "Sheet":
        """A sheet (H, W) without objects."""
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int32))

    def add(self, window: Box, inside: NDArray[np.bool_], kind: int, part: NDArray[np.bool_] | None) -> None:
        """Put an object of class `kind`, and its part, on top of what is in a window; masks cover the window."""
        self.classes.append(kind)
        self.labels[window][inside] = len(self.classes)
        self.parts[window][inside] = 0
        if part is not None and part.any():
            self.wholes.append(len(self.classes))
            self.parts[window][part] = len(self.wholes)


def overlap(side: int, corner: tuple[int, int], shape: tuple[int, int]) -> tuple[Box, Box] | None:
    """Where a square patch of `side` with its top left at `corner` (y, x) meets an image: in the image, in the patch.

    Returns:
        Two pairs of slices, or None where they do not meet.
    """
    first = [max(0, -c) for c in corner]
    last = [min(side, limit - c) for c, limit in zip(corner, shape, strict=True)]
    if last[0] <= first[0] or last[1] <= first[1]:
        return None
    (y0, x0), patch = corner, (slice(first[0], last[0]), slice(first[1], last[1]))
    return (slice(y0 + first[0], y0 + last[0]), slice(x0 + first[1], x0 + last[1])), patch


def ground(rng: np.random.Generator, shape: tuple[int, int], texture: Array) -> Array:
    """Coloured ground float32 (3, H, W), about 0 to 1: two colours blended, texture, sometimes a second material."""
    first, second = rng.uniform(0.05, 0.95, (2, 3, 1, 1)).astype(np.float32)
    share = ramp(shape, rng.uniform(0, 2 * np.pi)) * np.float32(rng.uniform(0, 1)) + np.float32(0.5)
    if rng.random() < 0.4:
        share = share + np.float32(0.3) * (power_law(rng, shape, 3.0) > rng.uniform(-0.5, 1.0))
    tint = rng.uniform(0.6, 1.0, (3, 1, 1)).astype(np.float32)
    return first * (1 - share) + second * share + np.float32(log_uniform(rng, 0.005, 0.15)) * tint * texture


def paint_objects(
    rng: np.random.Generator,
    canvas: Array,
    sheet: Sheet,
    texture: Array,
    catalogue: Catalogue,
    objects: tuple[int, int],
) -> None:
    """Paint objects of a catalogue back to front onto canvas (3, H, W) and sheet, in place.

    In a third of the scenes all objects are of one class. The distance from the camera scales all of a scene's objects.

    Args:
        rng: source of all randomness.
        canvas: float32 (3, H, W), the ground.
        sheet: receives labels, parts and classes.
        texture: float32 (H, W), a random field of deviation 1.
        catalogue: the classes.
        objects: least and largest number of objects.
    """
    shape = (sheet.labels.shape[0], sheet.labels.shape[1])
    kinds = len(catalogue.kinds)
    alike = int(rng.integers(kinds)) if rng.random() < 0.33 else None
    zoom, most = log_uniform(rng, 0.6, 1.7), 0.4 * min(shape)
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        number = int(rng.integers(kinds)) if alike is None else alike
        kind = catalogue.kinds[number]
        radius = float(np.clip(zoom * log_uniform(rng, *kind.radius), 3.0, most))
        level = outline(rng, kind.outline, radius)
        corner = tuple(int(rng.integers(0, side)) - level.shape[0] // 2 for side in shape)
        place = overlap(level.shape[0], (corner[0], corner[1]), shape)
        if place is None:
            continue
        part = draw_part(rng, kind, level, radius)
        window, patch = place
        level = level[patch]
        inside = level <= 1
        if not inside.any():
            continue
        shown = None if part is None else part[patch]
        _fill(rng, canvas[:, window[0], window[1]], level, inside, shown, kind, texture)
        sheet.add(window, inside, number, shown)


def draw_part(rng: np.random.Generator, kind: Kind, level: Array, radius: float) -> NDArray[np.bool_] | None:
    """Part of one object of a class as a mask of the whole patch, or None for a class without parts."""
    if kind.part is None:
        return None
    core = outline(rng, "nucleus", radius * rng.uniform(0.35, 0.6)) if kind.part == "core" else level[:0, :0]
    return part_of(rng, kind.part, level, core)


def _fill(
    rng: np.random.Generator,
    region: Array,
    level: Array,
    inside: NDArray[np.bool_],
    part: NDArray[np.bool_] | None,
    kind: Kind,
    texture: Array,
) -> None:
    """Paint one object into region (3, h, w): its colour, shading towards one side and the rim, texture, its part."""
    colour = np.array(kind.colour) + rng.normal(0, kind.spread, 3)
    if np.abs(colour - region.mean(axis=(1, 2))).max() < LEAST_CONTRAST:
        colour += 0.25 if colour.mean() < 0.5 else -0.25
    shade = np.float32(rng.uniform(0, 0.4)) * ramp((level.shape[0], level.shape[1]), rng.uniform(0, 2 * np.pi))
    shade += np.float32(kind.gloss) * (np.float32(0.5) - np.square(np.minimum(level, 1)))
    grain = texture[: level.shape[0], : level.shape[1]]
    shade += pattern(rng, kind, grain)
    paint = colour.astype(np.float32)[:, None, None] * (1 + shade) + np.float32(0.25) * shade
    np.copyto(region, paint, where=inside[None])
    if part is not None:
        other = np.array(kind.part_colour) + rng.normal(0, kind.spread, 3)
        np.copyto(region, other.astype(np.float32)[:, None, None] * (1 + shade), where=part[None])
