"""An exported student: its file's metadata and how it is run by ONNX Runtime.

Everything that prediction needs is in the file: the network, how images are prepared, the threshold and the class
names. Keys begin with `fewlabel.` and hold JSON values.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fewlabel.core.errors import ModelError
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD

PREFIX = "fewlabel."
RADIOMETRY = "radiometry"  # `preprocessing.name` of a model whose data have another policy than the standard one
INPUT, OUTPUT, BOXES = "image", "logits", "boxes"
DETECTION = "detection"  # `fewlabel.task` of a student that gives boxes; one that gives masks has no such entry
PREPROCESSING: dict[str, Any] = {
    "name": "standardise",
    "channel": "grey in the file's own units; three channels: 0.299 R + 0.587 G + 0.114 B; otherwise their mean",
    "statistics": "mean and population standard deviation of each whole image",
    "formula": "(x - mean) / std; zeros where std <= 1e-6 * max|x|",
    "layout": "float32 (batch, 1, height, width), any height and width",
}


def preparation(radiometry: Radiometry, frame: int | None) -> dict[str, Any]:
    """How images are prepared: `PREPROCESSING`, in other words for another radiometry and for detectors.

    Args:
        radiometry: The data set's policy.
        frame: Side in pixels of a detector's frames; None for a student that gives masks.
    """
    said = dict(PREPROCESSING)
    if radiometry != STANDARD:
        recorded = radiometry.model_dump(mode="json", exclude_none=True)
        said = {
            "name": RADIOMETRY,
            "channel": said["channel"],
            "radiometry": recorded,
            "formula": "that of fewlabel.core.radiometry.apply for these values, over each whole image",
            "layout": said["layout"],
        }
    if frame is not None:
        said["layout"] = (
            f"float32 (batch, 1, {frame}, {frame}): frames of the standardised image that overlap by a quarter or"
            " more; an image smaller than one is continued by reflection at its bottom and right"
        )
    return said


def detector_postprocessing(frame: int) -> dict[str, Any]:
    """What becomes of a detector's outputs: the rule of `fewlabel.students.detector.predict.detect_by` in words."""
    from fewlabel.students.detector.predict import MARGIN, MOST, OVERLAP, SAME

    return {
        BOXES: "float32 (batch, candidates, 4): x0, y0, x1, y1 in pixel edges of the frame",
        OUTPUT: "float32 (batch, candidates); the score is 1 / (1 + exp(-logit))",
        "inner borders": f"drop boxes whose centre is within {MARGIN * (frame // OVERLAP):g} pixels of a frame's border"
        " that is not the image's",
        "duplicates": f"of two boxes with an IoU above {SAME:g} the one with the higher score stays",
        "most": MOST,
    }


