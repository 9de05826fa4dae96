"""Prediction of images that are too large for one pass of the network: by tiles, or by windows of the file.

An image of more than `LARGE` pixels is shown to the network in tiles, whatever its format. TIFF and NumPy files of more
than `HELD` pixels are not even read as a whole; the mask alone is held.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fewlabel.core.banded import banded_instances
from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import apply
from fewlabel.core.types import Image, Instances
from fewlabel.data.large import HELD
from fewlabel.data.moments import WHOLE, Rows, prepared_windows, whole_rows
from fewlabel.data.pixels import MAX_PIXELS, read_image
from fewlabel.data.tiles import bands
from fewlabel.data.windows import ImageWindows, StoredWindows, WindowReader, open_windows
from fewlabel.deploy.runtime import OnnxStudent, sigmoid

LARGE = 2**22
"""Pixels above which an image is predicted by tiles; below, the network sees it as a whole, with all feature maps that
it holds at full resolution: hundreds of bytes for each pixel, in dense networks such as DNANet above a thousand."""

TILE, OVERLAP = 1024, 128
WINDOWED = (".tif", ".tiff", ".npy")  # formats of which a window can be read without the rest


def open_image(path: Path, id: str, *, max_pixels: int = MAX_PIXELS) -> Image | WindowReader:
    """Open an image for prediction; it is decoded once, or not at all.

    Args:
        path: The file.
        id: Name of the image.
        max_pixels: Largest height x width that is decoded as a whole.

    Returns:
        The image; for a file of more than `HELD` pixels of which windows can be read, these, whatever `max_pixels`.

    Raises:
        DataError: The file cannot be read, or has to be decoded as a whole and is above `max_pixels`.
    """
    if path.suffix.lower() in WINDOWED:
        reader = open_windows(path, max_pixels=max_pixels)
        if isinstance(reader, StoredWindows):
            return Image(id, reader.read(0, 0, *reader.size), reader.dtype, reader.bit_depth, path)
        if reader.size[0] * reader.size[1] > HELD:
            return reader
    return read_image(path, id, max_pixels=max_pixels)


def is_large(image: Image | WindowReader) -> bool:
    """Whether an image is to be predicted by tiles."""
    return image.size[0] * image.size[1] > LARGE


def predict_large(student: OnnxStudent, image: Image | WindowReader) -> tuple[np.ndarray, Instances]:
    """Find the targets of an image by overlapping tiles; of an image in windows only the mask is held as a whole.

    Grey values are prepared by statistics of the whole image, taken in one pass before. Tiles of `TILE` pixels overlap
    by `OVERLAP`, and their probabilities are blended. A network that looks further than a tile reaches, such as one
    with a mean over the whole image, may answer a little differently from how it answers the image as a whole.

    Args:
        student: The exported student.
        image: The image, or its windows.

    Returns:
        The mask bool `(H, W)` and one instance per 8-connected component, as `fewlabel.deploy.predict.predict_image`.

    Raises:
        DataError: A part of the file is damaged, or the model's radiometry needs the whole image and there are windows.
    """
    height, width = image.size
    rows = _rows(student, image)
    mask = np.zeros((height, width), dtype=bool)

    def probabilities(crops: np.ndarray) -> np.ndarray:
        return sigmoid(student.logits(np.ascontiguousarray(crops[:, None]))[:, 0])

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for top, part in bands(rows, height, width, probabilities, tile=TILE, overlap=OVERLAP, batch=1):
            found = part > student.info.threshold
            mask[top : top + len(part)] = found
            yield found, part

    instances = banded_instances(parts(), (height, width), source="student")
    return mask, instances


def _rows(student: OnnxStudent, image: Image | WindowReader) -> Rows:
    """What the student is given of an image, by rows."""
    radiometry = student.info.radiometry
    if radiometry.policy not in WHOLE:
        reader = ImageWindows(image) if isinstance(image, Image) else image
        return whole_rows(prepared_windows(radiometry, reader), image.size[1])
    if isinstance(image, Image):
        whole = apply(radiometry, image.grey())
        return lambda top, stop: whole[top:stop]
    raise DataError(
        f"An image of {image.size[0]} x {image.size[1]} pixels is predicted by windows of its file, but the radiometry"
        f" {radiometry.policy!r} of {student.path} needs it as a whole: cut it into images of at most {HELD} pixels."
    )
