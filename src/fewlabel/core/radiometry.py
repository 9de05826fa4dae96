"""From recorded units to what networks are given.

`standardise` removes the gain and offset of the sensor and is what every model has seen unless its record says
otherwise; `Radiometry` is that record. `to_unit` squeezes the result into SAM's range without a dependence on the crop.
"""

from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:  # torch takes seconds to import, and reading data needs none of it
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

FLAT = 1e-6  # of the largest |x|: eight steps of float32 there, more than the rounding of a constant image can spread
UNIFORM = 3**0.5  # values spread evenly over -UNIFORM..UNIFORM have mean 0 and standard deviation 1
BINS = 256  # of the histograms of `clahe`
KNEE = 4.0  # standard deviations at which the unit map has used half of its head-room


def standardise(pixels: Array) -> Array:
    """Subtract each image's mean and divide by its standard deviation.

    Args:
        pixels: float `(H, W)`, `(C, H, W)` or `(B, C, H, W)` in any units; statistics are taken over the last two axes
            for arrays, and over all axes but the first for batches `(B, C, H, W)`.

    Returns:
        The same shape, float32, mean 0 and standard deviation 1; zeros for an image of one value, which is one whose
        standard deviation is at most `FLAT` times its largest magnitude. Unchanged (up to rounding) when the input is
        multiplied by a positive gain of any size, and when it is shifted by an offset that leaves it above that bound.
    """
    axes = (-3, -2, -1) if pixels.ndim == 4 else (-2, -1)
    if not isinstance(pixels, np.ndarray):
        import torch

        values = pixels.double()
        centred = values - values.mean(dim=axes, keepdim=True)
        deviation = centred.square().mean(dim=axes, keepdim=True).sqrt()
        flat = deviation <= FLAT * values.abs().amax(dim=axes, keepdim=True)
        return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, deviation)).float()
    array = pixels.astype(np.float64)
    difference = array - array.mean(axis=axes, keepdims=True)
    spread = np.sqrt(np.square(difference).mean(axis=axes, keepdims=True))
    constant = spread <= FLAT * np.abs(array).max(axis=axes, keepdims=True)
    return np.where(constant, 0.0, difference / np.where(constant, 1.0, spread)).astype(np.float32)


def to_unit(standardised: Array) -> Array:
    """Map standardised values to the open interval (0, 1), point by point: `0.5 + 0.5 z / (4 + |z|)`.

    Being pointwise it does not depend on the crop, and unlike a clip it keeps bright targets apart from bright clouds.

    Args:
        standardised: float32 of any shape, as `standardise` returns it.

    Returns:
        float32 of the same shape, in (0, 1).
    """
    return 0.5 + 0.5 * standardised / (KNEE + abs(standardised))


class Radiometry(BaseModel):
    """How a data set's grey values become the input of networks; recorded with every model, since it has to be kept.

    Of the policies only `fixed` tells an image from the same one with another gain or offset; all are monotone in the
    value of a pixel (`clahe`: within one place), and none clips, since small targets are the extremes of their image.

    * ``standard``: minus mean, by standard deviation, see `standardise`.
    * ``percentile``: the ``low`` and ``high`` percentile of the image come where a normal distribution has them. Hot
      objects that cover less than 100 - ``high`` percent then leave the background's scale alone.
    * ``min-max``: the image's lowest and highest value become -sqrt(3) and sqrt(3).
    * ``fixed``: ``low`` and ``high``, in the units of the file, become -sqrt(3) and sqrt(3), in every image alike: for
      calibrated cameras, where the temperature itself says what something is.
    * ``clahe``: local histogram equalisation, see `clahe`; what many infrared cameras do before they show a picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["standard", "percentile", "min-max", "fixed", "clahe"] = Field(
        default="standard", description="how grey values become network input"
    )
    low: float | None = Field(
        default=None, allow_inf_nan=False, description="percentile: lower one, 1 if not given; fixed: in file units"
    )
    high: float | None = Field(
        default=None, allow_inf_nan=False, description="percentile: upper one, 99 if not given; fixed: in file units"
    )
    tiles: int | None = Field(default=None, ge=1, le=64, description="clahe: tiles on each axis, 8 if not given")
    clip: float | None = Field(
        default=None, ge=1, allow_inf_nan=False, description="clahe: cut of the histogram over its mean, 3 if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Write the policy's defaults down, so that a record stays true when a default changes."""
        defaults = {"percentile": {"low": 1.0, "high": 99.0}, "clahe": {"tiles": 8, "clip": 3.0}}
        if not isinstance(values, dict) or not isinstance(values.get("policy"), str):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        return {**defaults.get(values["policy"], {}), **given}

    @model_validator(mode="after")
    def _fitting(self) -> "Radiometry":
        """Refuse parameters that the policy has no use for, and ranges that are none."""
        ranged, tiled = self.policy in ("percentile", "fixed"), self.policy == "clahe"
        for name, wanted in (("low", ranged), ("high", ranged), ("tiles", tiled), ("clip", tiled)):
            if wanted and getattr(self, name) is None:
                raise ValueError(f"policy {self.policy} needs {name}: give it in the units of the files")
            if not wanted and getattr(self, name) is not None:
                raise ValueError(f"policy {self.policy} has no {name}: leave it out")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"low is {self.low}, expected a number below high, {self.high}")
            if self.policy == "percentile" and not 0 < self.low < self.high < 100:
                raise ValueError(
                    f"low and high are {self.low} and {self.high}, expected percentiles above 0, below 100"
                )
        return self


