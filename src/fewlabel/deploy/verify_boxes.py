"""Proof that an exported detector gives the boxes of the trained network, on images that it will meet."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import ExportError
from fewlabel.deploy.export import frozen_copy
from fewlabel.deploy.runtime import OnnxStudent
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.predict import Detections, detect, detect_by

PIXELS, SCORE = 0.05, 1e-4  # thirty times what sums of another order have moved a box's edge, twenty times its score


@dataclass(frozen=True)
class BoxParityReport:
    """How far an exported detector is from the network it came from.

    Compared is every box that either side counts, and the surest of each image whatever its score, with the nearest box
    of the other side.

    Attributes:
        images: Images compared.
        compared: Boxes compared, those of both sides.
        boxes: Boxes that PyTorch counts; none would mean that only the surest of each image were compared.
        threshold: Score above which a box counts.
        tolerance_pixels: Greatest distance of two edges allowed.
        tolerance_score: Greatest difference of two scores allowed.
        max_pixels: Greatest distance of an edge from its partner's; infinite where a side gives nothing.
        max_score: Greatest difference of the scores of two partners; infinite where a side gives nothing.
        differing_boxes: Boxes that one side counts though the other does not count their partner.
    """

    images: int
    compared: int
    boxes: int
    threshold: float
    tolerance_pixels: float
    tolerance_score: float
    max_pixels: float
    max_score: float
    differing_boxes: int

    @property
    def passed(self) -> bool:
        """Every box has a partner within both tolerances; false for NaN."""
        return self.max_pixels <= self.tolerance_pixels and self.max_score <= self.tolerance_score

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.images} images compared with PyTorch: edges of {self.compared} boxes differ by up to"
            f" {self.max_pixels:.1e} pixels (allowed {self.tolerance_pixels:g}), scores by up to {self.max_score:.1e}"
            f" (allowed {self.tolerance_score:g}), {self.differing_boxes} boxes count on one side alone"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields and `passed` as a JSON value; differences that are not finite become None."""
        figures = {"max_pixels": self.max_pixels, "max_score": self.max_score}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return {**asdict(self), **finite, "passed": self.passed}


def verify_boxes(
    onnx_path: Path, model: Detector, images: Sequence[np.ndarray], *, report_only: bool = False
) -> BoxParityReport:
    """Run images through ONNX Runtime and PyTorch and compare the boxes.

    Args:
        onnx_path: The exported detector.
        model: The network it came from; left as it is.
        images: float32 `(H, W)` standardised, of any sizes; take real ones, and sizes that need padding among them.
        report_only: Return a report that did not pass instead of raising.

    Returns:
        The report.

    Raises:
        ExportError: No images were given, or the report did not pass.
        ModelError: `onnx_path` cannot be loaded, or is no detector on frames of the network's size.
    """
    if len(images) == 0:
        raise ExportError(f"No image was given to compare {onnx_path} with its network; give some of the test images.")
    student, network = OnnxStudent(onnx_path), frozen_copy(model)
    assert isinstance(network, Detector)  # a copy of one
    threshold = student.info.threshold
    pixels = score = 0.0
    compared = boxes = differing = 0
    for image in images:
        expected = detect(network, image)
        got = detect_by(student.candidates, network.frame, image)
        boxes += int((expected.scores > threshold).sum())
        for ours, theirs in ((expected, got), (got, expected)):
            if not len(ours.boxes) or not len(theirs.boxes):
                pixels = score = math.inf
                continue
            for number in range(max(int((ours.scores > threshold).sum()), 1)):  # by falling score
                edge, sure, place = _nearest(ours, number, theirs)
                pixels, score, compared = max(pixels, edge), max(score, sure), compared + 1
                differing += int((ours.scores[number] > threshold) and not theirs.scores[place] > threshold)
    report = BoxParityReport(
        images=len(images),
        compared=compared,
        boxes=boxes,
        threshold=threshold,
        tolerance_pixels=PIXELS,
        tolerance_score=SCORE,
        max_pixels=pixels,
        max_score=score,
        differing_boxes=differing,
    )
    if not report.passed and not report_only:
        raise ExportError(
            f"{onnx_path} does not reproduce its network ({report.summary()}); export again from the weights that were"
            " evaluated."
        )
    return report


def _nearest(ours: Detections, number: int, theirs: Detections) -> tuple[float, float, int]:
    """Of all boxes of the other side the nearest to one: distance of the farthest edge, of the score, and its index."""
    edges = np.abs(theirs.boxes - ours.boxes[number]).max(1)
    scores = np.abs(theirs.scores - ours.scores[number])
    place = int(np.maximum(edges / PIXELS, scores / SCORE).argmin())
    return float(edges[place]), float(scores[place]), place
