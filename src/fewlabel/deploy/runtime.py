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

from fewlabel.core.errors import ModelError

PREFIX = "fewlabel."
INPUT, OUTPUT = "image", "logits"
PREPROCESSING: dict[str, Any] = {
    "name": "standardise",
    "channel": "grey in the file's own units; three channels: 0.299 R + 0.587 G + 0.114 B; otherwise their mean",
    "statistics": "mean and population standard deviation of each whole image",
    "formula": "(x - mean) / std; zeros where std <= 1e-6 * max|x|",
    "layout": "float32 (batch, 1, height, width), any height and width",
}


@dataclass(frozen=True)
class ModelInfo:
    """What an exported student says about itself.

    Attributes:
        name: Name of the model.
        student: Name of its architecture.
        threshold: Probability above which a pixel belongs to a target, in (0, 1).
        classes: Class names; a binary student has one.
        version: Version of fewlabel that wrote the file.
        weights_sha256: Hash of the network's weights, as `fewlabel.training.checkpoint.weights_sha256` computes it.
        preprocessing: How images are prepared; `PREPROCESSING`.
        extra: Further values that were recorded at export, by name.
    """

    name: str
    student: str
    threshold: float
    classes: tuple[str, ...]
    version: str
    weights_sha256: str
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    extra: Mapping[str, Any] = field(default_factory=dict)

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
            values = {key: json.loads(properties[PREFIX + key]) for key in cls.__dataclass_fields__}
            values["classes"] = tuple(values["classes"])
            values["threshold"] = float(values["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} does not hold fewlabel's metadata ({type(error).__name__}: {error}); give a model that"
                " `fewlabel export` wrote."
            ) from None
        name = values["preprocessing"].get("name") if isinstance(values["preprocessing"], dict) else None
        if name != PREPROCESSING["name"]:
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
        if images.ndim != 4 or images.shape[1] != 1 or images.dtype != np.float32:
            raise ModelError(
                f"{self.path} was given {images.dtype} {images.shape}, expected float32 (batch, 1, height, width);"
                " standardise the grey image and add the axes."
            )
        result: np.ndarray = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        return result


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, float32 of the same shape; no overflow for logits of any size."""
    return (0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
