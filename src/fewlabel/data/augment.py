"""Training crops: where they are cut, how they are turned, scaled and varied in intensity.

The rule that makes these crops fit for small targets: a target with a pixel inside the crop is never lost. Quarter
turns and flips move pixels without resampling; after scaling every 8-connected target keeps at least one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from fewlabel.core.banded import banded_instances
from fewlabel.core.masks import component_boxes, components
from fewlabel.data.crop_objects import apart, mirrors, resize_objects
from fewlabel.data.planes import Plane

BAND = 512
"""Rows of a plane that are looked at at once."""


class AugmentConfig(BaseModel):
    """How training crops vary. Intensities are in units of the image's standard deviation (images are standardised)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_probability: float = Field(
        default=0.7, ge=0, le=1, description="share of crops placed so that they hold a target"
    )
    turns: bool = Field(default=True, description="flips and quarter turns, all eight equally likely")
    scale_probability: float = Field(default=0.5, ge=0, le=1, description="share of crops that are scaled")
    scale_low: float = Field(
        default=0.75, ge=0.5, le=1, description="smallest scale: 0.75 shows targets at 3/4 of their size"
    )
    scale_high: float = Field(default=1.33, ge=1, le=4, description="largest scale")
    gain: float = Field(default=0.2, ge=0, le=1, description="contrast factor, log-uniform in exp(-gain)..exp(gain)")
    offset: float = Field(default=0.2, ge=0, le=5, description="brightness shift, uniform in -offset..offset")
    gamma: float = Field(
        default=0.25, ge=0, le=1, description="exponent on the range, log-uniform in exp(-gamma)..exp(gamma)"
    )
    noise: float = Field(default=0.05, ge=0, le=1, description="largest standard deviation of added white noise")


@dataclass(frozen=True)
class Patch:
    """An image made ready for cropping: arrays, or for an image that is too large planes that give their windows.

    Attributes:
        image: float32 (H, W), standardised over the whole image, as the networks see it when deployed.
        target: bool (H, W).
        weight: float32 (H, W), 1 = counts in the loss, 0 = ignored.
        id: What messages call the image.
        soft: float32 (H, W), what a teacher believes, 0..1, NaN where that is not to be learned; None without one.
        objects: int32 (H, W), numbers of the objects, 0 = background; above 0 exactly where ``target`` is. None where
            the 8-connected parts of a crop's target are its objects.
    """

    image: np.ndarray | Plane
    target: np.ndarray | Plane
    weight: np.ndarray | Plane
    id: str = "unnamed"
    soft: np.ndarray | None = None
    objects: np.ndarray | Plane | None = None

    @cached_property
    def boxes(self) -> np.ndarray:
        """int64 (N, 4): first row, first column, row and column after the last, of every 8-connected target."""
        target, (height, width) = self.target, self.target.shape
        if isinstance(target, np.ndarray):
            if not any(target.strides) and not target.any():  # one False for all pixels
                return np.zeros((0, 4), np.int64)
            found = component_boxes(*components(target))
        else:
            bands = (target.window(top, 0, min(BAND, height - top), width) for top in range(0, height, BAND))
            found = banded_instances(((band, np.broadcast_to(1.0, band.shape)) for band in bands), target.shape).boxes
        return found[:, [1, 0, 3, 2]].astype(np.int64)  # core's boxes have x first


class Place(NamedTuple):
    """Where a crop comes from.

    Attributes:
        top: First row of the window; it and the other sides may lie outside the image.
        left: First column.
        side: Rows and columns of the window, before it is scaled to the crop.
        turn: Flip and quarter turn of the crop, see `turned`; 0 = none.
    """

    top: int
    left: int
    side: int
    turn: int


