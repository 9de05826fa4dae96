"""One decoder per kind of image file, each giving the stored values in the displayed orientation.

The kind is told by the file's first bytes, never by its name. Pillow's decoders are called directly, so that its global
limit ``MAX_IMAGE_PIXELS`` is not touched and decoding is safe in threads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.Image import DecompressionBombError

from fewlabel.core.errors import DataError
from fewlabel.data import npy

_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_TYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
PLAIN_TIFF = (1, 8, 32946)  # uncompressed and the two codes of deflate: what tifffile decodes without extra packages
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274  # the tag of TIFF and of EXIF, which is a TIFF inside other files
_DENSEST = 10_000  # pixels in a byte of a file
_HARMLESS = 2**24  # pixels whose memory no one minds
# Everything the decoders raise on damaged files; MemoryError stays out: it is no statement about the file.
_DECODE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,  # for what tifffile does only with extra packages
    AssertionError,
    tifffile.TiffFileError,
    DecompressionBombError,
)


class FileError(DataError):
    """A file that cannot be used.

    Attributes:
        file: The file at fault.
    """

    def __init__(self, file: Path, reason: str) -> None:
        """``reason`` is the whole sentence, with the file's name in it."""
        super().__init__(reason)
        self.file = file


@dataclass(frozen=True)
class Raster:
    """A decoded file.

    Attributes:
        values: (H, W, C) as stored, without alpha, turned as the file asks to be shown.
        bits: Bits per sample in the file.
        lossy: Whether values were rounded by JPEG.
        indexed: Whether values are indexes into a palette.
    """

    values: np.ndarray
    bits: int
    lossy: bool = False
    indexed: bool = False

    @property
    def dtype(self) -> str:
        """What the file holds, such as "uint16"."""
        return str(self.values.dtype)


