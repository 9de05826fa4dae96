"""Scenes of overlapping objects with exact instance labels, classes, and parts inside wholes.

Half of the scenes (by default) are generic: textured ground with ellipses, polygons, stars, rings and bars. The others
look like microscopy: glowing cells on dark ground (fluorescence), dyed cells on bright ground (stained), and grey cells
on bright ground (brightfield). Objects of one class share outline, colour family and texture (`objects_kinds`); they
are painted back to front, and labels are what is seen. Some classes have parts: a core, one half, or a band along the
outline, each labelled as well, so that a click may mean the part or the whole.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fewlabel.core.errors import DataError
from fewlabel.data.synth.fields import Array, blur, log_uniform, power_law, ramp
from fewlabel.data.synth.objects_cells import paint_cells
from fewlabel.data.synth.objects_kinds import STYLES, Catalogue, draw_catalogue
from fewlabel.data.synth.objects_paint import Sheet, ground, paint_objects

MOST_OF_WHOLE = 0.9
"""A part that shows more than this share of its visible whole is not labelled: nobody could tell the two apart."""


class ObjectsConfig(BaseModel):
    """What the renderer draws from. Pairs are inclusive ranges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    styles: tuple[float, float, float, float] = Field(
        default=(0.5, 0.26, 0.16, 0.08),
        description="probability of generic, fluorescence, stained and brightfield scenes",
    )
    classes: tuple[int, int] = Field(default=(3, 10), description="classes that a scene's objects are drawn from")
    objects: tuple[int, int] = Field(default=(1, 15), description="objects painted in a generic scene")
    cells: tuple[int, int] = Field(default=(4, 90), description="cells painted in a microscopy scene (log-uniform)")
    radius: tuple[float, float] = Field(
        default=(4.0, 70.0), description="object half size in pixels, generic (log-uniform)"
    )
    cell_radius: tuple[float, float] = Field(
        default=(4.0, 26.0), description="typical cell radius of a class in pixels (log-uniform)"
    )
    parts: float = Field(default=0.35, ge=0, le=1, description="share of classes whose objects have a part")
    least_area: int = Field(default=12, ge=1, description="objects and parts with fewer visible pixels get no label")