@dataclass(frozen=True)
class Batch:
    """Crops as a network takes them.

    Attributes:
        images: float32 (B, 1, S, S), standardised (up to the intensity jitter).
        targets: float32 (B, 1, S, S), 0 or 1.
        weights: float32 (B, 1, S, S), 1 = counts in the loss, 0 = ignored.
        ids: Which images the B crops come from.
        soft: float32 (B, 1, S, S), 0..1 or NaN, see `Patch`; all NaN in a crop of an image that has none; None where no
            image has one.
        objects: int32 (B, S, S), 0 = background, else each object of a crop has its own number; None unless asked for.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    ids: tuple[str, ...] = ()
    soft: Tensor | None = None
    objects: Tensor | None = None


def crop_batch(
    patches: Sequence[Patch], size: int, rng: np.random.Generator, config: AugmentConfig, *, objects: bool = False
) -> Batch:
    """Cut and vary one crop of ``size`` x ``size`` pixels from each patch.

    Images smaller than the crop are continued by reflection (image, target and weight alike).

    Args:
        patches: B patches of any sizes >= 1 x 1.
        size: Side S of the crops.
        rng: The only source of randomness.
        config: How crops vary.
        objects: Whether the objects are told apart; nothing else of the batch depends on it, but for the weight of
            pixels that objects are given back (see `fewlabel.data.crop_objects.resize_objects`).

    Returns:
        The batch of B crops, in the order of ``patches``.
    """
    images = np.empty((len(patches), 1, size, size), np.float32)
    targets = np.empty_like(images)
    weights = np.empty_like(images)
    softs = np.full_like(images, np.nan) if any(patch.soft is not None for patch in patches) else None
    numbers = np.zeros((len(patches), size, size), np.int32) if objects else None
    for i, patch in enumerate(patches):
        place = place_crop(patch, size, rng, config)
        image, target, weight, soft = crop_at(patch, size, place)
        images[i, 0] = jitter(image, rng, config)
        targets[i, 0] = target
        weights[i, 0] = weight
        if softs is not None and soft is not None:
            softs[i, 0] = soft
        if numbers is not None:
            numbers[i], weights[i, 0] = objects_at(patch, size, place, target, weight)
    ids = tuple(patch.id for patch in patches)
    believed, told = (None if planes is None else torch.from_numpy(planes) for planes in (softs, numbers))
    return Batch(torch.from_numpy(images), torch.from_numpy(targets), torch.from_numpy(weights), ids, believed, told)


def crop(
    patch: Patch, size: int, rng: np.random.Generator, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Geometry of one crop: place, scale, turn.

    Returns:
        image float32, target bool and weight float32, each (size, size); views of the patch where nothing is resampled.
    """
    image, target, weight, _ = crop_with_soft(patch, size, rng, config)
    return image, target, weight


