"""Windows of images that may be too large to hold: each read decodes only what touches the window.

TIFF is read by its tiles or strips, from the file itself where it is uncompressed in one piece, and `.npy` from the
file itself. Everything else (PNG, JPEG, BMP; TIFF that is turned, has a palette or another compression than deflate;
tiles or strips of more than `LARGE_SEGMENT` pixels; integers of more than 16 bits) is decoded as a whole, once, and
held as it is stored.

Values are those of `fewlabel.data.pixels.read_image`. No file stays open between reads, so readers need no closing and
may be used in threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tifffile

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image
from fewlabel.data import npy
from fewlabel.data.decoders import ORIENTATION, PLAIN_TIFF, FileError, translated
from fewlabel.data.pixels import MAX_PIXELS, read_stored

MAX_WINDOWED = 2**32 - 1  # height x width; COCO's run-length codes count in 32 bits
LARGE_SEGMENT = 2**24  # pixels of a tile or strip; decoding larger ones again for each window costs more than keeping
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = ("bool", "uint8", "int8", "uint16", "int16", "float16", "float32", "float64")
_BITS = (1, 8, 16, 32, 64)


class WindowReader(Protocol):
    """An image that gives its windows.

    Attributes:
        size: Rows and columns.
        channels: 1 or 3 for files; alpha is dropped.
        dtype: What the file holds, such as `"uint16"`.
        bit_depth: Bits per channel in the file.
        block: Rows that are decoded together; reads of whole multiples of it decode nothing twice.
        nbytes: Memory that the pixels take between reads.
    """

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102  described above
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def bit_depth(self) -> int: ...  # noqa: D102
    @property
    def block(self) -> int: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read one window.

        Args:
            top: First row.
            left: First column.
            height: Rows, at least 1.
            width: Columns, at least 1.

        Returns:
            float32 `(C, height, width)` in the file's own units; a copy.

        Raises:
            ValueError: The window does not lie inside the image.
            DataError: The window holds NaN or infinite values; a `FileError` where there is a file, also for one that
                is truncated, damaged or gone.
        """
        ...


class _Header(NamedTuple):
    """What readers tell about their image."""

    size: tuple[int, int]
    channels: int
    dtype: str
    bit_depth: int
    block: int = 1


class _Windows(ABC):
    """What all readers have in common: the header and the checks."""

    def __init__(self, header: _Header, path: Path | None) -> None:
        self.size, self.channels, self.dtype, self.bit_depth, self.block = header
        self.path = path
        self.nbytes = 0

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read one window; see `WindowReader.read`."""
        rows, columns = self.size
        if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
            raise ValueError(f"no window of {height}x{width} at row {top}, column {left} in {rows}x{columns} pixels")
        values = self._read(top, left, height, width)
        if self.dtype.startswith("float"):
            bad = values.size - int(np.count_nonzero(np.isfinite(values)))
            if bad:
                where = f"holds {bad} NaN or infinite values in rows {top} to {top + height - 1}, columns {left} to"
                sentence = f"{where} {left + width - 1}: replace them with measured values."
                raise (
                    FileError(self.path, f"{self.path} {sentence}") if self.path else DataError(f"An image {sentence}")
                )
        return values

    @abstractmethod
    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Values of a window that lies inside, float32 `(C, height, width)`, a copy."""


class ImageWindows(_Windows):
    """Windows of an image in memory."""

    def __init__(self, image: Image) -> None:
        """Take an image; its pixels are not copied."""
        super().__init__(_Header(image.size, image.channels, image.dtype, image.bit_depth), image.path)
        self._pixels, self.nbytes = image.pixels, image.pixels.nbytes

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._pixels[:, top : top + height, left : left + width].copy()


