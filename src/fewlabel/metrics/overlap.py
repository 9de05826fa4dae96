"""Overlap of predicted and true masks: IoU over all pixels, and nIoU, its mean per image.

Both follow Dai et al., "Asymmetric Contextual Modulation for Infrared Small Target Detection" (ACM, WACV 2021):
`IoU = 100 * sum_i |P_i & T_i| / sum_i |P_i | T_i|` and `nIoU = 100 * mean_i |P_i & T_i| / |P_i | T_i|`.

The definition leaves open an image whose prediction and truth are both empty (0 / 0). It is counted as fully right, 1,
because nothing was to be found and nothing was. ACM's code scores it 0; every image of NUAA-SIRST and NUDT-SIRST
holds a target, so the two agree there. The number of such images is reported beside the scores.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from fewlabel.metrics.pairs import check_pair


class OverlapScores(TypedDict):
    """IoU and nIoU in percent (NaN where undefined), the images counted, and those with no pixel in either mask."""

    IoU: float
    nIoU: float
    images: int
    empty_images: int


def overlap_update(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Count the pixels of intersection and union of one image.

    Args:
        prediction: bool `(H, W)`.
        target: bool `(H, W)`.

    Returns:
        Intersection and union in pixels.

    Raises:
        DataError: The masks are not bool `(H, W)` of one size.
    """
    check_pair(prediction, target)
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def overlap_compute(intersections: Sequence[int], unions: Sequence[int]) -> OverlapScores:
    """Turn the counts of N images into IoU and nIoU.

    Args:
        intersections: N pixel counts, one per image.
        unions: N pixel counts, one per image.

    Returns:
        The scores. nIoU is NaN without images; IoU is NaN when no image holds a true or predicted pixel.
    """
    inter, union = np.asarray(intersections, dtype=np.int64), np.asarray(unions, dtype=np.int64)
    empty = union == 0
    per_image = np.where(empty, 1.0, inter / np.maximum(union, 1))
    return {
        "IoU": 100.0 * int(inter.sum()) / int(union.sum()) if union.any() else math.nan,
        "nIoU": 100.0 * float(per_image.mean()) if len(union) else math.nan,
        "images": len(union),
        "empty_images": int(empty.sum()),
    }


class OverlapMetric:
    """IoU and nIoU over a stream of images; holds two integers per image."""

    def __init__(self) -> None:
        self._intersections: list[int] = []
        self._unions: list[int] = []

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one image.

        Args:
            prediction: bool `(H, W)`.
            target: bool `(H, W)`.

        Raises:
            DataError: The masks are not bool `(H, W)` of one size.
        """
        intersection, union = overlap_update(prediction, target)
        self._intersections.append(intersection)
        self._unions.append(union)

    def compute(self) -> OverlapScores:
        """The scores of all images so far; see `overlap_compute`."""
        return overlap_compute(self._intersections, self._unions)
