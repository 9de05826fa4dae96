"""Prompts as a user would give them, drawn from masks: clicks, loose boxes and corrections (SAM, section 5 and app. A).

Masks are bool `(H, W)` arrays; corrections, which follow a network's output, take stacks of tensors. Points are float32
xy in image pixels, at pixel centres: column c is x = c + 0.5.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewlabel.core.errors import DataError

BOX_NOISE = 0.1  # standard deviation of each edge, in sides of the box
BOX_NOISE_LIMIT = 20.0  # pixels

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def random_point(mask: Mask, rng: np.random.Generator) -> Floats:
    """A pixel of the mask, uniformly.

    Returns:
        float32 `(2,)` xy.

    Raises:
        DataError: The mask is empty.
    """
    rows, columns = _pixels(mask)
    index = int(rng.integers(len(rows)))
    return np.array([columns[index] + 0.5, rows[index] + 0.5], np.float32)


def central_point(mask: Mask) -> Floats:
    """The pixel of the mask that lies nearest to the mask's centroid; the first in raster order of several.

    Returns:
        float32 `(2,)` xy.

    Raises:
        DataError: The mask is empty.
    """
    rows, columns = _pixels(mask)
    index = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return np.array([columns[index] + 0.5, rows[index] + 0.5], np.float32)


def tight_box(mask: Mask) -> Floats:
    """Pixel edges of the mask.

    Returns:
        float32 `(4,)` xyxy; x1 and y1 are the last column and row plus one.

    Raises:
        DataError: The mask is empty.
    """
    rows, columns = _pixels(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def noisy_box(mask: Mask, rng: np.random.Generator) -> Floats:
    """The mask's box as a hand would draw it: each edge moved by a tenth of the side, by at most 20 pixels.

    Returns:
        float32 `(4,)` xyxy inside the image, at least one pixel wide and high.

    Raises:
        DataError: The mask is empty.
    """
    box = tight_box(mask).astype(np.float64)
    sides = np.tile(box[2:] - box[:2], 2)
    moved = box + np.clip(rng.normal(0.0, 1.0, 4) * BOX_NOISE * sides, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
    limit = np.array([mask.shape[1], mask.shape[0]], np.float64)
    first = np.clip(moved[:2], 0, limit - 1)
    last = np.clip(moved[2:], first + 1, limit)
    return np.concatenate([first, last]).astype(np.float32)


def correction_clicks(predicted: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """One click on a wrong pixel of each mask; stays on the masks' device and waits for nothing.

    Args:
        predicted: bool `(..., H, W)`, present masks.
        targets: bool `(..., H, W)`, true masks, none empty.
        shares: float32 `(...)` in [0, 1): how far through the wrong pixels, in raster order, the click lies. Uniform
            numbers give a uniform choice.

    Returns:
        xy float32 `(..., 2)`, and labels int64 `(...)`: 1 where the target was missed, 0 where background was taken.
        Without any error, a further point of the target.
    """
    wrong = predicted != targets
    flat = torch.where(wrong.flatten(-2).any(-1, keepdim=True), wrong.flatten(-2), targets.flatten(-2))
    running = flat.cumsum(-1, dtype=torch.int32)
    count = running[..., -1]
    rank = torch.minimum((shares.double() * count).to(torch.int32) + 1, count)
    index = torch.searchsorted(running, rank[..., None].contiguous())
    width = targets.shape[-1]
    labels = targets.flatten(-2).gather(-1, index)[..., 0].long()
    index = index[..., 0]
    return torch.stack([index % width + 0.5, index // width + 0.5], -1).float(), labels


def _pixels(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a mask's pixels."""
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        raise DataError(
            f"A prompt was asked for an empty mask of {mask.shape[0]}x{mask.shape[1]} pixels; "
            "leave out targets without pixels."
        )
    return rows, columns
