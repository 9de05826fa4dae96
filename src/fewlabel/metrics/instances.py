"""Average precision of instance masks by COCO's rules, of their boundaries, and the quality of pseudo-labels.

Within a class, detections are taken by falling score, at most 100 an image; each finds the free true mask of largest
IoU, if that reaches the threshold. AP is the mean, over 101 equally spaced recalls, of the best precision at that
recall or a higher one (Lin et al., "Microsoft COCO", ECCV 2014, and its evaluation code). Boundary AP is the same with
the smaller of mask IoU and boundary IoU: that of the pixels of each mask within 2 % of the image's diagonal of its
border (Cheng et al., "Boundary IoU", CVPR 2021), which a large mask cannot raise by its inside.

Masks are held as run-length codes alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco

from fewlabel.core.errors import DataError
from fewlabel.core.rle import Rle
from fewlabel.core.types import Instances

FOUND = 0.5  # IoU from which a pseudo-label is right
DILATION = 0.02  # of the image's diagonal: the width of a boundary
IOU_50, IOU_75 = 0, 5  # places of the thresholds among 0.50, 0.55, ... 0.95


class ClassScores(TypedDict):
    """Scores of one class in percent, NaN without true objects of it, and its number of true objects."""

    AP: float
    AP50: float
    AP75: float
    AR: float
    boundary_AP: float
    instances: int


class InstanceScores(TypedDict):
    """AP and AR in percent, means over the classes with true objects; NaN where there are none.

    `AP` and `AR` are means over IoU thresholds 0.50, 0.55, ... 0.95; `AP50` and `AP75` are at one. `AP_small` is of
    objects of at most 32 x 32 pixels, `AP_large` of at least 96 x 96, `AP_medium` of those between; detections outside
    of the range that find none in it are forgiven. AR is the share of true objects that the (at most 100) detections of
    an image and class find, whatever their scores. `boundary_AP` and `boundary_AP50` are of the smaller of mask and
    boundary IoU. `by_class` is in the order of class ids. `instances` and `detections` count all, `ignored` counts the
    regions.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR: float
    boundary_AP: float
    boundary_AP50: float
    by_class: list[ClassScores]
    images: int
    instances: int
    ignored: int
    detections: int


class MaskQuality(TypedDict):
    """How good pseudo-labels are, in percent, whatever their classes.

    `iou` is the mean over predictions of the largest IoU with a true object, `precision` the share of predictions that
    find one at an IoU of 0.5, `recall` the share of true objects that are found; NaN where there is nothing to take the
    share of.
    """

    iou: float
    precision: float
    recall: float
    predictions: int
    instances: int


@dataclass(frozen=True)
class InstancePair:
    """One image: what was `predicted`, what is `true`, and the regions that are `ignored`, all of one size."""

    predicted: Instances
    true: Instances
    ignored: Instances


def instance_update(predicted: Instances, true: Instances, ignored: Instances | None = None) -> InstancePair:
    """Check the objects of one image.

    Args:
        predicted: with scores; higher means surer. Of equal ones the first given comes first.
        true: the true objects.
        ignored: regions where detections of their class are not wrong, COCO's crowds: a detection that finds no object
            is forgiven if the share of its pixels that lie in one reaches the IoU threshold.

    Returns:
        The three, as they are.

    Raises:
        DataError: Sizes differ, a score is not finite, or a mask of the true objects is empty.
    """
    pair = InstancePair(predicted, true, ignored if ignored is not None else Instances(size=true.size))
    sizes = {tuple(side.size) for side in (pair.predicted, pair.true, pair.ignored)}
    if len(sizes) != 1:
        raise DataError(f"Objects to compare are of images of the sizes {sorted(sizes)}; give masks of one image.")
    if not np.isfinite(predicted.scores).all():
        raise DataError("The scores of predicted objects hold one that is not finite; give each one's confidence.")
    if not true.areas().all():
        raise DataError("A true object has no pixel; leave out objects without a mask.")
    return pair