@dataclass(frozen=True)
class ObjectScene:
    """One rendered image.

    Attributes:
        pixels: uint8 (3, H, W), RGB.
        labels: int32 (H, W), 0 = ground, 1..N = visible part of each object, without gaps in the numbers.
        classes: int64 (N,), class of each object: an index into `catalogue.kinds`.
        parts: int32 (H, W), 0 = none, 1..P = visible pixels of each part, without gaps; a part lies inside its whole.
        wholes: int64 (P,), label of the object that each part belongs to.
        catalogue: the classes and the style of the scene.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    classes: NDArray[np.int64]
    parts: NDArray[np.int32]
    wholes: NDArray[np.int64]
    catalogue: Catalogue

    @property
    def style(self) -> str:
        """One of `objects_kinds.STYLES`."""
        return self.catalogue.style


def catalogue_for(rng: np.random.Generator, style: str, config: ObjectsConfig, classes: int | None = None) -> Catalogue:
    """Draw the classes of a data set or a scene.

    Args:
        rng: source of all randomness.
        style: one of `objects_kinds.STYLES`.
        config: ranges.
        classes: number of classes; drawn from the configured range when absent.

    Raises:
        DataError: unknown style or number of classes.
    """
    number = int(rng.integers(config.classes[0], config.classes[1] + 1)) if classes is None else classes
    radius = config.radius if style == "generic" else config.cell_radius
    return draw_catalogue(rng, style, number, radius, config.parts)


def render(
    rng: np.random.Generator,
    size: tuple[int, int] | int = 256,
    config: ObjectsConfig | None = None,
    catalogue: Catalogue | None = None,
) -> ObjectScene:
    """Render one scene. The same generator state, size, config and catalogue give the same bits.

    Args:
        rng: source of all randomness.
        size: (height, width) or one side, in pixels, at least 16.
        config: ranges.
        catalogue: the classes, whose style is the scene's; a scene without one draws its own.

    Raises:
        DataError: a side is below 16 px.
    """
    config = config or ObjectsConfig()
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 16:
        raise DataError(f"An object scene of {shape[0]}x{shape[1]} px was asked for; use at least 16x16.")
    if catalogue is None:
        odds = np.asarray(config.styles)
        catalogue = catalogue_for(rng, STYLES[int(rng.choice(len(STYLES), p=odds / odds.sum()))], config)
    texture = power_law(rng, shape, rng.uniform(1.0, 3.0), log_uniform(rng, 0.4, 2.5))
    sheet = Sheet.blank(shape)
    if catalogue.style == "generic":
        canvas = ground(rng, shape, texture)
        paint_objects(rng, canvas, sheet, texture, catalogue, config.objects)
    else:
        canvas = paint_cells(rng, sheet, texture, catalogue, config.cells)
    pixels = photograph(rng, canvas, catalogue.style)
    labels, classes, parts, wholes = number_visible(sheet, config.least_area)
    return ObjectScene(pixels, labels, classes, parts, wholes, catalogue)


def photograph(rng: np.random.Generator, canvas: Array, style: str) -> NDArray[np.uint8]:
    """Camera: blur, sometimes depth of field, uneven light, sometimes grey, noise, 8 bits.

    Args:
        rng: source of all randomness.
        canvas: float32 (3, H, W), about 0 to 1.
        style: one of `objects_kinds.STYLES`.

    Returns:
        uint8 (3, H, W).
    """
    sigma = rng.uniform(0.3, 1.2) if rng.random() < 0.85 else rng.uniform(1.2, 2.2)
    grey = style in ("fluorescence", "brightfield") and bool(
        np.ptp(canvas[:, 0, 0]) == 0 and (canvas[0] == canvas[1:]).all()
    )
    if not grey and rng.random() < 0.35:
        canvas, grey = canvas.mean(axis=0, keepdims=True), True
    elif grey:
        canvas = canvas[:1]
    canvas = np.stack([blur(plane, sigma) for plane in canvas])
    shape = (canvas.shape[1], canvas.shape[2])
    if rng.random() < 0.12:  # one side of the image is out of focus
        far = np.clip(2 * ramp(shape, rng.uniform(0, 2 * np.pi)), 0, 1)
        soft = np.stack([blur(plane, rng.uniform(1.0, 2.5)) for plane in canvas])
        canvas = canvas + far * (soft - canvas)
    light = 1 + np.float32(rng.uniform(0, 0.3)) * ramp(shape, rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.3:  # fall-off towards the corners
        y, x = (ramp(shape, angle) for angle in (np.pi / 2, 0.0))
        light -= np.float32(rng.uniform(0.2, 1.2)) * (x * x + y * y)
    canvas = canvas * light
    if style == "generic" and rng.random() < 0.2:
        canvas = 1 - canvas
    noise = np.float32(log_uniform(rng, 0.002, {"generic": 0.06, "fluorescence": 0.012}.get(style, 0.03)))
    canvas = canvas + noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    counts = np.rint(np.clip(canvas, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.array(np.broadcast_to(counts, (3, *counts.shape[1:])), order="C")


def number_visible(
    sheet: Sheet, least: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Labels, classes, parts and wholes of what can be seen, as in `ObjectScene`, numbered in painting order.

    Objects of fewer than `least` visible pixels lose their label. Parts do too, and so do those whose whole has none
    or shows hardly anything else.
    """
    objects, parts = len(sheet.classes), len(sheet.wholes)
    areas = np.bincount(sheet.labels.ravel(), minlength=objects + 1)
    keep = areas >= least
    keep[0] = False
    table = np.where(keep, np.cumsum(keep), 0)
    wholes = np.array([0, *sheet.wholes])
    shown = np.bincount(sheet.parts.ravel(), minlength=parts + 1)
    keep_part = (shown >= least) & keep[wholes] & (shown <= MOST_OF_WHOLE * areas[wholes])
    part_table = np.where(keep_part, np.cumsum(keep_part), 0)
    return (
        table.astype(np.int32)[sheet.labels],
        np.array(sheet.classes, np.int64)[keep[1:]],
        part_table.astype(np.int32)[sheet.parts],
        table[wholes[keep_part]].astype(np.int64),
    )
