"""Suppression of duplicates: of masks that cover the same thing, the one with the highest score stays."""

from collections.abc import Sequence

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from fewlabel.core.masks import Rle


def box_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box `(4,)` with others `(N, 4)`, xyxy pixel edges: float64 `(N,)`, 0 where both have no area."""
    overlap = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None)
    shared = overlap.astype(np.float64).prod(axis=1)
    both = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.divide(shared, both, out=np.zeros(len(others)), where=both > 0)


def suppress_boxes(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression by the IoU of boxes.

    Args:
        boxes: float `(N, 4)` xyxy pixel edges.
        scores: `(N,)`; the earlier of two equal ones comes first.
        threshold: A box goes when its IoU with one that stays is larger.

    Returns:
        int64 indices of those that stay, by falling score.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(order):
        first, order = int(order[0]), order[1:]
        kept.append(first)
        order = order[box_iou(boxes[first], boxes[order]) <= threshold]
    return np.array(kept, np.int64)


def suppress_masks(rles: Sequence[Rle], boxes: np.ndarray, scores: np.ndarray, threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression by the IoU of masks, computed on their run-length codes.

    Memory grows with the masks that stay, not with pairs; masks whose boxes do not touch are never compared.

    Args:
        rles: N masks of one image.
        boxes: float `(N, 4)` xyxy pixel edges of the masks.
        scores: `(N,)`; the earlier of two equal ones comes first.
        threshold: A mask goes when its IoU with one that stays is larger.

    Returns:
        int64 indices of those that stay, by falling score.
    """
    kept: list[int] = []
    for index in np.argsort(-np.asarray(scores), kind="stable"):
        near = [kept[i] for i in np.flatnonzero(box_iou(boxes[index], boxes[kept]) > 0)]
        if near and coco.iou([rles[index]], [rles[i] for i in near], [0] * len(near)).max() > threshold:
            continue
        kept.append(int(index))
    return np.array(kept, np.int64)