def crop_with_soft(
    patch: Patch, size: int, rng: np.random.Generator, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """As `crop`, with the teacher's belief, where there is one, as the fourth plane."""
    return crop_at(patch, size, place_crop(patch, size, rng, config))


def place_crop(patch: Patch, size: int, rng: np.random.Generator, config: AugmentConfig) -> Place:
    """Draw where a crop of ``size`` comes from."""
    side = size
    if rng.random() < config.scale_probability:
        low, high = np.log(config.scale_low), np.log(config.scale_high)
        side = max(1, round(size / float(np.exp(rng.uniform(low, high)))))
    top, left = _place(patch, side, rng, config.target_probability)
    return Place(top, left, side, int(rng.integers(8)) if config.turns else 0)


def crop_at(patch: Patch, size: int, place: Place) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The image, target, weight and, if there is one, belief of a crop; see `crop_with_soft`."""
    top, left, side, turn = place
    image, target, weight = (cut(plane, top, left, side) for plane in (patch.image, patch.target, patch.weight))
    soft = None if patch.soft is None else cut(patch.soft, top, left, side)
    if side != size:
        image, target, weight = resize(image, target, weight, size)
        soft = None if soft is None else resize_soft(soft, size)
    image, target, weight = (turned(plane, turn) for plane in (image, target, weight))
    return image, target, weight, None if soft is None else turned(soft, turn)


def objects_at(
    patch: Patch, size: int, place: Place, target: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The objects of a crop.

    Args:
        patch: The image.
        size: Side of the crop.
        place: Where it comes from.
        target: bool (size, size), as `crop_at` gives it.
        weight: float32 (size, size), likewise.

    Returns:
        int32 (size, size), 0 = background, one number per object that has a pixel in the window, wherever it is seen;
        and the weight, with that of each object's own pixel where the object was given one back.
    """
    if patch.objects is None:
        return components(target)[0], weight
    top, left, side, turn = place
    numbers = cut(patch.objects, top, left, side)
    height, width = patch.objects.shape
    if min(top, left) < 0 or top + side > height or left + side > width:
        numbers = apart(numbers, mirrors(top, side, height), mirrors(left, side, width))
    if side == size:
        return turned(numbers, turn), weight
    back = (-turn) % 4 if turn < 4 else turn  # flips are their own inverse
    numbers, restored = resize_objects(numbers, turned(target, back), size)
    if restored:
        straight, own = turned(weight, back).copy(), cut(patch.weight, top, left, side)
        for pixel, source in restored:
            straight[pixel] = own[source]
        weight = turned(straight, turn)
    return turned(numbers, turn), weight


def cut(plane: np.ndarray | Plane, top: int, left: int, side: int) -> np.ndarray:
    """The (side, side) window of a (H, W) plane whose first pixel is (top, left); reflected outside the plane."""
    height, width = plane.shape
    if top >= 0 and left >= 0 and top + side <= height and left + side <= width:
        return _window(plane, top, left, side, side)
    rows, columns = _reflected(top, side, height), _reflected(left, side, width)
    first, start = int(rows.min()), int(columns.min())
    part = _window(plane, first, start, int(rows.max()) + 1 - first, int(columns.max()) + 1 - start)
    return part[np.ix_(rows - first, columns - start)]


def _window(plane: np.ndarray | Plane, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A window that lies inside a plane; of an array a view."""
    if isinstance(plane, np.ndarray):
        return plane[top : top + height, left : left + width]
    return plane.window(top, left, height, width)


def turned(plane: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight flips and quarter turns of a square, 0 <= turn < 8; a view."""
    plane = np.rot90(plane, turn % 4)
    return plane[:, ::-1] if turn >= 4 else plane


def resize(
    image: np.ndarray, target: np.ndarray, weight: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale a square window to ``size``; every 8-connected target keeps at least one pixel.

    The image is interpolated bilinearly (antialiased when shrinking), the target likewise and cut at one half, the
    weight takes the nearest pixel. A target that falls below one half everywhere gets back the pixel under its own
    pixel nearest to its centroid.

    Args:
        image: float32 (s, s).
        target: bool (s, s).
        weight: float32 (s, s).
        size: New side.

    Returns:
        The three planes at (size, size).
    """
    side = image.shape[0]
    shrinks = size < side
    pair = torch.from_numpy(np.stack([image, target.astype(np.float32)]))[None]
    scaled = F.interpolate(pair, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)[0].numpy()
    nearest = np.minimum(((np.arange(size) + 0.5) * side / size).astype(np.int64), side - 1)
    grid = np.ix_(nearest, nearest)
    new_target, new_weight = scaled[1] >= 0.5, weight[grid]
    labels, count = components(target)
    if count:
        kept = np.zeros(count + 1, bool)
        kept[labels[grid][new_target]] = True
        lost = np.flatnonzero(~kept[1:]) + 1
        all_rows, all_columns = np.nonzero(target) if len(lost) else (lost, lost)
        owners = labels[all_rows, all_columns]
        for number in lost:
            rows, columns = all_rows[owners == number], all_columns[owners == number]
            near = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
            row, column = (int((value[near] + 0.5) * size / side) for value in (rows, columns))
            new_target[row, column] = True
            new_weight[row, column] = weight[rows[near], columns[near]]
    return scaled[0], new_target, new_weight


def resize_soft(soft: np.ndarray, size: int) -> np.ndarray:
    """Scale a square window of beliefs to ``size``, as `resize` does the target before it is cut at one half.

    Args:
        soft: float32 (s, s), 0..1 or NaN.
        size: New side.

    Returns:
        float32 (size, size): a mean over the known pixels; NaN where the nearest pixel is NaN.
    """
    side = soft.shape[0]
    known = ~np.isnan(soft)
    pair = torch.from_numpy(np.stack([np.where(known, soft, 0), known]).astype(np.float32))[None]
    value, share = F.interpolate(pair, (size, size), mode="bilinear", align_corners=False, antialias=size < side)[
        0
    ].numpy()
    nearest = np.minimum(((np.arange(size) + 0.5) * side / size).astype(np.int64), side - 1)
    mean = value / np.maximum(share, np.finfo(np.float32).tiny)
    return np.where(known[np.ix_(nearest, nearest)], mean.clip(0, 1), np.nan).astype(np.float32)


def jitter(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Vary a standardised crop: gamma on its own range, gain, offset, white noise; a new float32 array."""
    gamma = float(np.exp(rng.uniform(-config.gamma, config.gamma)))
    gain = float(np.exp(rng.uniform(-config.gain, config.gain)))
    offset = float(rng.uniform(-config.offset, config.offset))
    sigma = float(rng.uniform(0, config.noise))
    low, high = float(image.min()), float(image.max())
    varied = np.array(image, np.float32)
    if gamma != 1 and high > low:
        varied -= np.float32(low)
        varied /= np.float32(high - low)
        np.power(varied, np.float32(gamma), out=varied)
        varied *= np.float32(high - low)
        varied += np.float32(low)
    varied *= np.float32(gain)
    varied += np.float32(offset)
    if sigma:
        varied += np.float32(sigma) * rng.standard_normal(varied.shape, np.float32)
    return varied


def _place(patch: Patch, side: int, rng: np.random.Generator, target_probability: float) -> tuple[int, int]:
    """First row and column of a window; negative where the image is smaller than the window."""
    height, width = patch.image.shape
    biased = rng.random() < target_probability
    if not biased or not len(patch.boxes):
        return _offset(height, side, rng), _offset(width, side, rng)
    y0, x0, y1, x1 = (int(value) for value in patch.boxes[rng.integers(len(patch.boxes))])
    if y1 - y0 > side or x1 - x0 > side:
        # The target does not fit: hold one of its pixels instead of an edge of its box, which may be background.
        y0, x0 = _pixel(patch.target, (y0, x0, y1, x1), rng)
        y1, x1 = y0 + 1, x0 + 1
    return _offset(height, side, rng, y0, y1), _offset(width, side, rng, x0, x1)


def _pixel(target: np.ndarray | Plane, box: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of one of the target's pixels in a box, all equally likely; a few rows are looked at at once."""
    y0, x0, y1, x1 = box
    tops = range(y0, y1, BAND)

    def rows(top: int) -> np.ndarray:
        return _window(target, top, x0, min(BAND, y1 - top), x1 - x0)

    totals = np.cumsum([np.count_nonzero(rows(top)) for top in tops])
    one = int(rng.integers(totals[-1]))
    place = int(np.searchsorted(totals, one, side="right"))
    down, right = np.nonzero(rows(tops[place]))
    one -= int(totals[place - 1]) if place else 0
    return tops[place] + int(down[one]), x0 + int(right[one])


def _offset(length: int, side: int, rng: np.random.Generator, first: int | None = None, last: int | None = None) -> int:
    """Start of an interval of ``side`` inside (or, if longer, around) ``length`` that holds [first, last) if given."""
    low, high = min(0, length - side), max(0, length - side)
    if first is not None and last is not None:
        low, high = max(low, last - side), min(high, first)
    return int(rng.integers(low, high + 1))


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """Indexes start..start+count-1 mirrored into 0..length-1 without repeating the border (a single pixel repeats)."""
    if length == 1:
        return np.zeros(count, np.int64)
    period = 2 * (length - 1)
    index = np.arange(start, start + count) % period
    return np.where(index < length, index, period - index)
