"""Prediction of images that are too large to be held: by windows of the file, in the memory of a few tiles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fewlabel.core.banded import banded_instances
from fewlabel.core.errors import DataError
from fewlabel.core.types import STANDARD, Instances
from fewlabel.data.moments import grey_moments, standardised_rows
from fewlabel.data.tiles import bands
from fewlabel.data.windows import WindowReader, open_windows
from fewlabel.deploy.runtime import OnnxStudent, sigmoid

LARGE = 2**24
"""Pixels above which an image is predicted by tiles. Below, the network sees it as a whole."""

TILE, OVERLAP = 1024, 128
WINDOWED = (".tif", ".tiff", ".npy")  # formats of which a window can be read without the rest


def large_image(path: Path) -> WindowReader | None:
    """The windows of a file that is to be predicted by tiles; None for all others.

    Raises:
        DataError: The file's header is damaged.
    """
    if path.suffix.lower() not in WINDOWED:
        return None
    reader = open_windows(path)
    return reader if reader.size[0] * reader.size[1] > LARGE else None


def predict_large(student: OnnxStudent, reader: WindowReader) -> tuple[np.ndarray, Instances]:
    """Find the targets of an image by overlapping tiles; only the mask is held as a whole.

    The image is standardised by its own mean and spread, taken in one pass before. Tiles of `TILE` pixels overlap by
    `OVERLAP`, and their probabilities are blended. A network that looks further than a tile reaches, such as one with
    a mean over the whole image, may answer a little differently from how it answers the image as a whole.

    Args:
        student: The exported student.
        reader: The image.

    Returns:
        The mask bool `(H, W)` and one instance per 8-connected component, as `fewlabel.deploy.predict.predict_image`.

    Raises:
        DataError: A part of the file is damaged, or the model's radiometry needs the whole image.
    """
    if student.info.radiometry != STANDARD:
        raise DataError(
            f"An image of {reader.size[0]} x {reader.size[1]} pixels is predicted by tiles, but the radiometry"
            f" {student.info.radiometry.policy!r} of {student.path} needs it as a whole: cut it into images of at most"
            f" {LARGE} pixels."
        )
    height, width = reader.size
    mask = np.zeros((height, width), dtype=bool)

    def probabilities(crops: np.ndarray) -> np.ndarray:
        return sigmoid(student.logits(np.ascontiguousarray(crops[:, None]))[:, 0])

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = standardised_rows(reader, grey_moments(reader))
        for top, part in bands(rows, height, width, probabilities, tile=TILE, overlap=OVERLAP, batch=1):
            found = part > student.info.threshold
            mask[top : top + len(part)] = found
            yield found, part

    instances = banded_instances(parts(), (height, width), source="student")
    return mask, instances