class StoredWindows(_Windows):
    """Windows of a file that was decoded as a whole; its values are held in the file's own type."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        """Decode a file.

        Args:
            path: The file.
            max_pixels: Largest allowed height x width.

        Raises:
            FileError: As `fewlabel.data.pixels.read_image`.
        """
        raster = read_stored(path, max_pixels=max_pixels)
        self._values, (height, width, channels) = raster.values, raster.values.shape
        super().__init__(_Header((height, width), channels, raster.dtype, raster.bits), path)
        self.nbytes = raster.values.nbytes

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return _float32(self._values[top : top + height, left : left + width].transpose(2, 0, 1))


class NpyWindows(_Windows):
    """Windows of a `.npy` file."""

    def __init__(self, path: Path, array: np.ndarray) -> None:
        """Take over the layout of an array; `open_windows` makes sure that it is one of those read here.

        Args:
            path: The file.
            array: What it holds, `(H, W)`, `(C, H, W)` or `(H, W, C)`; not kept.

        Raises:
            FileError: It holds more than `MAX_WINDOWED` pixels.
        """
        values = _channels_first(array)
        size = (int(values.shape[1]), int(values.shape[2]))
        _check_windowed(size, path)
        dtype = _recorded(array.dtype)
        super().__init__(
            _Header(size, len(values), dtype.name, 1 if array.dtype.kind == "b" else 8 * dtype.itemsize), path
        )

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        assert self.path is not None
        with translated(self.path):
            # Mapped for the moment alone, so that pages do not pile up.
            values = _channels_first(npy.open_array(self.path))
            return _float32(values[:, top : top + height, left : left + width])


class TiffWindows(_Windows):
    """Windows of a single-page TIFF, uncompressed or deflated, in tiles, strips or one piece."""

    def __init__(self, path: Path, page: Any) -> None:
        """Take over a page's layout; `open_windows` makes sure that it is one of those read here.

        Args:
            path: The file.
            page: Its only `tifffile.TiffPage`; its file may be closed afterwards.

        Raises:
            FileError: It holds more than `MAX_WINDOWED` pixels.
        """
        size = (int(page.imagelength), int(page.imagewidth))
        _check_windowed(size, path)
        self._samples = int(page.samplesperpixel)
        channels = self._samples - 1 if self._samples in (2, 4) else self._samples  # without alpha
        self._planar = page.planarconfig == 2 and self._samples > 1
        self._rows, self._columns = _segment_size(page)
        self._decode: Callable[..., Any] = page.decode
        self._offsets, self._lengths = page.dataoffsets, page.databytecounts
        bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
        self._white = 2 ** int(bits) - 1 if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else None
        self._plain = None
        if page.is_memmappable and not page.is_tiled:
            shape = (self._samples, *size) if self._planar else (*size, self._samples)
            self._plain = (page.dtype.newbyteorder(page.parent.byteorder), int(self._offsets[0]), shape)
        block = 1 if self._plain else min(self._rows, size[0])
        super().__init__(_Header(size, channels, _recorded(page.dtype).name, int(bits), block), path)

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        assert self.path is not None
        with translated(self.path):
            values = self._mapped(top, left, height, width) if self._plain else self._decoded(top, left, height, width)
        if self._white is not None and self.dtype.startswith("uint"):
            np.subtract(np.float32(self._white), values, out=values)
        return values

    def _mapped(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Copy a window out of uncompressed data; mapped for the moment alone, so that pages do not pile up."""
        assert self._plain is not None and self.path is not None
        dtype, offset, shape = self._plain
        values = np.memmap(self.path, dtype, "r", offset, shape)
        rows, columns = slice(top, top + height), slice(left, left + width)
        part = values[:, rows, columns] if self._planar else values[rows, columns].transpose(2, 0, 1)
        return _float32(part[: self.channels])

    def _decoded(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Decode the tiles or strips that touch a window, one at a time."""
        assert self.path is not None
        result = np.zeros((self.channels, height, width), dtype=np.float32)
        down, across = -(-self.size[0] // self._rows), -(-self.size[1] // self._columns)
        with self.path.open("rb") as file:
            for plane in range(self.channels if self._planar else 1):
                for row in range(top // self._rows, (top + height - 1) // self._rows + 1):
                    for column in range(left // self._columns, (left + width - 1) // self._columns + 1):
                        index = (plane * down + row) * across + column
                        length = self._lengths[index]
                        file.seek(self._offsets[index])
                        data = file.read(length)
                        if len(data) < length:
                            raise EOFError(f"tile or strip {index} ends after {len(data)} of {length} bytes")
                        segment = self._decode(data if length else None, index)[0]  # length 0: left out of the file
                        if segment is None:
                            continue
                        y, x = row * self._rows - top, column * self._columns - left
                        part = segment[0, max(-y, 0) : height - y, max(-x, 0) : width - x]
                        y, x = max(y, 0), max(x, 0)
                        into = slice(plane, plane + 1) if self._planar else slice(0, self.channels)
                        source = _float32(part.transpose(2, 0, 1)[: into.stop - into.start])
                        result[into, y : y + part.shape[0], x : x + part.shape[1]] = source
        return result


def open_windows(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> WindowReader:
    """Open an image file for reading by windows.

    Args:
        path: PNG, JPEG, BMP, single-page TIFF, or `.npy` `(H, W)` or `(C, H, W)`; told by the first bytes.
        max_pixels: Largest allowed height x width of files that have to be decoded as a whole (see the module).

    Returns:
        Its reader. Files that have to be decoded as a whole are decoded now; others may have `MAX_WINDOWED` pixels.

    Raises:
        FileError: The file is missing, empty, truncated, no image, or too large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        head = b""  # read_image says what is wrong with the file
    if head.startswith(npy.MAGIC):
        with translated(path):
            array = npy.open_array(path)
            if array.dtype.name in _TYPES and _has_channels(array):
                return NpyWindows(path, array)
    if head[:4] in _TIFF:
        with translated(path), tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) == 1 and _is_windowed(tiff.pages[0]):
                return TiffWindows(path, tiff.pages[0])
    return StoredWindows(path, max_pixels)


