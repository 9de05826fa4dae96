"""From which score on a detector's box counts: chosen on held-out images, and what it gives on others."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fewlabel.core.suppress import box_iou
from fewlabel.students.detector.predict import Detections

FOUND = 0.5  # IoU from which a box finds a target, as in AP50
UNKNOWN = 0.5  # the threshold where nothing can be chosen


@dataclass(frozen=True)
class Threshold:
    """The score above which a box counts, and what it was chosen on.

    Attributes:
        value: in (0, 1).
        F1: percent on the images that it was chosen on; None where nothing was found or there was nothing to find, and
            the value is `UNKNOWN`.
        images: how many these were.
        targets: true boxes in them.
    """

    value: float
    F1: float | None
    images: int
    targets: int


def finds(found: Detections, true: np.ndarray) -> np.ndarray:
    """Which detections of an image find a target.

    By falling score each takes the free true box of largest IoU, if that reaches `FOUND`; the rule of COCO.

    Args:
        found: detections by falling score.
        true: (M, 4) xyxy.

    Returns:
        bool (N,).
    """
    free = np.ones(len(true), bool)
    hits = np.zeros(len(found.boxes), bool)
    for number, box in enumerate(found.boxes):
        overlap = np.where(free, box_iou(box, true), 0.0)
        if len(true) and overlap.max() >= FOUND:
            free[overlap.argmax()] = False
            hits[number] = True
    return hits


def choose_threshold(pairs: Iterable[tuple[Detections, np.ndarray]]) -> Threshold:
    """The threshold of the highest F1; of all that have it the middle of the widest range.

    A few images leave wide ranges of equal F1: their middle is farthest from the scores on either side.

    Args:
        pairs: detections by falling score and true boxes (M, 4) of images that the detector was not trained on.

    Returns:
        The threshold.
    """
    scores, hits, images, targets = [np.zeros(0, np.float32)], [np.zeros(0, bool)], 0, 0
    for found, true in pairs:
        scores.append(found.scores)
        hits.append(finds(found, true))
        images, targets = images + 1, targets + len(true)
    values = np.concatenate(scores).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    values, right = values[order], np.concatenate(hits)[order].cumsum()
    if not len(right) or not right[-1]:
        return Threshold(UNKNOWN, None, images, targets)
    f1 = 2 * right / (np.arange(len(right)) + 1 + targets)
    below = np.append(values[1:], 0.0)
    widths = values - below  # 0 between equal scores: no threshold parts them
    best = f1[widths > 0].max()
    place = int(np.where((widths > 0) & (f1 >= best - 1e-12), widths, -1.0).argmax())
    return Threshold(float((values[place] + below[place]) / 2), 100 * float(f1[place]), images, targets)


class OperatingPoint:
    """Precision and recall of the boxes above a threshold over a stream of images."""

    def __init__(self, threshold: float) -> None:
        """Start with no image.

        Args:
            threshold: the score above which a box counts.
        """
        self.threshold = threshold
        self._found = self._right = self._targets = 0

    def update(self, found: Detections, true: np.ndarray) -> None:
        """Add the detections of one image, by falling score, and its true boxes (M, 4)."""
        counted = found.scores > self.threshold
        self._found += int(counted.sum())
        self._right += int(finds(Detections(found.boxes[counted], found.scores[counted]), true).sum())
        self._targets += len(true)

    def compute(self) -> dict[str, float]:
        """`precision` (right ÷ counted boxes) and `recall` (found ÷ true boxes) in percent; NaN where nothing was."""
        return {
            "precision": 100 * self._right / self._found if self._found else float("nan"),
            "recall": 100 * self._right / self._targets if self._targets else float("nan"),
        }
