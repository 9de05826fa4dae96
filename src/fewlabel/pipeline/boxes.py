"""How good students that give boxes are, and from which score on their boxes count."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fewlabel.core.files import write_json
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore
from fewlabel.metrics.boxes import BoxMetric
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.predict import Detections, detect
from fewlabel.students.detector.threshold import OperatingPoint, choose_threshold

THRESHOLD_FILE = "threshold.json"  # beside the weights of a student that gives boxes


def boxed_pairs(dataset: Dataset, ids: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standardised images float32 `(H, W)` with the true boxes `(N, 4)` xyxy, read one at a time."""
    for id in ids:
        sample = dataset.labelled(id)
        yield sample.image.normalised(), sample.instances.boxes


def detections(
    student: Detector, pairs: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[Detections, np.ndarray]]:
    """What a detector gives for each image of `boxed_pairs`, whatever the scores, with the true boxes."""
    for image, true in pairs:
        yield detect(student, image), true


def score_boxes(pairs: Iterable[tuple[Detections, np.ndarray]], threshold: float) -> dict[str, Any]:
    """Score boxes against the truth, in one pass.

    Args:
        pairs: Detections by falling score and true boxes of each image.
        threshold: The score above which a box counts for precision and recall; the other figures need none.

    Returns:
        What `fewlabel.metrics.boxes` and `OperatingPoint` give, and the threshold.
    """
    metric, point = BoxMetric(), OperatingPoint(threshold)
    for found, true in pairs:
        metric.update(found.boxes, found.scores, true)
        point.update(found, true)
    return {**metric.compute(), **point.compute(), "threshold": threshold}


class Validation:
    """The validation part of the labelled share, kept in memory for a detector's training."""

    def __init__(self, dataset: Dataset, split: Split) -> None:
        """Read the images and true boxes.

        Args:
            dataset: The data set.
            split: Names the images.
        """
        self.pairs = list(boxed_pairs(dataset, split.validation))

    def figures(self, student: nn.Module) -> dict[str, float]:
        """AP50, AP and AR50 for the log of a training; without true boxes there are none."""
        assert isinstance(student, Detector)  # no other student is trained with this
        scores = score_boxes(detections(student, self.pairs), 0.0)
        return {name: scores[name] for name in ("AP50", "AP", "AR50") if math.isfinite(scores[name])}

    def write_threshold(self, student: Detector, folder: Path) -> None:
        """Choose the threshold of a trained detector; writes threshold.json beside its weights."""
        chosen = choose_threshold(detections(student, self.pairs))
        write_json(folder / THRESHOLD_FILE, asdict(chosen))


def score_pseudo_boxes(dataset: Dataset, store: LabelStore, ids: Iterable[str]) -> dict[str, Any]:
    """Score the boxes of accepted pseudo-labels against the truth of the same images; all of them count."""

    def pairs() -> Iterator[tuple[Detections, np.ndarray]]:
        for id in ids:
            accepted = store.get(id).accepted
            order = np.argsort(-accepted.scores, kind="stable")
            yield Detections(accepted.boxes[order], accepted.scores[order]), dataset.labelled(id).instances.boxes

    return score_boxes(pairs(), -1.0)
