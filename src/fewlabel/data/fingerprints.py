"""Short codes of images and masks by which copies are found without keeping pixels."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image as Pillow

from fewlabel.core.types import Image, Instances

SIDE = 32
"""Images are reduced to SIDE x SIDE before their perceptual hash is taken."""

LOW = 8
"""The hash looks at LOW x LOW of the lowest frequencies: 64 bits."""


def _cosines() -> np.ndarray:
    """The first LOW rows of the orthonormal DCT-II of length SIDE, float64 (LOW, SIDE)."""
    frequency, place = np.mgrid[:LOW, :SIDE]
    rows = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


_COSINES = _cosines()
_WEIGHTS = np.left_shift(np.uint64(1), np.arange(LOW * LOW, dtype=np.uint64))


def perceptual_hash(grey: np.ndarray) -> int:
    """The pHash of an image: which of its low frequencies lie above their median.

    The image is reduced to 32 x 32 by area and transformed (DCT-II); of the 8 x 8 lowest frequencies, each above the
    median of the 63 that are not the mean gives a bit. Gain and offset do not matter, noise, compression and small
    targets hardly do; a shift, turn or flip changes it wholly. Two unrelated images differ in about 32 bits.

    Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.

    Args:
        grey: float32 (H, W), any units.

    Returns:
        64 bits as an integer in [0, 2^64), bit 0 (the mean) always 0.
    """
    values = np.asarray(grey, np.float32)
    small = np.asarray(Pillow.fromarray(values - values.mean()).resize((SIDE, SIDE), Pillow.Resampling.BOX), np.float64)
    low = (_COSINES @ small @ _COSINES.T).ravel()
    low[0] = 0
    low[np.abs(low) < 1e-6 * np.abs(low).max()] = 0  # rounding must not decide where an image has no such frequency
    above = low > np.median(low[1:])
    above[0] = False
    return int(_WEIGHTS[above].sum())


def pixel_digest(image: Image) -> bytes:
    """16 bytes that two images share if and, but for chance, only if all their decoded pixels are equal.

    A grey image that was stored in three equal channels counts as the grey image that it is.
    """
    pixels = image.pixels
    if len(pixels) > 1 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    code = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    code.update(np.ascontiguousarray(pixels).data)
    return code.digest()


def label_digest(instances: Instances) -> bytes | None:
    """16 bytes that tell labels apart: size, masks and classes in any order; None where there is no target."""
    if not len(instances):
        return None
    code = hashlib.blake2b(repr(tuple(instances.size)).encode(), digest_size=16)
    for counts, number in sorted(
        (rle["counts"], int(n)) for rle, n in zip(instances.rles, instances.classes, strict=True)
    ):
        code.update(b"%d:%d:" % (number, len(counts)) + counts)
    return code.digest()
