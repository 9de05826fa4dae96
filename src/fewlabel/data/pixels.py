"""Decoding one image or mask file at the depth it was stored with.

The format is told by the file's first bytes, never by its name. Pillow's decoders are called directly, so its global
limit ``MAX_IMAGE_PIXELS`` neither matters nor is touched, and decoding is safe in threads.
EXIF orientation is not applied: an image and its mask have to agree in the layout in which they are stored.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image

MAX_PIXELS = 2**28
"""Largest height x width that is decoded unless the caller says otherwise."""

_TIFF_TYPES = ("bool", "uint8", "uint16", "int16", "float16", "float32")
_PLAIN_TIFF = (1, 8, 32946)  # uncompressed and the two codes of deflate: what tifffile decodes without extra packages
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
    OverflowError,
    ZeroDivisionError,
    tifffile.TiffFileError,
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
class _Raster:
    """A decoded file: values (H, W, C) as stored, without alpha."""

    values: np.ndarray
    dtype: str
    bit_depth: int
    lossy: bool
    indexed: bool


def read_image(path: Path | str, id: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image, keeping its bit depth.

    PNG (grey of 1 to 16 bits, 8-bit grey + alpha, RGB, RGBA, palette), JPEG, BMP and single-page TIFF (8 and 16 bits,
    float16 and float32). Alpha is dropped, palettes become RGB, CMYK becomes RGB; nothing is rescaled.

    Args:
        path: The file.
        id: Name of the image; the file's stem if None.
        max_pixels: Largest allowed height x width, read from the header before any pixel is decoded.

    Returns:
        The image with pixels float32 (C, H, W), C = 1 or 3, in the file's own units (a 16-bit file: 0..65535), and the
        file's ``dtype`` and ``bit_depth`` (a file of 16-bit samples that holds 14-bit values says ``uint16`` and 16).

    Raises:
        FileError: The file is missing, empty, truncated, no image, above ``max_pixels``, holds NaN or infinite
            values, or would lose depth in decoding (16-bit colour PNG).
    """
    path = Path(path)
    raster = _read(path, max_pixels, as_mask=False)
    pixels = np.ascontiguousarray(raster.values.transpose(2, 0, 1), dtype=np.float32)
    return Image(
        id=path.stem if id is None else id,
        pixels=pixels,
        dtype=raster.dtype,
        bit_depth=raster.bit_depth,
        path=path,
    )


def read_mask(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one mask as bool (H, W), True = target.

    Nonzero is target: 0/1, 0/255, label maps (0, 1, 2, ...), palette indexes and TIFF samples (0 is background
    whatever colour it is shown in), any nonzero channel of a coloured mask. Two kinds hold soft borders and are cut at
    one half instead: 8-bit grey that reaches 255 with values between, or that is JPEG and reaches 128 (target: >= 128),
    and float TIFF (target: >= 0.5).

    Raises:
        FileError: As `read_image`; also for a mask that mixes small class numbers (below 8) with 255 and nothing
            else, where 255 may mean "ignore" as well as "target".
    """
    path = Path(path)
    raster = _read(path, max_pixels, as_mask=True)
    values = raster.values
    grey = (values == values[..., :1]).all()
    if raster.indexed or not grey:
        return np.asarray((values != 0).any(axis=2))
    plane = values[..., 0]
    if plane.dtype.kind == "f":
        return np.asarray(plane >= 0.5)
    if plane.dtype == np.uint8 and raster.bit_depth == 8:
        present = np.flatnonzero(np.bincount(plane.ravel(), minlength=256))
        between = present[(present > 0) & (present < 255)]
        if raster.lossy and present[-1] >= 128:
            return np.asarray(plane >= 128)
        if present[-1] == 255 and len(between):
            if between[-1] < 8:
                raise FileError(
                    path,
                    f"mask {path} holds the class numbers {between.tolist()} and also 255, which may mean target or "
                    "ignore: save it with 0 for background and one other value for targets.",
                )
            return np.asarray(plane >= 128)
    return np.asarray(plane != 0)


def _read(path: Path, max_pixels: int, *, as_mask: bool) -> _Raster:
    """Open, recognise by the first bytes and decode; every failure is a FileError that names the file."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
            if not head:
                raise FileError(path, f"{path} is empty (0 bytes): copy the file again or remove it.")
            file.seek(0)
            raster = _decode(file, head, path, max_pixels, as_mask)
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
    if raster.values.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(raster.values)))
        if bad:
            raise FileError(path, f"{path} holds {bad} NaN or infinite values: replace them with measured values.")
    return raster


