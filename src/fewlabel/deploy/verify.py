"""Proof that an exported student computes what the trained network computes, on images that it will meet."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewlabel.core.errors import ExportError
from fewlabel.deploy.export import frozen_copy
from fewlabel.deploy.runtime import OnnxStudent

RELATIVE = 3e-6  # of a logit's size, 25 float32 steps: sums of other order differ so; trained logits reach 700
ROUNDING = 1e-5  # of an image's largest logit: this near to the cut, float32 rounding alone decides the side


@dataclass(frozen=True)
class ParityReport:
    """How far an exported student is from the network it came from.

    Attributes:
        images: Images compared.
        pixels: Their pixels.
        tolerance: Greatest logit difference allowed, beside 3e-6 of the logit's size.
        max_difference: Greatest absolute difference of two logits; NaN or infinite if either side is not finite.
        max_excess: Greatest absolute difference beyond 3e-6 of the PyTorch logit's size; this is held to the tolerance.
        threshold: Probability at which the masks were cut.
        differing_pixels: Pixels whose two masks differ.
        undecided_pixels: Those of them whose PyTorch logit lies within rounding of the cut: 1e-5 times the image's
            largest absolute logit, or 1e-5 if that is less than 1.
        mask_pixels: Pixels of PyTorch's masks; none would mean that the masks proved little.
    """

    images: int
    pixels: int
    tolerance: float
    max_difference: float
    max_excess: float
    threshold: float
    differing_pixels: int
    undecided_pixels: int
    mask_pixels: int

    @property
    def passed(self) -> bool:
        """Logits within the tolerance, and masks identical but for undecided pixels; false for NaN."""
        return self.max_excess <= self.tolerance and self.differing_pixels == self.undecided_pixels

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.images} images compared with PyTorch: logits differ by up to {self.max_difference:.1e} (allowed"
            f" {self.tolerance:.0e} + {RELATIVE:.0e} of the logit), {self.differing_pixels} of {self.pixels} mask"
            " pixels differ"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields and `passed` as a JSON value; differences that are not finite become None."""
        figures = {"max_difference": self.max_difference, "max_excess": self.max_excess}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        return {**asdict(self), **finite, "passed": self.passed}


def verify(
    onnx_path: Path,
    model: nn.Module,
    images: Sequence[np.ndarray],
    tolerance: float = 1e-4,
    *,
    report_only: bool = False,
) -> ParityReport:
    """Run images through ONNX Runtime and PyTorch and compare logits and masks.

    Args:
        onnx_path: The exported student.
        model: The network it came from; left as it is.
        images: float32 `(H, W)` standardised, of any sizes; take real ones, and sizes that need padding among them.
        tolerance: Greatest absolute difference of two logits that passes, beside 3e-6 of the logit's size.
        report_only: Return a report that did not pass instead of raising.

    Returns:
        The report.

    Raises:
        ExportError: No images were given, or the report did not pass.
        ModelError: `onnx_path` cannot be loaded.
    """
    if len(images) == 0:
        raise ExportError(f"No image was given to compare {onnx_path} with its network; give some of the test images.")
    student, network = OnnxStudent(onnx_path), frozen_copy(model)
    greatest, excess, pixels, differing, undecided, in_masks = 0.0, 0.0, 0, 0, 0, 0
    for image in images:
        batch = np.ascontiguousarray(image, dtype=np.float32)[None, None]
        with torch.no_grad():
            expected = network(torch.from_numpy(batch)).numpy()
        got = student.logits(batch)
        if got.shape != expected.shape:
            raise ExportError(
                f"{onnx_path} returns {got.shape} for an image of {image.shape}, the network {expected.shape}; export"
                " the student again."
            )
        apart = np.abs(got.astype(np.float64) - expected)
        difference, beyond = float(apart.max()), float((apart - RELATIVE * np.abs(expected)).max())
        greatest = max(greatest, difference) if math.isfinite(difference) else math.inf
        excess = max(excess, beyond) if math.isfinite(beyond) else math.inf
        mask = expected > student.info.cut
        differs = mask != (got > student.info.cut)
        pixels += mask.size
        in_masks += int(mask.sum())
        differing += int(differs.sum())
        band = ROUNDING * max(1.0, float(np.abs(expected).max()))
        undecided += int((differs & (np.abs(expected - student.info.cut) <= band)).sum())
    report = ParityReport(
        images=len(images),
        pixels=pixels,
        tolerance=tolerance,
        max_difference=greatest,
        max_excess=excess,
        threshold=student.info.threshold,
        differing_pixels=differing,
        undecided_pixels=undecided,
        mask_pixels=in_masks,
    )
    if not report.passed and not report_only:
        raise ExportError(
            f"{onnx_path} does not reproduce its network ({report.summary()}); export again from the weights that were"
            " evaluated."
        )
    return report
