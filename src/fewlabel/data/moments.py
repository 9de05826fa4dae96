"""Statistics of an image in one pass over its windows, and what networks are given of it without holding it.

The moments of two parts are combined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979): exact algebra on centred sums, so nothing cancels for a large mean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fewlabel.core.radiometry import FLAT, Radiometry, apply
from fewlabel.core.types import STANDARD, Image
from fewlabel.data.windows import WindowReader

ROWS, STRIPE = 256, 4096  # rows read at once; columns of them that are taken to float64 at once
STEP = 64  # rows that are standardised at once

WHOLE = ("percentile", "clahe")
"""Radiometries whose statistics need the whole image at once."""

Windows = Callable[[int, int, int, int], np.ndarray]
"""Gives the window `(top, left, height, width)` of a one-channel image, float32 `(height, width)`."""

Rows = Callable[[int, int], np.ndarray]
"""Gives the rows `top` to `stop` (not included) of a one-channel image of whole width, float32 `(stop - top, W)`."""


@dataclass(frozen=True)
class Moments:
    """Statistics of a set of values.

    Attributes:
        count: Number of values.
        mean: Their mean.
        squares: Sum of squared differences from the mean.
        largest: Largest magnitude.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Moments of an array of any shape, at least one value, computed in float64."""
        array = values.astype(np.float64)
        mean = float(array.mean())
        return cls(array.size, mean, float(np.square(array - mean).sum()), float(np.abs(array).max()))

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * other.count / count,
            self.squares + other.squares + step**2 * self.count * other.count / count,
            max(self.largest, other.largest),
        )

    @property
    def deviation(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / max(self.count, 1)))

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Subtract the mean and divide by the standard deviation, as `fewlabel.core.radiometry.standardise` does.

        Args:
            values: float array of any shape but (), a part of the set.

        Returns:
            float32 of the same shape; zeros for a set of one value, told by the same bound.
        """
        result = np.zeros(values.shape, dtype=np.float32)
        if self.deviation > FLAT * self.largest:
            for start in range(0, len(values), STEP):  # float64 for a few rows at a time
                part = values[start : start + STEP].astype(np.float64)
                result[start : start + STEP] = (part - self.mean) / self.deviation
        return result


def grey_windows(reader: WindowReader) -> Windows:
    """The grey channel of an image by windows, in the file's units, as `fewlabel.core.types.Image.grey` makes it."""
    return lambda *window: Image("a window", reader.read(*window)).grey()


def whole_rows(windows: Windows, width: int) -> Rows:
    """Windows of whole width W, as rows."""
    return lambda top, stop: windows(top, 0, stop - top, width)


def grey_rows(reader: WindowReader) -> Rows:
    """`grey_windows` by rows."""
    return whole_rows(grey_windows(reader), reader.size[1])


def grey_bands(reader: WindowReader) -> Iterator[np.ndarray]:
    """The grey channel once from top to bottom, float32 `(h, W)`; no part of the file is decoded twice."""
    rows, height = grey_rows(reader), reader.size[0]
    step = -(-ROWS // reader.block) * reader.block
    return (rows(top, min(top + step, height)) for top in range(0, height, step))


def grey_moments(reader: WindowReader) -> Moments:
    """Moments of the whole image's grey channel, in one pass.

    Args:
        reader: The image.

    Returns:
        The moments; memory stays that of `ROWS` rows, or of one row of the file's tiles or strips where that is more.
    """
    total = Moments()
    for band in grey_bands(reader):
        for left in range(0, band.shape[1], STRIPE):
            total += Moments.of(band[:, left : left + STRIPE])
    return total


def grey_extremes(reader: WindowReader) -> tuple[float, float]:
    """Lowest and highest value of the whole image's grey channel, in one pass; memory as `grey_moments`."""
    low, high = float("inf"), float("-inf")
    for band in grey_bands(reader):
        low, high = min(low, float(band.min())), max(high, float(band.max()))
    return low, high


def standardised_rows(reader: WindowReader, moments: Moments) -> Rows:
    """The standardised grey channel by rows: what `standardise(image.grey())` holds there, to float rounding.

    Args:
        reader: The image.
        moments: Those of the whole image, as `grey_moments` gives them.

    Returns:
        Rows for `fewlabel.data.tiles.bands`.
    """
    rows = grey_rows(reader)
    return lambda top, stop: moments.standardise(rows(top, stop))


def prepared_windows(radiometry: Radiometry, reader: WindowReader) -> Windows:
    """What networks are given of an image, by windows, without holding it.

    Args:
        radiometry: `standard`, `min-max` (each takes one pass over the image here) or `fixed`; none of `WHOLE`.
        reader: The image.

    Returns:
        Windows of what `fewlabel.core.radiometry.apply` gives for the whole image: for `standard` to float rounding,
        else the same values.

    Raises:
        ValueError: The radiometry needs the whole image.
    """
    if radiometry.policy in WHOLE:
        raise ValueError(f"radiometry {radiometry.policy!r} needs the whole image")
    windows, line = grey_windows(reader), radiometry
    if radiometry == STANDARD:
        moments = grey_moments(reader)
        return lambda *window: moments.standardise(windows(*window))
    if radiometry.policy == "min-max":
        low, high = grey_extremes(reader)
        if high - low <= FLAT * max(abs(low), abs(high)):
            return lambda top, left, height, width: np.zeros((height, width), dtype=np.float32)
        line = Radiometry(policy="fixed", low=low, high=high)

    def scaled(top: int, left: int, height: int, width: int) -> np.ndarray:
        grey = windows(top, left, height, width)  # read at once, since the file's tiles are; float64 for a few rows
        return np.concatenate([apply(line, grey[start : start + STEP]) for start in range(0, len(grey), STEP)])

    return scaled