def instance_compute(pairs: Sequence[InstancePair], classes: int) -> InstanceScores:
    """Average precision and recall of a set of images.

    Args:
        pairs: one per image, as `instance_update` gives them.
        classes: K; class ids are 0 to K - 1.

    Returns:
        The scores.

    Raises:
        DataError: An object has a class id outside.
    """
    held = np.zeros(classes, np.int64)
    for pair in pairs:
        for side in (pair.predicted, pair.true, pair.ignored):
            if len(side) and not 0 <= side.classes.min() <= side.classes.max() < classes:
                raise DataError(
                    f"Objects have class ids {side.classes.min()} to {side.classes.max()}, expected 0 to {classes - 1};"
                    " give the number of classes of the data."
                )
        held += np.bincount(pair.true.classes, minlength=classes)
    # Axes: threshold, (recall,) class, area range (all, small, medium, large).
    precision, recall = np.full((10, 101, classes, 4), -1.0), np.full((10, classes, 4), -1.0)
    boundary = precision
    if held.any():
        precision, recall = _evaluate(pairs, classes, "segm")
        boundary, _ = _evaluate(pairs, classes, "boundary")
    return {
        "AP": _percent(precision[..., 0]),
        "AP50": _percent(precision[IOU_50, ..., 0]),
        "AP75": _percent(precision[IOU_75, ..., 0]),
        "AP_small": _percent(precision[..., 1]),
        "AP_medium": _percent(precision[..., 2]),
        "AP_large": _percent(precision[..., 3]),
        "AR": _percent(recall[..., 0]),
        "boundary_AP": _percent(boundary[..., 0]),
        "boundary_AP50": _percent(boundary[IOU_50, ..., 0]),
        "by_class": [
            {
                "AP": _percent(precision[:, :, kind, 0]),
                "AP50": _percent(precision[IOU_50, :, kind, 0]),
                "AP75": _percent(precision[IOU_75, :, kind, 0]),
                "AR": _percent(recall[:, kind, 0]),
                "boundary_AP": _percent(boundary[:, :, kind, 0]),
                "instances": int(held[kind]),
            }
            for kind in range(classes)
        ],
        "images": len(pairs),
        "instances": int(held.sum()),
        "ignored": sum(len(pair.ignored) for pair in pairs),
        "detections": sum(len(pair.predicted) for pair in pairs),
    }


def boundary(rle: Rle) -> Rle:
    """The boundary of a mask: its pixels from which a square of 2 % of the image's diagonal, to either side, leaves it.

    The image's border is a border of the mask too. The half side is rounded to whole pixels, at least one.

    Args:
        rle: code of a mask.

    Returns:
        Code of the boundary, of the same size.
    """
    code = coco.rleToBoundary(dict(rle), DILATION)
    return {"size": [int(side) for side in rle["size"]], "counts": code["counts"]}


def ious(predicted: Sequence[Rle], true: Sequence[Rle]) -> np.ndarray:
    """IoU of every predicted with every true mask, float64 `(N, M)`; all masks are of one image."""
    if not predicted or not true:
        return np.zeros((len(predicted), len(true)))
    return np.asarray(coco.iou(list(predicted), list(true), [0] * len(true)), np.float64)


def mask_quality(predicted: Instances, true: Instances) -> MaskQuality:
    """The quality of the pseudo-labels of one image whose objects are known; see `MaskQuality`.

    By falling score each prediction takes the free true object of largest IoU, if that reaches 0.5.

    Args:
        predicted: pseudo-labels.
        true: the true objects of the image.

    Returns:
        The figures.

    Raises:
        DataError: Sizes differ.
    """
    return quality_compute([quality_update(predicted, true)])


@dataclass(frozen=True)
class QualityCounts:
    """One image: best IoU of each prediction, float64 `(N,)`; how many found an object; how many objects there are."""

    best: np.ndarray
    found: int
    true: int