def apply(radiometry: Radiometry, grey: np.ndarray) -> np.ndarray:
    """Bring one whole image to the scale that networks expect: mean about 0, standard deviation about 1.

    Multiplying the image by a positive gain or adding an offset changes nothing (up to rounding), but for ``fixed``,
    which is there to keep both.

    Args:
        radiometry: The policy.
        grey: float (H, W) without NaN or infinity, in the units of the file; the whole image, before any crop.

    Returns:
        float32 (H, W), not clipped. For ``standard`` exactly `standardise(grey)`. An image of one value (its range is
        at most `FLAT` times its largest magnitude) becomes zeros; with ``fixed`` it becomes its level in the range.

    Source:
        ``percentile`` is scaling by quantiles, which for 25 and 75 is the interquartile range by 1.349 (Rousseeuw and
        Croux, "Alternatives to the Median Absolute Deviation", 1993); where the two percentiles coincide, as in an
        image that is flat but for its targets, ``standard`` takes its place.
    """
    if radiometry.policy == "standard":
        return standardise(grey)
    values = grey.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if radiometry.policy == "fixed":
        assert radiometry.low is not None and radiometry.high is not None  # the model makes sure
        return _between(values, radiometry.low, radiometry.high, -UNIFORM, UNIFORM)
    flat = FLAT * max(abs(low), abs(high))
    if high - low <= flat:
        return np.zeros(grey.shape, np.float32)
    if radiometry.policy == "min-max":
        return _between(values, low, high, -UNIFORM, UNIFORM)
    if radiometry.policy == "percentile":
        assert radiometry.low is not None and radiometry.high is not None
        first, last = (float(value) for value in np.percentile(values, [radiometry.low, radiometry.high]))
        if last - first <= flat:
            return standardise(grey)
        normal = NormalDist()
        return _between(
            values, first, last, normal.inv_cdf(radiometry.low / 100), normal.inv_cdf(radiometry.high / 100)
        )
    assert radiometry.tiles is not None and radiometry.clip is not None
    return clahe(values, radiometry.tiles, radiometry.clip)


def _between(values: np.ndarray, low: float, high: float, first: float, last: float) -> np.ndarray:
    """The straight line through (low, first) and (high, last), float32."""
    return (first + (values - low) * ((last - first) / (high - low))).astype(np.float32)


def clahe(values: np.ndarray, tiles: int, clip: float) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation.

    Each tile's histogram over the range of the whole image is cut at ``clip`` times its mean count, and what was cut
    off is spread over all bins. Its cumulative sum, a straight line within each bin so that no depth is lost, is the
    tile's map to 0..1. A pixel is given the bilinear mean u of the maps of the four tiles whose centres surround it (at
    the border of the image: of two or one), and finally sqrt(12) (u - 1/2), which brings evenly spread values to mean 0
    and deviation 1.

    Args:
        values: float64 (H, W), not of one value.
        tiles: Tiles on each axis, at most one per pixel; their borders are the whole parts of i H / tiles.
        clip: >= 1; the map is nowhere steeper than ``clip`` + 1 times the straight line from lowest to highest value.

    Returns:
        float32 (H, W) in -sqrt(3)..sqrt(3).

    Source:
        Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994; here the excess is
        spread once and in fractions, not in rounds of whole counts, and grey values are not rounded to bins.
    """
    low, high = values.min(), values.max()
    position = (values - low) * (BINS / (high - low))
    bins = np.minimum(position.astype(np.intp), BINS - 1)
    inside = position - bins
    borders = [np.arange(min(tiles, side) + 1) * side // min(tiles, side) for side in values.shape]
    maps = np.empty((len(borders[0]) - 1, len(borders[1]) - 1, BINS + 1))
    for i, (top, bottom) in enumerate(zip(borders[0][:-1], borders[0][1:], strict=True)):
        for j, (left, right) in enumerate(zip(borders[1][:-1], borders[1][1:], strict=True)):
            counts = np.bincount(bins[top:bottom, left:right].ravel(), minlength=BINS) / (bottom - top) / (right - left)
            kept = np.minimum(counts, clip / BINS)
            maps[i, j, 0] = 0
            np.cumsum(kept + (1 - kept.sum()) / BINS, out=maps[i, j, 1:])
    (rows, below), (columns, beside) = (_neighbours(border) for border in borders)
    result = np.zeros(values.shape)
    for row, share in ((rows[0], 1 - below), (rows[1], below)):
        for column, part in ((columns[0], 1 - beside), (columns[1], beside)):
            start = maps[row[:, None], column[None], bins]
            end = maps[row[:, None], column[None], bins + 1]
            result += share[:, None] * part * (start + inside * (end - start))
    return ((result - 0.5) * 2 * UNIFORM).astype(np.float32)


def _neighbours(borders: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """For every pixel of an axis the tiles with the centres before and after it, and the share of the second."""
    centres = (borders[:-1] + borders[1:] - 1) / 2
    pixels = np.arange(borders[-1])
    place = np.interp(pixels, centres, np.arange(len(centres)))
    first = np.minimum(place.astype(np.intp), len(centres) - 1)
    return (first, np.minimum(first + 1, len(centres) - 1)), place - first