@dataclass(frozen=True)
class ModelInfo:
    """What an exported student says about itself.

    Attributes:
        name: Name of the model.
        student: Name of its architecture.
        threshold: Probability above which a pixel belongs to a target, or score above which a box counts, in (0, 1).
        classes: Class names; a binary student has one.
        version: Version of fewlabel that wrote the file.
        weights_sha256: Hash of the network's weights, as `fewlabel.training.checkpoint.weights_sha256` computes it.
        preprocessing: How images are prepared; `PREPROCESSING`.
        extra: Further values that were recorded at export, by name.
        frame: Side in pixels of the frames of a detector, a student that gives boxes; None for one that gives masks.
    """

    name: str
    student: str
    threshold: float
    classes: tuple[str, ...]
    version: str
    weights_sha256: str
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    extra: Mapping[str, Any] = field(default_factory=dict)
    frame: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ModelError(
                f"The threshold of {self.name!r} is {self.threshold}, expected a probability above 0 and"
                " below 1; correct it."
            )
        if len(self.classes) != 1:
            raise ModelError(
                f"{self.name!r} names the classes {list(self.classes)}, expected one; its masks are binary."
            )
        if self.frame is not None and self.frame < 1:
            raise ModelError(
                f"The frames of {self.name!r} are {self.frame} pixels wide, expected 1 or more; correct it."
            )

    @property
    def radiometry(self) -> Radiometry:
        """How grey values become the network's input."""
        if self.preprocessing["name"] == PREPROCESSING["name"]:
            return STANDARD
        return Radiometry.model_validate(self.preprocessing["radiometry"])

    @property
    def cut(self) -> float:
        """The threshold as a logit: pixels whose logit is greater belong to a target."""
        return math.log(self.threshold / (1.0 - self.threshold))

    def to_properties(self) -> dict[str, str]:
        """The metadata entries of an ONNX file, each a JSON text under a `fewlabel.` key."""
        values = {
            "name": self.name,
            "student": self.student,
            "threshold": self.threshold,
            "classes": list(self.classes),
            "version": self.version,
            "weights_sha256": self.weights_sha256,
            "preprocessing": dict(self.preprocessing),
            "extra": dict(self.extra),
        }
        if self.frame is not None:
            values |= {"task": DETECTION, "frame": self.frame, "postprocessing": detector_postprocessing(self.frame)}
        return {PREFIX + key: json.dumps(value, sort_keys=True) for key, value in values.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], path: Path) -> "ModelInfo":
        """Read the metadata entries of an ONNX file.

        Args:
            properties: Texts by key.
            path: The file, for messages.

        Returns:
            The parsed values.

        Raises:
            ModelError: A key is missing or damaged, or the preprocessing is one that this version does not know.
        """
        try:
            present = {key for key in cls.__dataclass_fields__ if key != "frame" or PREFIX + key in properties}
            values = {key: json.loads(properties[PREFIX + key]) for key in present}
            if "frame" in values:
                values["frame"] = int(values["frame"])
            values["classes"] = tuple(values["classes"])
            values["threshold"] = float(values["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} does not hold fewlabel's metadata ({type(error).__name__}: {error}); give a model that"
                " `fewlabel export` wrote."
            ) from None
        name = values["preprocessing"].get("name") if isinstance(values["preprocessing"], dict) else None
        try:
            known = name == PREPROCESSING["name"] or (name == RADIOMETRY and bool(cls(**values).radiometry))
        except (KeyError, ValidationError):
            known = False
        if not known:
            raise ModelError(
                f"{path} wants the preprocessing {name!r}, this version knows {PREPROCESSING['name']!r}; use the"
                f" version of fewlabel that wrote it, {values['version']}."
            )
        return cls(**values)


class OnnxStudent:
    """A student that ONNX Runtime executes on the CPU."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load an exported student.

        Args:
            path: The `.onnx` file.
            threads: Threads that one image may use, 1 or more.

        Raises:
            ModelError: The file is missing, damaged, or was not written by fewlabel; or `threads` is below 1.
        """
        import onnxruntime

        if threads < 1:
            raise ModelError(f"{threads} threads were asked for to run {path}, expected 1 or more; raise the number.")
        if not path.is_file():
            raise ModelError(f"{path} is not a file, expected an exported .onnx model; check the path.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors alone; they also reach us as exceptions
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes are private
            reason = str(error).splitlines()[0][:200]
            raise ModelError(f"{path} cannot be loaded by ONNX Runtime ({reason}); export the student again.") from None
        self.path = path
        self.info = ModelInfo.from_properties(self._session.get_modelmeta().custom_metadata_map, path)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Run the network.

        Args:
            images: float32 `(B, 1, H, W)` standardised, any B, H, W of 1 or more.

        Returns:
            Logits, float32 `(B, 1, H, W)`.

        Raises:
            ModelError: The input is not of this kind.
        """
        if self.info.frame is not None:
            raise ModelError(f"{self.path} is a detector, expected a model that gives masks; predict boxes with it.")
        if images.ndim != 4 or images.shape[1] != 1 or images.dtype != np.float32:
            raise ModelError(
                f"{self.path} was given {images.dtype} {images.shape}, expected float32 (batch, 1, height, width);"
                " standardise the grey image and add the axes."
            )
        result: np.ndarray = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        return result

    @property
    def frame(self) -> int:
        """Side in pixels of a detector's frames.

        Raises:
            ModelError: The model is no detector.
        """
        if self.info.frame is None:
            raise ModelError(f"{self.path} gives masks, expected a detector; predict masks with it.")
        return self.info.frame

    def candidates(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the network of a detector.

        Args:
            frames: float32 `(B, 1, F, F)`, frames of standardised images.

        Returns:
            Boxes float32 `(B, Q, 4)`, xyxy in pixel edges of the frame, and scores float32 `(B, Q)` in [0, 1].

        Raises:
            ModelError: The model is no detector, or the input is not of this kind.
        """
        side = self.frame
        if frames.ndim != 4 or frames.shape[1:] != (1, side, side) or frames.dtype != np.float32:
            raise ModelError(
                f"{self.path} was given {frames.dtype} {frames.shape}, expected float32 (batch, 1, {side}, {side}); cut"
                " frames out of the standardised image."
            )
        boxes, logits = self._session.run([BOXES, OUTPUT], {INPUT: np.ascontiguousarray(frames)})
        return boxes, sigmoid(logits)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, float32 of the same shape; no overflow for logits of any size."""
    return (0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