def _is_windowed(page: Any) -> bool:
    """Whether windows of a page can be decoded on their own."""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
    plain = bits in _BITS and page.compression in PLAIN_TIFF and page.photometric != tifffile.PHOTOMETRIC.PALETTE
    tag = page.tags.get(ORIENTATION)
    turned = tag is not None and tag.value in range(2, 9)
    known = page.dtype is not None and page.dtype.name in _TYPES and page.axes in ("YX", "YXS", "SYX")
    if (
        turned
        or not plain
        or not known
        or not 1 <= page.samplesperpixel <= 4
        or min(page.imagelength, page.imagewidth) < 1
    ):
        return False
    rows, columns = _segment_size(page)
    count = -(-page.imagelength // rows) * -(-page.imagewidth // columns)
    count *= page.samplesperpixel if page.planarconfig == 2 and page.samplesperpixel > 1 else 1
    if page.is_memmappable and not page.is_tiled:
        return True
    whole = len(page.dataoffsets) >= count and len(page.databytecounts) >= count
    return whole and rows * columns <= LARGE_SEGMENT


def _has_channels(array: np.ndarray) -> bool:
    """Whether an array is `(H, W)`, or has 1 or 3 channels either first or last."""
    shape = array.shape
    return len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3)) != (shape[2] in (1, 3)))


def _channels_first(array: np.ndarray) -> np.ndarray:
    """View `(H, W)`, `(C, H, W)` or `(H, W, C)` as `(C, H, W)`."""
    if array.ndim == 2:
        return array[None]
    return array if array.shape[0] in (1, 3) else array.transpose(2, 0, 1)


def _recorded(dtype: np.dtype) -> np.dtype:
    """The type that `read_image` names: without byte order, and with bits as bytes."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _float32(values: np.ndarray) -> np.ndarray:
    """Copy to float32 in C order; float64 beyond its range becomes infinite, which the reader refuses."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32, order="C")


def _segment_size(page: Any) -> tuple[int, int]:
    """Rows and columns of a page's tiles or strips."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _check_windowed(size: tuple[int, int], path: Path) -> None:
    """Refuse more pixels than run-length codes count."""
    if size[0] * size[1] > MAX_WINDOWED:
        raise FileError(
            path, f"{path} has {size[0]} x {size[1]} pixels, more than the limit of {MAX_WINDOWED}: cut it into pieces."
        )