def quality_update(predicted: Instances, true: Instances) -> QualityCounts:
    """Compare the pseudo-labels of one image; see `mask_quality` for arguments and errors."""
    if tuple(predicted.size) != tuple(true.size):
        raise DataError(
            f"Pseudo-labels are of an image of {predicted.size[0]} x {predicted.size[1]} pixels and true objects of one"
            f" of {true.size[0]} x {true.size[1]}; give masks of one image."
        )
    overlap = ious(predicted.rles, true.rles)
    free = np.ones(len(true), bool)
    for row in overlap[np.argsort(-predicted.scores, kind="stable")]:
        open_to = np.where(free, row, 0.0)
        if open_to.max(initial=0.0) >= FOUND:
            free[open_to.argmax()] = False
    return QualityCounts(overlap.max(1, initial=0.0), int((~free).sum()), len(true))


def quality_compute(counts: Iterable[QualityCounts]) -> MaskQuality:
    """The quality over all pseudo-labels and all true objects of some images; see `MaskQuality`."""
    held = list(counts)
    best = np.concatenate([np.zeros(0), *(image.best for image in held)])
    found, true = sum(image.found for image in held), sum(image.true for image in held)
    return {
        "iou": 100.0 * float(best.mean()) if len(best) else math.nan,
        "precision": 100.0 * found / len(best) if len(best) else math.nan,
        "recall": 100.0 * found / true if true else math.nan,
        "predictions": len(best),
        "instances": true,
    }


class InstanceMetric:
    """AP and AR over a stream of images; holds their objects as run-length codes."""

    def __init__(self, classes: int) -> None:
        """Start with no image.

        Args:
            classes: K; class ids are 0 to K - 1.
        """
        self.classes = classes
        self._pairs: list[InstancePair] = []

    def update(self, predicted: Instances, true: Instances, ignored: Instances | None = None) -> None:
        """Add one image; see `instance_update` for arguments and errors."""
        self._pairs.append(instance_update(predicted, true, ignored))

    def compute(self) -> InstanceScores:
        """The scores of all images so far; see `instance_compute`."""
        return instance_compute(self._pairs, self.classes)


def _percent(values: np.ndarray) -> float:
    """The mean in percent of what COCO's code measured; it writes -1 for classes without true objects."""
    measured = values[values > -1]
    return 100.0 * float(measured.mean()) if len(measured) else math.nan


def _evaluate(pairs: Sequence[InstancePair], classes: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Precision (threshold, recall, class, area range) and recall without the second axis, for 100 detections."""
    truth = _truth(pairs, classes)
    evaluation = COCOeval_faster(
        truth, truth.loadRes(_detections(pairs)), iouType=kind, boundary_dilation_ratio=DILATION
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def _code(rle: Rle) -> dict[str, Any]:
    """A run-length code that COCO's code may write into."""
    return {"size": list(rle["size"]), "counts": rle["counts"]}


def _truth(pairs: Sequence[InstancePair], classes: int) -> COCO:
    """The true objects as a COCO data set; identifiers start at 1, for 0 means "no match" in its code."""
    annotations: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs, 1):
        for side, crowd in ((pair.true, 0), (pair.ignored, 1)):
            annotations += [
                {
                    "image_id": number,
                    "category_id": int(kind) + 1,
                    "segmentation": _code(rle),
                    "area": int(area),
                    "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                    "iscrowd": crowd,
                }
                for rle, kind, area, (x0, y0, x1, y1) in zip(
                    side.rles, side.classes, side.areas(), side.boxes, strict=True
                )
            ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    images = [
        {"id": number, "height": pair.true.size[0], "width": pair.true.size[1]} for number, pair in enumerate(pairs, 1)
    ]
    categories = [{"id": kind + 1, "name": str(kind)} for kind in range(classes)]
    return COCO({"images": images, "categories": categories, "annotations": annotations})


def _detections(pairs: Sequence[InstancePair]) -> list[dict[str, Any]]:
    """The predicted objects as COCO's list of results."""
    return [
        {"image_id": number, "category_id": int(kind) + 1, "segmentation": _code(rle), "score": float(score)}
        for number, pair in enumerate(pairs, 1)
        for rle, kind, score in zip(pair.predicted.rles, pair.predicted.classes, pair.predicted.scores, strict=True)
    ]
