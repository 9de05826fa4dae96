"""All scores of a set of images in one pass."""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from fewlabel.metrics.hierarchical import HierarchicalMetric
from fewlabel.metrics.overlap import OverlapMetric
from fewlabel.metrics.sizes import SizeBin, SizeMetric
from fewlabel.metrics.targets import Matching, TargetMetric


class Scores(TypedDict):
    """IoU, nIoU, Pd and hIoU in percent, Fa in false pixels per million, the matching rule, and what was counted.

    hIoU has a matching of its own, see `fewlabel.metrics.hierarchical`.
    """

    IoU: float
    nIoU: float
    Pd: float
    Fa: float
    hIoU: float
    Pd_by_area: list[SizeBin]
    matching: str
    images: int
    targets: int
    empty_images: int


def evaluate(pairs: Iterable[tuple[np.ndarray, np.ndarray]], matching: Matching = "nearest") -> Scores:
    """Score predictions against the truth.

    Args:
        pairs: Predicted and true mask of each image, bool `(H, W)`; read once, one pair at a time.
        matching: `nearest` or `legacy`; see `fewlabel.metrics.targets`.

    Returns:
        The scores; one that has nothing to be computed from is NaN, and the counts say why. `empty_images` are those
        with neither a true nor a predicted pixel, which nIoU counts as right.

    Raises:
        DataError: A pair is not two bool masks `(H, W)` of one size.
        RecipeError: `matching` is not a known rule.
    """
    overlap, detection = OverlapMetric(), TargetMetric(matching)
    hierarchical, sizes = HierarchicalMetric(), SizeMetric(matching=matching)
    for prediction, target in pairs:
        for metric in (overlap, detection, hierarchical, sizes):
            metric.update(prediction, target)
    area, found = overlap.compute(), detection.compute()
    return {
        "IoU": area["IoU"],
        "nIoU": area["nIoU"],
        "Pd": found["Pd"],
        "Fa": found["Fa"],
        "hIoU": hierarchical.compute()["hIoU"],
        "Pd_by_area": sizes.compute(),
        "matching": found["matching"],
        "images": area["images"],
        "targets": found["targets"],
        "empty_images": area["empty_images"],
    }