def _decode(file: BinaryIO, head: bytes, path: Path, max_pixels: int, as_mask: bool) -> _Raster:
    """Choose the decoder for a file that starts with ``head``."""
    opened: ImageFile.ImageFile
    depth = 8
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        depth = head[24] if len(head) > 25 else 8
        if depth == 16 and head[25] != 0:
            raise FileError(
                path, f"{path} is a 16-bit PNG with colour or alpha, which cannot be kept at depth: save it as TIFF."
            )
        opened = PngImagePlugin.PngImageFile(file, str(path))
    elif head.startswith(b"\xff\xd8\xff"):
        opened = JpegImagePlugin.JpegImageFile(file, str(path))
    elif head.startswith(b"BM"):
        opened = BmpImagePlugin.BmpImageFile(file, str(path))
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff(file, path, max_pixels, as_mask)
    else:
        raise FileError(path, f"{path} is not an image that fewlabel reads: expected PNG, JPEG, BMP or TIFF.")
    return _from_pillow(opened, depth, path, max_pixels, as_mask)


def _from_pillow(opened: ImageFile.ImageFile, depth: int, path: Path, max_pixels: int, as_mask: bool) -> _Raster:
    """Decode an opened Pillow file whose header says ``depth`` bits per sample."""
    with opened:
        _check_size(opened.height, opened.width, path, max_pixels)
        lossy = isinstance(opened, JpegImagePlugin.JpegImageFile)
        opened.load()
        mode = opened.mode
        indexed = mode == "P"
        if indexed and not as_mask or mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
            values = np.asarray(opened.convert("RGB"))
            depth, indexed = 8, False
        else:
            values = np.asarray(opened)
            if mode == "1":
                values, depth = values.astype(np.uint8), 1
            elif mode == "L" and depth in (2, 4):
                # Pillow stretches 2 and 4 bits to 0..255; dividing gives the stored values back exactly.
                values = values // (255 // (2**depth - 1))
            elif mode == "I" and depth == 16:
                values = values.astype(np.uint16)
    if values.ndim == 2:
        values = values[..., None]
    if mode in ("LA", "RGBA", "La", "RGBa"):
        values = values[..., :-1]
    if values.dtype.kind in "ui" and values.dtype.itemsize > 2:
        raise FileError(
            path, f"{path} has {8 * values.dtype.itemsize}-bit integers: save it with 16 bits or as float32 TIFF."
        )
    # ">u2" and the like: the byte order of the file is of no interest, and would leak into the recorded type.
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _Raster(values, str(values.dtype), depth, lossy, indexed)


def _decode_tiff(file: BinaryIO, path: Path, max_pixels: int, as_mask: bool) -> _Raster:
    """Decode a single-page TIFF: tifffile keeps every depth, Pillow fills in for palettes and other compressions."""
    with tifffile.TiffFile(file) as tiff:
        if len(tiff.pages) != 1:
            raise FileError(
                path, f"{path} has {len(tiff.pages)} pages, expected one: save each page as a file of its own."
            )
        page = tiff.pages[0]
        _check_size(page.imagelength, page.imagewidth, path, max_pixels)
        bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if inverted and page.compression not in _PLAIN_TIFF:
            raise FileError(path, f"{path} is compressed and counts 0 as white: save it as an uncompressed TIFF.")
        if palette or page.compression not in _PLAIN_TIFF:
            file.seek(0)
            opened = TiffImagePlugin.TiffImageFile(file, str(path))
            return _from_pillow(opened, int(bits), path, max_pixels, as_mask)
        if page.dtype is None or page.dtype.name not in _TIFF_TYPES:
            kind = "unknown" if page.dtype is None else page.dtype.name
            raise FileError(
                path, f"{path} holds {kind} samples, expected one of {', '.join(_TIFF_TYPES)}: convert it to float32."
            )
        values = page.asarray()
        axes = page.axes
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
    channels = values.shape[2]
    if channels in (2, 4):
        values = values[..., : channels - 1]
    elif channels not in (1, 3):
        raise FileError(
            path, f"{path} has {channels} channels, expected 1 or 3 (and alpha): split the channels into files."
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _Raster(values, str(values.dtype), int(bits), page.compression == 7, False)


def _check_size(height: int, width: int, path: Path, max_pixels: int) -> None:
    """Refuse a header that announces more pixels than allowed, before memory is taken for them."""
    if height * width > max_pixels:
        raise FileError(
            path,
            f"{path} announces {height} x {width} pixels, more than the limit of {max_pixels}: cut it into tiles, or "
            "raise max_pixels if the file is to be trusted.",
        )
    if height < 1 or width < 1:
        raise FileError(path, f"{path} announces {height} x {width} pixels: copy the file again or remove it.")
