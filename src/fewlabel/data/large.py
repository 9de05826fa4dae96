"""Images of a data set that are too large to hold: which they are, and how they are opened."""

from dataclasses import dataclass
from pathlib import Path

from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD
from fewlabel.data.decoders import FileError, announced_size, check_size
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.windows import WindowReader, open_windows

HELD = 2**24
"""Pixels up to which an image is read as a whole."""

_SPARSE = 256  # pixels in a byte of a file, beyond which an image shows next to nothing


@dataclass(frozen=True)
class LargeImage:
    """An image of a data set that is read by windows.

    Attributes:
        id: Name that is unique in its data set.
        reader: Its windows.
        path: The file.
        radiometry: How its data set's values become the input of networks.
    """

    id: str
    reader: WindowReader
    path: Path
    radiometry: Radiometry = STANDARD

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.reader.size

    @property
    def height(self) -> int:
        """Rows."""
        return self.reader.size[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.reader.size[1]


def is_large(path: Path) -> bool:
    """Whether a file announces more than `HELD` pixels; one that cannot be read does not.

    A file of so few bytes that such an image would show next to nothing is not opened, so small files cost nothing.
    """
    try:
        if path.stat().st_size * _SPARSE <= HELD:
            return False
        height, width = announced_size(path)
    except (OSError, FileError):  # reading the file says what is wrong with it
        return False
    return height * width > HELD


def open_large(path: Path, id: str, radiometry: Radiometry, *, max_pixels: int = MAX_PIXELS) -> LargeImage:
    """Open an image to be read by windows; FileError as `open_windows`, and if it has more than ``max_pixels``."""
    reader = open_windows(path, max_pixels=max_pixels)
    check_size(*reader.size, path, max_pixels)
    return LargeImage(id, reader, path, radiometry)
