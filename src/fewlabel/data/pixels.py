"""Reading one image, mask or label map at the depth it was stored with, in the orientation it asks to be shown.

The orientation tag of EXIF (JPEG, PNG) and TIFF is honoured for images, masks and label maps alike: annotation tools
show and label the displayed picture. A mask without the tag therefore has to agree with the *displayed* image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewlabel.core.types import Image
from fewlabel.data import decoders
from fewlabel.data.decoders import FileError, Raster, decode

__all__ = [
    "MAX_PIXELS",
    "FileError",
    "count_pages",
    "read_image",
    "read_label_map",
    "read_mask",
    "read_page",
    "read_stored",
]

MAX_PIXELS = 2**28
"""Largest height x width that is decoded unless the caller says otherwise."""

_ROWS = 512  # of a mask that are counted at once
_EXACT = 2**24  # float32 holds every integer up to here


def read_image(path: Path | str, id: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image, keeping its bit depth.

    PNG (grey of 1 to 16 bits, 8-bit grey + alpha, RGB, RGBA, palette), JPEG, BMP, single-page TIFF (integers of 1, 2,
    4, 8, 16 or 32 bits, 12 bits packed in little-endian files, floats of 16 to 64 bits) and .npy of shape (H, W),
    (H, W, C) or (C, H, W) of bool, integers or floats. Samples of 10, 12 or 14 bits that are stored in 16 are read as
    16 bits; samples of 10 or 14 bits that are packed without gaps are refused. Alpha is dropped, palettes become RGB,
    CMYK becomes RGB; nothing is rescaled. float64 is rounded to float32.

    Args:
        path: The file.
        id: Name of the image; the file's stem if None.
        max_pixels: Largest allowed height x width, read from the header before any pixel is decoded.

    Returns:
        The image with pixels float32 (C, H, W), C = 1 or 3, in the file's own units (a 16-bit file: 0..65535), turned
        as its orientation tag says, and the file's ``dtype`` and ``bit_depth`` (a file of 16-bit samples that holds
        14-bit values says ``uint16`` and 16).

    Raises:
        FileError: The file is missing, empty, truncated, no image, above ``max_pixels``, has several pages, holds NaN
            or infinite values, or would lose depth in decoding (16-bit colour PNG, integers beyond 2**24).
    """
    path = Path(path)
    return _to_image(read_stored(path, max_pixels=max_pixels), path, path.stem if id is None else id)


def read_stored(path: Path, *, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read one image as it is stored: what `read_image` gives, before it becomes float32; FileError as there."""
    return _exact(decode(path, max_pixels, as_mask=False), path)


def read_page(path: Path | str, page: int, id: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one page of a TIFF or of a .npy stack (N, H, W), or page 0 of any other image file.

    Args:
        path: The file.
        page: From 0 to `count_pages` - 1. Reaching page k of a TIFF reads the addresses of the k pages before it, not
            the pages.
        id: Name of the image; the file's stem, two underscores and the page in six digits if None.
        max_pixels: As `read_image`.

    Returns:
        The page, as `read_image` returns a whole file.

    Raises:
        FileError: As `read_image`, or there is no such page.
    """
    path = Path(path)
    raster = _exact(decode(path, max_pixels, as_mask=False, page=page), path)
    return _to_image(raster, path, f"{path.stem}__{page:06d}" if id is None else id)


def count_pages(path: Path | str) -> int:
    """Number of pages of a TIFF or of a .npy stack (N, H, W), 1 for any other file; no pixel is decoded.

    An array whose first or last axis has length 1 or 3 is one image, for `read_image` as well.

    Raises:
        FileError: The file is missing, or its header or list of pages is damaged.
    """
    return decoders.count(Path(path))


def _exact(raster: Raster, path: Path) -> Raster:
    """The raster, if float32 holds its values."""
    values = raster.values
    if values.dtype.kind in "ui" and values.dtype.itemsize > 2:
        extreme = max(int(values.max()), -int(values.min()))
        if extreme > _EXACT:
            raise FileError(
                path, f"{path} holds {extreme}, beyond what float32 keeps: save it with 16 bits or as float32."
            )
    return raster


def _to_image(raster: Raster, path: Path, id: str) -> Image:
    pixels = np.ascontiguousarray(raster.values.transpose(2, 0, 1), dtype=np.float32)
    return Image(id=id, pixels=pixels, dtype=raster.dtype, bit_depth=raster.bits, path=path)


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
    raster = decode(path, max_pixels, as_mask=True)
    values = raster.values
    grey = values.shape[2] == 1 or (values == values[..., :1]).all()
    if raster.indexed or not grey:
        return np.asarray((values != 0).any(axis=2))
    plane = values[..., 0]
    if plane.dtype.kind == "f":
        return np.asarray(plane >= 0.5)
    if plane.dtype == np.uint8 and raster.bits == 8:
        # By rows, since counting takes eight bytes for each pixel of one.
        parts = (plane[top : top + _ROWS].ravel() for top in range(0, len(plane), _ROWS))
        present = np.flatnonzero(sum(np.bincount(part, minlength=256) for part in parts))
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


def read_label_map(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one map of class or object numbers: the stored integers, whatever grey or colour they are shown in.

    Grey PNG of 1 to 16 bits, palette PNG (its indexes), BMP, TIFF of 8 to 32-bit integers or with a palette, and .npy
    of integers or bool. Alpha is dropped.

    Args:
        path: The file.
        max_pixels: Largest allowed height x width, read from the header before any pixel is decoded.

    Returns:
        int32 (H, W).

    Raises:
        FileError: As `read_image`; also for colours, floats, JPEG and numbers that int32 does not hold.
    """
    path = Path(path)
    raster = decode(path, max_pixels, as_mask=True)
    values = raster.values
    if raster.lossy:
        raise FileError(path, f"label map {path} is JPEG, which blurs numbers: export it as PNG.")
    if values.shape[2] != 1:
        raise FileError(
            path,
            f"label map {path} has {values.shape[2]} channels of colour, expected one of numbers: save it as grey or"
            " palette PNG.",
        )
    if values.dtype.kind not in "ui":
        raise FileError(path, f"label map {path} holds {raster.dtype} values, expected integers: save it as integers.")
    if values.max() > np.iinfo(np.int32).max:
        raise FileError(path, f"label map {path} holds {values.max()}, expected numbers below 2**31: renumber it.")
    return np.ascontiguousarray(values[..., 0], dtype=np.int32)
