"""Objects painted into one map of numbers, for formats in which a pixel belongs to one object."""

from __future__ import annotations

from collections import Counter

import numpy as np

from fewlabel.core.masks import decode
from fewlabel.core.types import Instances

COVERED_PARTLY = "objects that a smaller one covers in part"
COVERED_WHOLLY = "objects that smaller ones cover wholly"
EMPTY = "objects without a pixel"


def paint(instances: Instances, lost: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paint objects over each other, the largest first, so that small ones stay whole.

    Args:
        instances: N objects.
        lost: Counts what cannot be seen in the map; added to.

    Returns:
        Map int32 (H, W) of 1..M, 0 = background, and the objects int64 (M,), as indexes into ``instances``, that the
        numbers stand for: those of which anything can be seen, in their order.
    """
    areas = instances.areas()
    owner = np.zeros(instances.size, np.int32)
    for index in np.argsort(-areas, kind="stable"):
        owner[decode(instances.rles[index])] = index + 1
    visible = np.bincount(owner.ravel(), minlength=len(instances) + 1)[1:]
    seen = np.flatnonzero(visible)
    for what, count in (
        (COVERED_PARTLY, ((visible > 0) & (visible < areas)).sum()),
        (COVERED_WHOLLY, ((visible == 0) & (areas > 0)).sum()),
        (EMPTY, (areas == 0).sum()),
    ):
        if count:
            lost[what] += int(count)
    number = np.zeros(len(instances) + 1, np.int32)
    number[seen + 1] = np.arange(1, len(seen) + 1)
    return number[owner], seen


def class_map(numbers: np.ndarray, classes: np.ndarray, ignored: Instances | None, mark: int) -> np.ndarray:
    """The class indexes that belong to a map of `paint`.

    Args:
        numbers: int32 (H, W) of 1..M, 0 = background.
        classes: int64 (M,), class of each number, counted from 0.
        ignored: Regions to mark where there is no object, or None.
        mark: What marks them.

    Returns:
        uint8 (H, W): 0 = background, class + 1, or ``mark``.
    """
    indexes = np.concatenate([[0], classes + 1]).astype(np.uint8)[numbers]
    if ignored is not None:
        indexes[ignored.semantic() & (numbers == 0)] = mark
    return indexes
