"""Detection at many thresholds: the curve of Pd against Fa.

Each threshold is scored as `fewlabel.metrics.targets` scores one mask, the pixels whose score lies above it. The curve
is in general not monotone: a lower threshold can merge two targets into one detection, or move a centroid away from its
target.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.metrics.targets import DISTANCE, Matching, TargetCounts, check_matching, target_compute, target_update

# Probabilities evenly spaced in logits from -8 to 8, one half among them: trained networks leave little in between.
THRESHOLDS = tuple(1 / (1 + math.exp(-logit / 2)) for logit in range(-16, 17))


class RocCurve(TypedDict):
    """Pd in percent and Fa in false pixels per million at each threshold (NaN where undefined), and the counts."""

    thresholds: list[float]
    Pd: list[float]
    Fa: list[float]
    matching: str
    images: int
    targets: int


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse thresholds that are not a rising sequence.

    Raises:
        RecipeError: There is none, one is not finite, or one is not above the one before.
    """
    values = np.asarray(thresholds, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise RecipeError(f"The thresholds {list(thresholds)} are not finite and rising; sort them and drop doubles.")


def roc_update(
    scores: np.ndarray,
    target: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    matching: Matching = "nearest",
    distance: float = DISTANCE,
) -> list[TargetCounts]:
    """Count targets, those found, and false pixels of one image at each threshold.

    Args:
        scores: float `(H, W)` of any range, higher = more likely a target.
        target: bool `(H, W)`.
        thresholds: K rising values; a pixel is predicted where its score is greater.
        matching: `nearest` or `legacy`; see `fewlabel.metrics.targets`.
        distance: Pixels; centroids must be strictly closer than this.

    Returns:
        K counts.

    Raises:
        DataError: `scores` is not float, holds NaN, or differs in size from `target`, or `target` is not bool `(H, W)`.
        RecipeError: `thresholds` do not rise, or `matching` is not a known rule.
    """
    check_thresholds(thresholds)
    if not np.issubdtype(scores.dtype, np.floating) or np.isnan(scores).any():
        raise DataError(
            f"A score map has type {scores.dtype}{' and holds NaN' if scores.dtype.kind == 'f' else ''}, expected float"
            " without NaN; pass probabilities, logits or filter responses, not a mask."
        )
    counts: list[TargetCounts] = []
    before = -1
    for threshold in thresholds:
        prediction = scores > float(threshold)
        pixels = int(np.count_nonzero(prediction))
        # Masks are nested, so that an equal number of pixels means the same mask: saturated maps cost one labelling.
        same = pixels == before
        counts.append(counts[-1] if same else target_update(prediction, target, matching, distance))
        before = pixels
    return counts


def roc_compute(counts: Sequence[TargetCounts], thresholds: Sequence[float], matching: Matching) -> RocCurve:
    """Turn the counts at K thresholds into the curve.

    Args:
        counts: K sums over images.
        thresholds: The K thresholds.
        matching: The rule that gave them.

    Returns:
        The curve, in the order of the thresholds.
    """
    scores = [target_compute(count, matching) for count in counts]
    return {
        "thresholds": [float(threshold) for threshold in thresholds],
        "Pd": [score["Pd"] for score in scores],
        "Fa": [score["Fa"] for score in scores],
        "matching": matching,
        "images": counts[0].images,
        "targets": counts[0].targets,
    }


class RocMetric:
    """Pd against Fa over a stream of score maps, in one pass; holds five integers per threshold."""

    def __init__(
        self, thresholds: Sequence[float] = THRESHOLDS, matching: Matching = "nearest", distance: float = DISTANCE
    ) -> None:
        """Start from nothing.

        Args:
            thresholds: K rising values; the default suits probabilities.
            matching: `nearest` or `legacy`.
            distance: Pixels; centroids must be strictly closer than this.

        Raises:
            RecipeError: `thresholds` do not rise, or `matching` is not a known rule.
        """
        check_thresholds(thresholds)
        check_matching(matching)
        self.thresholds = [float(threshold) for threshold in thresholds]
        self.matching: Matching = matching
        self.distance = distance
        self.counts = [TargetCounts()] * len(self.thresholds)

    def update(self, scores: np.ndarray, target: np.ndarray) -> None:
        """Add one image; see `roc_update` for arguments and errors."""
        new = roc_update(scores, target, self.thresholds, self.matching, self.distance)
        self.counts = [old + count for old, count in zip(self.counts, new, strict=True)]

    def compute(self) -> RocCurve:
        """The curve of all images so far; see `roc_compute`."""
        return roc_compute(self.counts, self.thresholds, self.matching)
