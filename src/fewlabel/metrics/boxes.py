"""Average precision of boxes by COCO's rules, for one class.

Detections are taken by falling score, at most 100 an image; each finds the free true box of largest IoU, if that
reaches the threshold. AP is the mean, over 101 equally spaced recalls, of the best precision at that recall or a higher
one (Lin et al., "Microsoft COCO", ECCV 2014, and its evaluation code). The box of a target of 3 x 3 pixels that is
shifted by one pixel has an IoU of one half, so AP50 asks for about a pixel there and AP for far less than one.

Only COCO's area range "all" is used. All infrared small targets are "small" by its rule (below 32 x 32 pixels), but its
figure for "small" forgives false detections that are larger than that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from fewlabel.core.errors import DataError


class BoxScores(TypedDict):
    """AP and AR in percent (NaN without true boxes), and what was counted.

    `AP50` and `AR50` are at an IoU of 0.5, `AP` and `AR` the means over 0.50, 0.55, ... 0.95. AR is the share of true
    boxes that the (at most 100) detections of an image find, whatever their scores. `detections` counts all that were
    given.
    """

    AP50: float
    AP: float
    AR50: float
    AR: float
    images: int
    boxes: int
    detections: int


@dataclass(frozen=True)
class BoxPair:
    """One image: `predicted` float64 (N, 4) xyxy, `scores` float64 (N,) and `true` float64 (M, 4) xyxy."""

    predicted: np.ndarray
    scores: np.ndarray
    true: np.ndarray


def box_update(predicted: np.ndarray, scores: np.ndarray, true: np.ndarray) -> BoxPair:
    """Check the boxes of one image.

    Args:
        predicted: `(N, 4)` x0, y0, x1, y1 in pixels, real numbers.
        scores: `(N,)`; higher means surer. Of equal ones the first given comes first.
        true: `(M, 4)` likewise.

    Returns:
        Copies in float64.

    Raises:
        DataError: A shape is another, a number is not finite, or a box ends before it begins.
    """
    sides = {"predicted": np.array(predicted, np.float64), "true": np.array(true, np.float64)}
    for name, boxes in sides.items():
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(
                f"The {name} boxes have shape {boxes.shape}, expected (N, 4); pass an empty (0, 4) for none."
            )
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise DataError(
                f"The {name} boxes hold one that is not finite or ends before it begins; give x0, y0, x1, y1."
            )
    values = np.array(scores, np.float64)
    if values.shape != sides["predicted"].shape[:1] or not np.isfinite(values).all():
        raise DataError(
            f"There are scores of shape {values.shape} for {len(sides['predicted'])} predicted boxes, expected one"
            " finite number each; give the box's confidence."
        )
    return BoxPair(sides["predicted"], values, sides["true"])


def box_compute(pairs: Sequence[BoxPair]) -> BoxScores:
    """Average precision and recall of a set of images.

    Args:
        pairs: One per image, as `box_update` gives them.

    Returns:
        The scores.
    """
    ap = ar = np.full(1, math.nan)
    if any(len(pair.true) for pair in pairs):
        truth = _truth(pairs)
        evaluation = COCOeval_faster(truth, truth.loadRes(_detections(pairs)), iouType="bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        # Axes: threshold, recall, class, area range, most detections (1, 10, 100); recall has no second one.
        ap, ar = evaluation.eval["precision"][:, :, 0, 0, -1].mean(1), evaluation.eval["recall"][:, 0, 0, -1]
    return {
        "AP50": 100.0 * float(ap[0]),
        "AP": 100.0 * float(ap.mean()),
        "AR50": 100.0 * float(ar[0]),
        "AR": 100.0 * float(ar.mean()),
        "images": len(pairs),
        "boxes": sum(len(pair.true) for pair in pairs),
        "detections": sum(len(pair.predicted) for pair in pairs),
    }


def _xywh(box: np.ndarray) -> list[float]:
    """COCO's form of one box: corner, width and height."""
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def _truth(pairs: Sequence[BoxPair]) -> COCO:
    """The true boxes as a COCO data set of one category; identifiers start at 1, for 0 means "no match" in its code."""
    owned = [(number, box) for number, pair in enumerate(pairs, 1) for box in pair.true]
    annotations = [
        {
            "id": index,
            "image_id": number,
            "category_id": 1,
            "bbox": _xywh(box),
            "area": float((box[2:] - box[:2]).prod()),
            "iscrowd": 0,
        }
        for index, (number, box) in enumerate(owned, 1)
    ]
    images = [{"id": number} for number in range(1, len(pairs) + 1)]
    return COCO({"images": images, "categories": [{"id": 1, "name": "target"}], "annotations": annotations})


def _detections(pairs: Sequence[BoxPair]) -> list[dict[str, object]]:
    """The predicted boxes as COCO's list of results."""
    return [
        {"image_id": number, "category_id": 1, "bbox": _xywh(box), "score": float(score)}
        for number, pair in enumerate(pairs, 1)
        for box, score in zip(pair.predicted, pair.scores, strict=True)
    ]


class BoxMetric:
    """AP and AR over a stream of images; holds their boxes."""

    def __init__(self) -> None:
        self._pairs: list[BoxPair] = []

    def update(self, predicted: np.ndarray, scores: np.ndarray, true: np.ndarray) -> None:
        """Add one image; see `box_update` for arguments and errors."""
        self._pairs.append(box_update(predicted, scores, true))

    def compute(self) -> BoxScores:
        """The scores of all images so far; see `box_compute`."""
        return box_compute(self._pairs)
