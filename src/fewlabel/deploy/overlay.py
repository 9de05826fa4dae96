"""Pictures for people: the grey image with a line around each target or box."""

import math

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


def box_lines(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A line one pixel wide around each box, one pixel away from the pixels that it touches; see `outline`.

    Args:
        boxes: float `(N, 4)` xyxy in pixel edges, inside the image.
        size: Rows and columns.

    Returns:
        bool `(H, W)`. Lines of neighbours may cross; parts beyond the image are not drawn.
    """
    lines = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        left, top = max(math.floor(x0) - 2, -1), max(math.floor(y0) - 2, -1)
        right, bottom = min(math.ceil(x1) + 1, size[1]), min(math.ceil(y1) + 1, size[0])
        for row in (top, bottom):
            if 0 <= row < size[0]:
                lines[row, max(left, 0) : right + 1] = True
        for column in (left, right):
            if 0 <= column < size[1]:
                lines[max(top, 0) : bottom + 1, column] = True
    return lines


def overlay(grey: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Draw lines on an image.

    Args:
        grey: float32 `(H, W)` in any units.
        lines: bool `(H, W)`, such as `outline` or `box_lines` gives.

    Returns:
        RGB, uint8 `(H, W, 3)`.
    """
    picture = np.repeat(stretch(grey)[:, :, None], 3, axis=2)
    picture[lines] = COLOUR
    return picture
