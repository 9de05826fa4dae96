"""Detection of targets: probability of detection (Pd) and false-alarm rate (Fa).

A target is an 8-connected component of the true mask, a detection one of the predicted mask. A target is found when a
detection's centroid (mean pixel position) lies less than 3 pixels from its own; each detection finds at most one
target. `Pd = 100 * found / targets`; `Fa = 1e6 * pixels of detections that found nothing / pixels of all images`
(Li et al., "Dense Nested Attention Network", TIP 2022). Detections are told apart by their index, so one that
found nothing counts in Fa whatever its area.

Two rules say which detection finds which target, and every result names the rule:

* `nearest`: all pairs closer than the distance, nearest first (ties: first target, then first detection, in raster
  order), each used if both are still free.
* `legacy`: for each target in raster order, the first free detection in raster order that is close enough, even if a
  nearer one exists. Published figures of the field come from this rule.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np

from fewlabel.core.errors import RecipeError
from fewlabel.core.masks import components
from fewlabel.metrics.pairs import check_pair

Matching = Literal["nearest", "legacy"]
DISTANCE = 3.0  # pixels
_DECIMALS = 9  # distances equal on paper must be equal here too: float64 centroids differ by about 1e-13 px


class TargetScores(TypedDict):
    """Pd in percent and Fa in false pixels per million (NaN where undefined), the rule, and what was counted."""

    Pd: float
    Fa: float
    matching: str
    images: int
    targets: int


@dataclass(frozen=True)
class TargetCounts:
    """What one or more images add up to.

    Attributes:
        targets: True components.
        found: True components that a detection was matched to.
        false_pixels: Pixels of detections that were matched to no target.
        pixels: All pixels.
        images: Images.
    """

    targets: int = 0
    found: int = 0
    false_pixels: int = 0
    pixels: int = 0
    images: int = 0

    def __add__(self, other: "TargetCounts") -> "TargetCounts":
        return TargetCounts(
            self.targets + other.targets,
            self.found + other.found,
            self.false_pixels + other.false_pixels,
            self.pixels + other.pixels,
            self.images + other.images,
        )


def check_matching(matching: str) -> None:
    """Refuse a matching rule that does not exist.

    Raises:
        RecipeError: `matching` is neither `nearest` nor `legacy`.
    """
    if matching not in get_args(Matching):
        raise RecipeError(f"Target matching {matching!r} is not known; choose one of {', '.join(get_args(Matching))}.")


def centroids(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and areas of labelled components.

    Args:
        labels: int32 `(H, W)`, 0 = background, components 1..`count`.
        count: Number of components N.

    Returns:
        float64 `(N, 2)` mean row and column of each component's pixels, and int64 `(N,)` areas in pixels.
    """
    rows, columns = np.nonzero(labels)
    index = labels[rows, columns] - 1
    areas = np.bincount(index, minlength=count)
    sums = np.stack([np.bincount(index, weights=axis, minlength=count) for axis in (rows, columns)], axis=1)
    return sums / areas[:, None], areas.astype(np.int64)


def match(
    targets: np.ndarray, detections: np.ndarray, matching: Matching = "nearest", distance: float = DISTANCE
) -> list[tuple[int, int]]:
    """Match targets to detections one to one.

    Args:
        targets: float64 `(T, 2)` centroids, in raster order.
        detections: float64 `(D, 2)` centroids, in raster order.
        matching: The rule; see the module's text.
        distance: Pixels; centroids must be strictly closer than this.

    Returns:
        Pairs of a target's and a detection's index.

    Raises:
        RecipeError: `matching` is not a known rule.
    """
    check_matching(matching)
    candidates: list[tuple[float, int, int]] = []
    for target, centre in enumerate(targets):  # a row at a time: a bad model's thousands of detections stay small
        gaps = np.round(np.hypot(*(detections - centre).T), _DECIMALS)
        candidates += [(float(gaps[found]), target, int(found)) for found in np.flatnonzero(gaps < distance)]
    if matching == "nearest":
        candidates.sort()
    pairs: list[tuple[int, int]] = []
    used_targets: set[int] = set()
    used_detections: set[int] = set()
    for _, target, detection in candidates:
        if target not in used_targets and detection not in used_detections:
            pairs.append((target, detection))
            used_targets.add(target)
            used_detections.add(detection)
    return pairs


def target_update(
    prediction: np.ndarray, target: np.ndarray, matching: Matching = "nearest", distance: float = DISTANCE
) -> TargetCounts:
    """Count the targets, those found, and the false pixels of one image.

    Args:
        prediction: bool `(H, W)`.
        target: bool `(H, W)`.
        matching: `nearest` or `legacy`.
        distance: Pixels; centroids must be strictly closer than this.

    Returns:
        The counts.

    Raises:
        DataError: The masks are not bool `(H, W)` of one size.
        RecipeError: `matching` is not a known rule.
    """
    check_pair(prediction, target)
    target_centres, _ = centroids(*components(target))
    detection_centres, areas = centroids(*components(prediction))
    pairs = match(target_centres, detection_centres, matching, distance)
    hits = [detection for _, detection in pairs]
    return TargetCounts(
        targets=len(target_centres),
        found=len(pairs),
        false_pixels=int(areas.sum() - areas[hits].sum()),
        pixels=prediction.size,
        images=1,
    )


def target_compute(counts: TargetCounts, matching: Matching) -> TargetScores:
    """Turn counts into Pd and Fa.

    Args:
        counts: The sum over images.
        matching: The rule that gave them.

    Returns:
        The scores. Pd is NaN without targets, Fa without images.
    """
    return {
        "Pd": 100.0 * counts.found / counts.targets if counts.targets else math.nan,
        "Fa": 1e6 * counts.false_pixels / counts.pixels if counts.pixels else math.nan,
        "matching": matching,
        "images": counts.images,
        "targets": counts.targets,
    }


class TargetMetric:
    """Pd and Fa over a stream of images."""

    def __init__(self, matching: Matching = "nearest", distance: float = DISTANCE) -> None:
        """Start from nothing.

        Args:
            matching: `nearest` or `legacy`.
            distance: Pixels; centroids must be strictly closer than this.

        Raises:
            RecipeError: `matching` is not a known rule.
        """
        check_matching(matching)
        self.matching: Matching = matching
        self.distance = distance
        self.counts = TargetCounts()

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one image.

        Args:
            prediction: bool `(H, W)`.
            target: bool `(H, W)`.

        Raises:
            DataError: The masks are not bool `(H, W)` of one size.
        """
        self.counts += target_update(prediction, target, self.matching, self.distance)

    def compute(self) -> TargetScores:
        """The scores of all images so far; see `target_compute`."""
        return target_compute(self.counts, self.matching)
