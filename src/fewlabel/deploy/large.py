"""Prediction of images that are too large for one pass of the network: by tiles, or by windows of the file.

An image of more than `LARGE` pixels is shown to the network in tiles, whatever its format. TIFF and NumPy files of more
than `HELD` pixels are not even read as a whole; the mask alone is held.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fewlabel.core.banded import banded_instances
from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import FLAT, Radiometry, apply
from fewlabel.core.types import STANDARD, Image, Instances
from fewlabel.data.moments import ROWS, STEP, Rows, grey_moments, grey_rows, standardised_rows
from fewlabel.data.pixels import MAX_PIXELS, FileError, read_image
from fewlabel.data.tiles import bands
from fewlabel.data.windows import ImageWindows, WindowReader, open_windows
from fewlabel.deploy.runtime import OnnxStudent, sigmoid

LARGE = 2**22
"""Pixels above which an image is predicted by tiles; below, the network sees it as a whole, with all feature maps that
it holds at full resolution: hundreds of bytes for each pixel, in dense networks such as DNANet above a thousand."""

HELD = 2**24
"""Pixels up to which TIFF and NumPy files are read as a whole; they get an overlay, and any radiometry."""

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
        try:
            reader = open_windows(path)
        except FileError:
            if max_pixels <= MAX_PIXELS:  # the limit of open_windows
                raise
        else:
            pixels = reader.size[0] * reader.size[1]
            if not isinstance(reader, ImageWindows):
                if pixels > HELD:
                    return reader
            elif pixels <= max_pixels:
                return Image(id, reader.read(0, 0, *reader.size), reader.dtype, reader.bit_depth, path)
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
    if radiometry.policy not in ("percentile", "clahe"):
        return prepared_rows(radiometry, ImageWindows(image) if isinstance(image, Image) else image)
    if isinstance(image, Image):
        whole = apply(radiometry, image.grey())
        return lambda top, stop: whole[top:stop]
    raise DataError(
        f"An image of {image.size[0]} x {image.size[1]} pixels is predicted by windows of its file, but the radiometry"
        f" {radiometry.policy!r} of {student.path} needs it as a whole: cut it into images of at most {HELD} pixels."
    )


def prepared_rows(radiometry: Radiometry, reader: WindowReader) -> Rows:
    """What networks are given of an image, by rows, without holding it.

    Args:
        radiometry: `standard`, `min-max` (each takes one pass over the image here) or `fixed`.
        reader: The image.

    Returns:
        Rows of what `fewlabel.core.radiometry.apply` gives for the whole image: for `standard` to float rounding, else
        the same values.
    """
    if radiometry == STANDARD:
        return standardised_rows(reader, grey_moments(reader))
    rows, line = grey_rows(reader), radiometry
    if radiometry.policy == "min-max":
        low, high = grey_extremes(reader)
        if high - low <= FLAT * max(abs(low), abs(high)):
            return lambda top, stop: np.zeros((stop - top, reader.size[1]), dtype=np.float32)
        line = Radiometry(policy="fixed", low=low, high=high)

    def scaled(top: int, stop: int) -> np.ndarray:
        grey = rows(top, stop)  # read at once, since the file's tiles are; float64 for a few rows at a time
        return np.concatenate([apply(line, grey[start : start + STEP]) for start in range(0, len(grey), STEP)])

    return scaled


def grey_extremes(reader: WindowReader) -> tuple[float, float]:
    """Lowest and highest grey value of an image, in one pass; memory as `fewlabel.data.moments.grey_moments`."""
    rows, height = grey_rows(reader), reader.size[0]
    step = -(-ROWS // reader.block) * reader.block
    low, high = float("inf"), float("-inf")
    for top in range(0, height, step):
        band = rows(top, min(top + step, height))
        low, high = min(low, float(band.min())), max(high, float(band.max()))
    return low, high
