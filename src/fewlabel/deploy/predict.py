"""Predict a folder of images with an exported student; `deploy.predictions` says what is written.

The masks of a student of masks are 0 / 255, and its annotations one per 8-connected component. Those of a detector have
boxes and no masks, and there are no `masks/`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewlabel.core.masks import components
from fewlabel.core.types import Image, Instances
from fewlabel.data.pixels import MAX_PIXELS, read_image
from fewlabel.deploy.large import is_large, open_image, predict_large
from fewlabel.deploy.overlay import box_lines, outline, overlay
from fewlabel.deploy.predictions import Found, Head, PredictSummary, write_predictions
from fewlabel.deploy.runtime import OnnxStudent, sigmoid


def predict_image(student: OnnxStudent, image: Image) -> tuple[np.ndarray, Instances]:
    """Find the targets of one image.

    Args:
        student: The exported student.
        image: Any size, depth and number of channels.

    Returns:
        The mask, bool `(H, W)`, and one instance per 8-connected component of it, in raster order; the score is the
        mean probability of its pixels. Class 0, source `student`.
    """
    logits = student.logits(seen(student, image)[None, None])[0, 0]
    mask = logits > student.info.cut
    labels, count = components(mask)
    index = labels.ravel()
    sums = np.bincount(index, weights=sigmoid(logits).ravel(), minlength=count + 1)[1:]
    scores = sums / np.bincount(index, minlength=count + 1)[1:]
    return mask, Instances.from_components(labels, np.arange(1, count + 1), scores=scores, source="student")


def seen(student: OnnxStudent, image: Image) -> np.ndarray:
    """An image as the student was trained to see it, float32 `(H, W)`: by the radiometry that its file records."""
    return replace(image, radiometry=student.info.radiometry).normalised()


def predict_boxes(student: OnnxStudent, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Find the boxes of one image.

    Args:
        student: The exported detector.
        image: Any size, depth and number of channels.

    Returns:
        Boxes float32 `(N, 4)`, xyxy in pixel edges, whose score is above the threshold, by falling score, and the
        scores float32 `(N,)`.

    Raises:
        ModelError: The student is no detector.
    """
    from fewlabel.students.detector.predict import detect_by  # torch comes with it

    found = detect_by(student.candidates, student.frame, seen(student, image))
    counted = found.scores > student.info.threshold
    return found.boxes[counted], found.scores[counted]


def predict_folder(
    model_path: Path,
    images: Path | Sequence[Path],
    out: Path,
    *,
    keep_going: bool = False,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> PredictSummary:
    """Predict all images of a folder, or the given files.

    Args:
        model_path: The exported `.onnx` student.
        images: As in `write_predictions`. Masks of more than `fewlabel.deploy.large.LARGE` pixels are predicted by
            tiles; TIFF and NumPy files of more than `fewlabel.deploy.large.HELD` are not read as a whole then, and get
            no overlay.
        out: As in `write_predictions`.
        keep_going: As in `write_predictions`.
        threads: Threads that one image may use.
        max_pixels: Largest height x width of an image that is decoded as a whole; a larger one cannot be read.

    Returns:
        The counts, and the files that were left out.

    Raises:
        DataError: As in `write_predictions`.
        ModelError: The model cannot be loaded.
    """
    student = OnnxStudent(Path(model_path), threads)
    info = student.info
    head = Head(info.name, info.version, info.weights_sha256, info.threshold, tuple(info.classes))
    find = _find_masks if info.frame is None else _find_boxes
    return write_predictions(
        head, lambda path, name: find(student, path, name, max_pixels), images, out, keep_going=keep_going
    )


def _find_masks(student: OnnxStudent, path: Path, name: str, max_pixels: int) -> Found:
    """What a student of masks finds in a file."""
    image = open_image(path, name, max_pixels=max_pixels)
    if isinstance(image, Image) and not is_large(image):
        mask, instances = predict_image(student, image)
    else:
        mask, instances = predict_large(student, image)
    drawn = overlay(image.grey(), outline(mask)) if isinstance(image, Image) else None
    return Found.of_masks(instances, mask * np.uint8(255), drawn)


def _find_boxes(student: OnnxStudent, path: Path, name: str, max_pixels: int) -> Found:
    """What a student of boxes finds in a file."""
    image = read_image(path, name, max_pixels=max_pixels)
    boxes, scores = predict_boxes(student, image)
    return Found.of_boxes(image.size, boxes, scores, overlay(image.grey(), box_lines(boxes, image.size)))