def turn(values: np.ndarray, orientation: object) -> np.ndarray:
    """Bring stored rows and columns into the displayed orientation.

    Args:
        values: (H, W, ...).
        orientation: Value of the tag of TIFF 6.0 and EXIF 2.32, 1 to 8; anything else counts as 1, "as stored".

    Returns:
        A view of (H, W, ...) for 1 to 4, of (W, H, ...) for 5 to 8.
    """
    if orientation not in range(2, 9):
        return values
    number = int(orientation)  # type: ignore[call-overload]
    if number >= 5:  # stored rows are displayed columns
        values = values.swapaxes(0, 1)
    if number in (3, 4, 7, 8):  # the first stored row (the first stored column, if swapped) is shown at the bottom
        values = values[::-1]
    if number in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn every failure of a decoder into a `FileError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(path, f"{path} does not exist: check the path and the data folder.") from error
    except IsADirectoryError as error:
        raise FileError(path, f"{path} is a folder, expected an image file.") from error
    except PermissionError as error:
        raise FileError(
            path, f"{path} cannot be read: permission denied, so change its rights or its owner."
        ) from error
    except _DECODE_ERRORS as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise FileError(
            path, f"{path} is truncated or damaged ({detail}): copy the file again or remove it."
        ) from error


def decode(path: Path, max_pixels: int, *, as_mask: bool, page: int | None = None) -> Raster:
    """Decode one image file.

    Args:
        path: The file.
        max_pixels: Largest allowed height x width, read from the header before any pixel is decoded.
        as_mask: Keep palette indexes and TIFF samples as they are stored, whatever they look like.
        page: Which page of a TIFF or of a .npy stack, from 0; None for a file that must have one.

    Returns:
        The values, without NaN or infinity.

    Raises:
        FileError: It cannot be used.
    """
    with translated(path), path.open("rb") as file:
        head = file.read(32)
        file.seek(0)
        if not head:
            raise FileError(path, f"{path} is empty (0 bytes): copy the file again or remove it.")
        if head[:4] in _TIFF_STARTS:
            raster = _decode_tiff(file, path, max_pixels, as_mask, page)
        elif head.startswith(npy.MAGIC):
            raster = _decode_npy(path, max_pixels, page)
        elif page:
            raise _no_page(path, 1, page)
        else:
            opened, bits = _open(file, head, path)
            raster = _from_pillow(opened, bits, path, max_pixels, as_mask)
    # ">u2" and the like: the byte order of the file is of no interest, and would leak into the recorded type.
    values = raster.values.astype(raster.values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f":
        refuse_no_numbers(values, path)
    return replace(raster, values=values)


def announced_size(path: Path) -> tuple[int, int]:
    """Rows and columns that a file's header announces, as stored; no pixel is decoded.

    Raises:
        FileError: It is no image file that is read, or its header is damaged.
    """
    with translated(path), path.open("rb") as file:
        head = file.read(32)
        file.seek(0)
        if head[:4] in _TIFF_STARTS:
            with tifffile.TiffFile(file) as tiff:
                page = tiff.pages[0]
                return int(page.imagelength), int(page.imagewidth)
        if head.startswith(npy.MAGIC):
            sides = [side for side in npy.open_array(path).shape if side not in (1, 3)]
            return (sides[0], sides[1]) if len(sides) == 2 else (1, 1)
        opened, _ = _open(file, head, path)
        with opened:
            return opened.height, opened.width


def count(path: Path) -> int:
    """Number of pages: of a TIFF or .npy stack as many as it has, 1 for all else; FileError if it cannot be opened."""
    with translated(path), path.open("rb") as file:
        start = file.read(len(npy.MAGIC))
        if start == npy.MAGIC:
            shape = npy.open_array(path).shape
            return shape[0] if _is_stack(shape) else 1
        if start[:4] not in _TIFF_STARTS:
            return 1
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            pages = len(tiff.pages)
        if pages < 1:
            raise ValueError("no page")
        return pages


def _is_stack(shape: tuple[int, ...]) -> bool:
    """Whether an array is (N, H, W): three axes, neither the first nor the last of which is 1 or 3 channels."""
    return len(shape) == 3 and shape[0] not in (1, 3) and shape[2] not in (1, 3)


def _no_page(path: Path, pages: int, page: int) -> FileError:
    return FileError(path, f"{path} has {pages} pages, so there is no page {page} (they count from 0).")


def _open(file: BinaryIO, head: bytes, path: Path) -> tuple[ImageFile.ImageFile, int]:
    """Choose Pillow's decoder for a file that starts with ``head``; also the bits per sample.

    Pillow is not told the file's name, since it would map such a file into memory and then turn some TIFFs wrongly.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        bits = head[24] if len(head) > 25 else 8
        if bits == 16 and head[25] != 0:
            raise FileError(
                path, f"{path} is a 16-bit PNG with colour or alpha, which cannot be kept at depth: save it as TIFF."
            )
        opened = PngImagePlugin.PngImageFile(file)
        if opened.is_animated:
            raise FileError(
                path, f"{path} is an animated PNG of {opened.n_frames} frames: save it as a video or as single images."
            )
        return opened, bits
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(file), 8
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file), 8
    raise FileError(path, f"{path} is not an image that fewlabel reads: expected PNG, JPEG, BMP, TIFF or .npy.")


def _from_pillow(opened: ImageFile.ImageFile, bits: int, path: Path, max_pixels: int, as_mask: bool) -> Raster:
    """Decode an opened Pillow file whose header says ``bits`` bits per sample."""
    with opened:
        check_size(opened.height, opened.width, path, max_pixels)
        lossy = isinstance(opened, JpegImagePlugin.JpegImageFile) or "jpeg" in str(opened.info.get("compression"))
        opened.load()
        # After loading, since a PNG may hold its tag behind the pixels; TIFF is turned by Pillow, which drops the tag.
        orientation = _orientation(opened)
        mode = opened.mode
        indexed = mode == "P"
        if indexed and not as_mask or mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
            values = np.asarray(opened.convert("RGB"))
            bits, indexed = 8, False
        else:
            values = np.asarray(opened)
            if mode == "1":
                values, bits = values.astype(np.uint8), 1
            elif mode == "L" and bits in (2, 4):
                # Pillow stretches 2 and 4 bits to 0..255; dividing gives the stored values back exactly.
                values = values // (255 // (2**bits - 1))
            elif mode == "I" and bits == 16:
                values = values.astype(np.uint16)
    if values.ndim == 2:
        values = values[..., None]
    if mode in ("LA", "RGBA", "La", "RGBa"):
        values = values[..., :-1]
    _check_type(values.dtype.name, path)
    return Raster(turn(values, orientation), bits, lossy, indexed)


def _orientation(opened: ImageFile.ImageFile) -> object:
    """The orientation tag of a loaded file; None without one or where its EXIF block, no pixel, is damaged."""
    try:
        return opened.getexif().get(ORIENTATION)
    except _DECODE_ERRORS:
        return None


def _decode_npy(path: Path, max_pixels: int, page: int | None) -> Raster:
    """Decode an array (H, W), (H, W, C) or (C, H, W) of 1 or 3 channels, C told by where the 1 or 3 stands.

    With a page also a stack (N, H, W).
    """
    array = npy.open_array(path)
    shape, stack = array.shape, page is not None and _is_stack(array.shape)
    if page is not None and not 0 <= page < (shape[0] if stack else 1):
        raise _no_page(path, shape[0] if stack else 1, page)
    first, last = len(shape) == 3 and shape[0] in (1, 3), len(shape) == 3 and shape[2] in (1, 3)
    if not stack and len(shape) != 2 and first == last:
        hint = "a stack of frames is read with the data format video" if _is_stack(shape) else "save it so"
        raise FileError(
            path, f"{path} has the shape {shape}, expected (H, W), or 1 or 3 channels either first or last: {hint}."
        )
    if stack:
        array = array[page]
    values = array[..., None] if array.ndim == 2 else array.transpose(1, 2, 0) if first else array
    check_size(values.shape[0], values.shape[1], path, max_pixels)
    truth = values.dtype == bool
    return Raster(np.array(values, np.uint8 if truth else values.dtype), 1 if truth else 8 * values.dtype.itemsize)


def _decode_tiff(file: BinaryIO, path: Path, max_pixels: int, as_mask: bool, number: int | None) -> Raster:
    """Decode a page of a TIFF: tifffile keeps every depth, Pillow fills in for palettes and other compressions."""
    with tifffile.TiffFile(file) as tiff:
        pages = len(tiff.pages)
        if number is None and pages != 1:
            raise FileError(
                path,
                f"{path} has {pages} pages, expected one: save each page as a file of its own, or read the folder with"
                " the data format video.",
            )
        if number is not None and not 0 <= number < pages:
            raise _no_page(path, pages, number)
        page = tiff.pages[number or 0]
        check_size(page.imagelength, page.imagewidth, path, max_pixels)
        bits = int(page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0])
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        packed = bits not in (1, 8, 16, 32, 64)
        if inverted and (packed or page.compression not in PLAIN_TIFF):
            raise FileError(path, f"{path} is packed or compressed and counts 0 as white: save it as a plain TIFF.")
        if packed and bits not in (2, 4) and not (bits == 12 and tiff.byteorder == "<"):
            order = "" if tiff.byteorder == "<" else " in big-endian order"
            raise FileError(
                path, f"{path} packs samples of {bits} bits{order}, which is not read: save it with 16 bits per sample."
            )
        if palette or packed or page.predictor > 2 or page.compression not in PLAIN_TIFF:
            file.seek(0)
            opened = TiffImagePlugin.TiffImageFile(file)  # no name, see `_open`
            opened.seek(number or 0)
            return _from_pillow(opened, bits, path, max_pixels, as_mask)
        _check_type("unknown" if page.dtype is None else page.dtype.name, path)
        if page.imagedepth != 1 or not 1 <= page.samplesperpixel <= 4:
            raise FileError(
                path,
                f"{path} has {page.samplesperpixel} channels and depth {page.imagedepth}, expected 1 or 3 channels (and"
                " alpha): split the channels into files.",
            )
        values = page.asarray()
        axes, tag = page.axes, page.tags.get(ORIENTATION)
    if axes == "YX":
        values = values[..., None]
    elif axes == "SYX":
        values = values.transpose(1, 2, 0)
    elif axes != "YXS":
        raise FileError(
            path, f"{path} has the axes {axes}, expected one image of one or three channels: save it as a plain TIFF."
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if inverted and not as_mask and values.dtype.kind == "u":
        values = np.asarray(2**bits - 1 - values.astype(np.int64), dtype=values.dtype)
    if values.shape[2] in (2, 4):
        values = values[..., :-1]
    return Raster(turn(values, None if tag is None else tag.value), bits)


def _check_type(kind: str, path: Path) -> None:
    """Refuse samples that are no plain numbers."""
    if kind not in _TYPES:
        raise FileError(path, f"{path} holds {kind} samples, expected integers or floats: convert it to float32.")


def check_size(height: int, width: int, path: Path, max_pixels: int) -> None:
    """Refuse a header that announces more pixels than allowed, before memory is taken for them.

    Also one that announces more than its file can hold: deflate, the densest packing of the formats here, takes at
    least a byte for 8256 pixels of one bit.
    """
    if height * width > max_pixels:
        raise FileError(
            path,
            f"{path} announces {height} x {width} pixels, more than the limit of {max_pixels}: cut it into tiles, or "
            "raise max_pixels if the file is to be trusted.",
        )
    size = path.stat().st_size
    if height < 1 or width < 1 or height * width > max(_HARMLESS, _DENSEST * size):
        raise FileError(
            path, f"{path} announces {height} x {width} pixels in {size} bytes: copy the file again or remove it."
        )


def refuse_no_numbers(values: np.ndarray, path: Path) -> None:
    """Raise a FileError for NaN, infinity, and what becomes infinite in float32."""
    bad = int(np.count_nonzero(~(np.abs(values) <= np.finfo(np.float32).max)))
    if bad:
        raise FileError(path, f"{path} holds {bad} NaN or infinite values: replace them with measured values.")
