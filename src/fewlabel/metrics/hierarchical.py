"""hIoU: one figure for whether targets are found and how well their pixels are.

`hIoU = 100 * L * S` with `L = matched / (matched + missed + false)`, the intersection over union of the two sets of
targets, and `S` the mean pixel IoU of the matched pairs; so `hIoU = 100 * sum of IoU / (targets + detections -
matched)`. Components are 8-connected; all counts are summed over images first.

Source: Pang et al., "Rethinking Evaluation of Infrared Small Target Detection", NeurIPS 2025 (datasets and benchmarks).
Matching has their two steps, overlap first and distance where there is none, and their bounds, but each step is
optimal here: (1) all pairs with an IoU of at least one half, of which no component can have two; (2) among what is left
the most pairs closer than 3 pixels, and of those choices the least total distance. Their own code assigns all
components by least total distance and drops the pairs out of bounds afterwards, which can lose pairs within bounds.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy.optimize import linear_sum_assignment

from fewlabel.core.masks import components
from fewlabel.metrics.pairs import check_pair
from fewlabel.metrics.targets import DISTANCE, centroids

OVERLAP = 0.5  # IoU from which two components are the same whatever their distance
_DECIMALS = 9  # distances equal on paper must be equal here too: float64 centroids differ by about 1e-13 px


class HierarchicalScores(TypedDict):
    """hIoU and its factors in percent (NaN where undefined), and what was counted."""

    hIoU: float
    localisation: float
    segmentation: float
    images: int
    targets: int
    detections: int
    matched: int


@dataclass(frozen=True)
class HierarchicalCounts:
    """What one or more images add up to.

    Attributes:
        targets: True components.
        detections: Predicted components.
        matched: Pairs of the two.
        overlap: Sum of the pairs' IoU.
        images: Images.
    """

    targets: int = 0
    detections: int = 0
    matched: int = 0
    overlap: float = 0.0
    images: int = 0

    def __add__(self, other: "HierarchicalCounts") -> "HierarchicalCounts":
        return HierarchicalCounts(
            self.targets + other.targets,
            self.detections + other.detections,
            self.matched + other.matched,
            self.overlap + other.overlap,
            self.images + other.images,
        )


def overlaps(
    target_labels: np.ndarray, targets: int, detection_labels: np.ndarray, detections: int
) -> dict[tuple[int, int], float]:
    """IoU of all pairs of components that share a pixel.

    Args:
        target_labels: int `(H, W)`, 0 = background, components 1..`targets`.
        targets: Number of true components T.
        detection_labels: int `(H, W)`, likewise.
        detections: Number of predicted components D.

    Returns:
        (target, detection), both from 0 -> IoU in (0, 1].
    """
    areas = np.bincount(target_labels.ravel(), minlength=targets + 1)
    others = np.bincount(detection_labels.ravel(), minlength=detections + 1)
    shared = (target_labels > 0) & (detection_labels > 0)
    codes = target_labels[shared].astype(np.int64) * (detections + 1) + detection_labels[shared]
    found: dict[tuple[int, int], float] = {}
    for code, pixels in zip(*np.unique(codes, return_counts=True), strict=True):
        t, d = divmod(int(code), detections + 1)
        found[t - 1, d - 1] = int(pixels) / int(areas[t] + others[d] - pixels)
    return found


def assign(targets: np.ndarray, detections: np.ndarray, distance: float = DISTANCE) -> list[tuple[int, int]]:
    """The most one-to-one pairs closer than a distance, and among those choices the least total distance.

    Args:
        targets: float64 `(T, 2)` centroids.
        detections: float64 `(D, 2)` centroids.
        distance: Pixels; centroids must be strictly closer than this.

    Returns:
        Pairs of a target's and a detection's index, by target.
    """
    near = [
        (t, int(d), float(gap))
        for t, centre in enumerate(targets)  # a row at a time: a bad model's thousands of detections stay small
        for gaps in [np.round(np.hypot(*(detections - centre).T), _DECIMALS)]
        for d, gap in zip(np.flatnonzero(gaps < distance), gaps[gaps < distance], strict=True)
    ]
    rows, columns = sorted({t for t, _, _ in near}), sorted({d for _, d, _ in near})
    # One pair out of bounds costs more than all pairs within, so that their number counts first.
    forbidden = distance * (min(len(rows), len(columns)) + 1)
    cost = np.full((len(rows), len(columns)), forbidden)
    for t, d, gap in near:
        cost[rows.index(t), columns.index(d)] = gap
    chosen = zip(*linear_sum_assignment(cost), strict=True)
    return [(rows[i], columns[j]) for i, j in chosen if cost[i, j] < forbidden]


def hierarchical_update(prediction: np.ndarray, target: np.ndarray, distance: float = DISTANCE) -> HierarchicalCounts:
    """Match the components of one image and add up the pairs' IoU.

    Args:
        prediction: bool `(H, W)`.
        target: bool `(H, W)`.
        distance: Pixels; centroids of pairs without overlap must be strictly closer than this.

    Returns:
        The counts.

    Raises:
        DataError: The masks are not bool `(H, W)` of one size.
    """
    check_pair(prediction, target)
    (target_labels, targets), (labels, detections) = components(target), components(prediction)
    shared = overlaps(target_labels, targets, labels, detections)
    pairs = [pair for pair, overlap in shared.items() if overlap >= OVERLAP]
    free_targets = np.setdiff1d(np.arange(targets), [t for t, _ in pairs])
    free = np.setdiff1d(np.arange(detections), [d for _, d in pairs])
    centres, others = centroids(target_labels, targets)[0], centroids(labels, detections)[0]
    for t, d in assign(centres[free_targets], others[free], distance):
        pairs.append((int(free_targets[t]), int(free[d])))
    overlap = math.fsum(shared.get(pair, 0.0) for pair in pairs)
    return HierarchicalCounts(targets, detections, len(pairs), overlap, 1)


def hierarchical_compute(counts: HierarchicalCounts) -> HierarchicalScores:
    """Turn counts into hIoU.

    Args:
        counts: The sum over images.

    Returns:
        The scores. Without targets and detections hIoU and localisation are NaN; without pairs hIoU is 0 and
        segmentation NaN.
    """
    union = counts.targets + counts.detections - counts.matched
    return {
        "hIoU": 100.0 * counts.overlap / union if union else math.nan,
        "localisation": 100.0 * counts.matched / union if union else math.nan,
        "segmentation": 100.0 * counts.overlap / counts.matched if counts.matched else math.nan,
        "images": counts.images,
        "targets": counts.targets,
        "detections": counts.detections,
        "matched": counts.matched,
    }


class HierarchicalMetric:
    """HIoU over a stream of images."""

    def __init__(self, distance: float = DISTANCE) -> None:
        """Start from nothing.

        Args:
            distance: Pixels; centroids of pairs without overlap must be strictly closer than this.
        """
        self.distance = distance
        self.counts = HierarchicalCounts()

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one image; see `hierarchical_update` for arguments and errors."""
        self.counts += hierarchical_update(prediction, target, self.distance)

    def compute(self) -> HierarchicalScores:
        """The scores of all images so far; see `hierarchical_compute`."""
        return hierarchical_compute(self.counts)
