"""Pd by the area of the target: which sizes a model misses.

Targets and detections are matched as in `fewlabel.metrics.targets`, all sizes together; only the counting is split.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from fewlabel.core.errors import RecipeError
from fewlabel.core.masks import components
from fewlabel.metrics.pairs import check_pair
from fewlabel.metrics.targets import DISTANCE, Matching, centroids, check_matching, match

# Largest areas of all bins but the last, in pixels: 3x3, 5x5 and 9x9, the last being the field's bound of "small".
EDGES = (9, 25, 81)


class SizeBin(TypedDict):
    """Targets of `smallest` to `largest` pixels (None = no bound), those found, and Pd in percent (NaN without any)."""

    smallest: int
    largest: int | None
    targets: int
    found: int
    Pd: float


def check_edges(edges: Sequence[int]) -> None:
    """Refuse bounds of bins that are not whole, positive and rising.

    Raises:
        RecipeError: One is not.
    """
    values = list(edges)
    rising = all(low < high for low, high in zip([0, *values], values, strict=False))
    if not rising or not all(isinstance(value, int | np.integer) for value in values):
        raise RecipeError(f"The bounds {values} of the bins of area are not whole, positive and rising; sort them.")


def size_update(
    prediction: np.ndarray,
    target: np.ndarray,
    edges: Sequence[int] = EDGES,
    matching: Matching = "nearest",
    distance: float = DISTANCE,
) -> np.ndarray:
    """Count the targets of one image, and those found, by area.

    Args:
        prediction: bool `(H, W)`.
        target: bool `(H, W)`.
        edges: K rising areas in pixels; bin 0 holds areas up to and with the first, bin K those above the last.
        matching: `nearest` or `legacy`; see `fewlabel.metrics.targets`.
        distance: Pixels; centroids must be strictly closer than this.

    Returns:
        int64 `(2, K + 1)`: targets, and those of them found.

    Raises:
        DataError: The masks are not bool `(H, W)` of one size.
        RecipeError: `edges` do not rise, or `matching` is not a known rule.
    """
    check_pair(prediction, target)
    check_edges(edges)
    centres, areas = centroids(*components(target))
    detections, _ = centroids(*components(prediction))
    bins = np.searchsorted(np.asarray(edges), areas, side="left")
    found = bins[[index for index, _ in match(centres, detections, matching, distance)]]
    return np.stack([np.bincount(each, minlength=len(edges) + 1) for each in (bins, found)]).astype(np.int64)


def size_compute(counts: np.ndarray, edges: Sequence[int] = EDGES) -> list[SizeBin]:
    """Turn counts into Pd by area.

    Args:
        counts: int64 `(2, K + 1)`, the sum of `size_update` over images.
        edges: The K bounds that gave them.

    Returns:
        K + 1 bins, from small to large.
    """
    bounds = [0, *(int(edge) for edge in edges)]
    largest = [*bounds[1:], None]
    return [
        {
            "smallest": low + 1,
            "largest": high,
            "targets": int(targets),
            "found": int(found),
            "Pd": 100.0 * int(found) / int(targets) if targets else math.nan,
        }
        for low, high, targets, found in zip(bounds, largest, counts[0], counts[1], strict=True)
    ]


class SizeMetric:
    """Pd by target area over a stream of images; holds two integers per bin."""

    def __init__(
        self, edges: Sequence[int] = EDGES, matching: Matching = "nearest", distance: float = DISTANCE
    ) -> None:
        """Start from nothing.

        Args:
            edges: K rising areas in pixels.
            matching: `nearest` or `legacy`.
            distance: Pixels; centroids must be strictly closer than this.

        Raises:
            RecipeError: `edges` do not rise, or `matching` is not a known rule.
        """
        check_edges(edges)
        check_matching(matching)
        self.edges = tuple(edges)
        self.matching: Matching = matching
        self.distance = distance
        self.counts = np.zeros((2, len(self.edges) + 1), dtype=np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one image; see `size_update` for arguments and errors."""
        self.counts += size_update(prediction, target, self.edges, self.matching, self.distance)

    def compute(self) -> list[SizeBin]:
        """The bins of all images so far; see `size_compute`."""
        return size_compute(self.counts, self.edges)
