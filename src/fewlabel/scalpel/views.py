"""The views of one image that a teacher looks at: mirrored, and at two other scales.

A mirrored view moves pixels without resampling. A scaled one is resampled by a map of pixel centres, ``x' + 1/2 =
s (x + 1/2)`` with s = new side ÷ old side on each axis, and its probabilities come back by the inverse map, so that
views of any size line up; what the resampling adds is a few hundredths of a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

Views = Literal["one", "flips", "flips-scales"]

SCALES = (0.75, 1.33)
"""Scales of the additional views: those between which a teacher's training crops vary (`AugmentConfig`).

A teacher that never saw other sizes has no opinion on them worth averaging. Small targets forbid more anyway: at 0.75 a
target of 2 × 2 pixels still covers 1.5 × 1.5, at 0.5 it would be one pixel, which noise makes as well; and the cost of
a larger view grows with the square of its scale.
"""


@dataclass(frozen=True)
class View:
    """Some ways of looking at one image that share a size.

    Attributes:
        images: float32 `(V, h, w)`.
        back: Takes float32 `(V, h, w)` values of these images' pixels to `(V, H, W)`, those of the image itself.
    """

    images: np.ndarray
    back: Callable[[np.ndarray], np.ndarray]


def flips(image: np.ndarray) -> np.ndarray:
    """The four mirrored views `(4, H, W)` of `(H, W)`; each mirror is its own inverse."""
    return np.stack([image, image[:, ::-1], image[::-1], image[::-1, ::-1]])


def unflip(values: np.ndarray) -> np.ndarray:
    """Undo `flips`: of values `(4, H, W)` each is mirrored back."""
    return np.stack([values[0], values[1, :, ::-1], values[2, ::-1], values[3, ::-1, ::-1]])


def resized(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample planes by the map of pixel centres that takes one frame onto the other.

    Args:
        planes: float32 `(V, H, W)`.
        size: New rows and columns, at least 1.

    Returns:
        float32 `(V, *size)`: bilinear, averaged over what a new pixel covers where the image shrinks.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))[None]
    out = F.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)
    return np.asarray(out[0].numpy())


def views_of(image: np.ndarray, views: Views) -> list[View]:
    """The views of an image.

    Args:
        image: float32 `(H, W)`.
        views: `one`, the image as it is; `flips`, four mirrored views; `flips-scales`, these and two scaled ones.

    Returns:
        Groups of views of one size: 1, 4 or 6 views in all.
    """
    if views == "one":
        return [View(image[None], np.asarray)]
    found = [View(flips(image), unflip)]
    if views == "flips-scales":
        height, width = (int(side) for side in image.shape)
        for scale in SCALES:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            found.append(View(resized(image[None], size), lambda values: resized(values, (height, width))))
    return found
