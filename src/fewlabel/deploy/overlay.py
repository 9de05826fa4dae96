"""Pictures for people: the grey image with a line around each target."""

import numpy as np
from scipy import ndimage

from fewlabel.core.masks import EIGHT_CONNECTED

COLOUR = (255, 64, 64)
PERCENTILES = (0.5, 99.9)  # the upper one keeps small bright targets from being lost in the display range


def stretch(grey: np.ndarray) -> np.ndarray:
    """Fit an image of any bit depth to a display.

    Args:
        grey: float32 `(H, W)` in any units.

    Returns:
        uint8 `(H, W)`: the 0.5th percentile is 0 and the 99.9th 255; an image of one value is 0.
    """
    low, high = np.percentile(grey, PERCENTILES)
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return np.zeros(grey.shape, dtype=np.uint8)
    return np.clip((grey - low) / (high - low) * 255.0 + 0.5, 0, 255).astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """A line one pixel wide around each target, one pixel away from it, so that a target of one pixel stays visible.

    Args:
        mask: bool `(H, W)`.

    Returns:
        bool `(H, W)`, disjoint from the mask.
    """
    near = ndimage.binary_dilation(mask, structure=EIGHT_CONNECTED)
    return ndimage.binary_dilation(near, structure=EIGHT_CONNECTED) & ~near


def overlay(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the outlines of a mask on an image.

    Args:
        grey: float32 `(H, W)` in any units.
        mask: bool `(H, W)`.

    Returns:
        RGB, uint8 `(H, W, 3)`.
    """
    picture = np.repeat(stretch(grey)[:, :, None], 3, axis=2)
    picture[outline(mask)] = COLOUR
    return picture
