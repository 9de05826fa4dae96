"""Maps of object numbers in training crops: mirrored copies told apart, and scaling that loses no object."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F


def mirrors(start: int, count: int, length: int) -> np.ndarray:
    """Which mirrored copy of an axis the positions ``start``, ... of its continuation by reflection belong to.

    Args:
        start: First position.
        count: Number of positions.
        length: Pixels of the axis; copies share the pixel at which they meet.

    Returns:
        int64 (count, 2): number of the copy that begins at or before the position, 0 for the axis itself, and 1 where
        the position is the first of its copy, which is also the last of the copy before. Of a single pixel there is
        one copy.
    """
    if length == 1:
        return np.zeros((count, 2), np.int64)
    positions = np.arange(start, start + count)
    return np.stack([positions // (length - 1), positions % (length - 1) == 0], axis=1)


def apart(numbers: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Give the mirrored copies of an object numbers of their own; those that meet at the mirror are one object.

    Args:
        numbers: int32 (H, W), 0 = background; reflected.
        rows: Copy of each row, as `mirrors` gives it.
        columns: Copy of each column.

    Returns:
        int32 (H, W), 0 = background, 1..N = objects.
    """
    at = np.nonzero(numbers)
    if not len(at[0]):
        return numbers
    keys = np.stack([numbers[at], rows[at[0], 0], columns[at[1], 0]], axis=1)
    copies, own = np.unique(keys, axis=0, return_inverse=True)
    place = {tuple(copy): index for index, copy in enumerate(copies.tolist())}
    first = rows[at[0], 1] + 2 * columns[at[1], 1]
    pairs = []
    for number, row, column, ends in np.unique(np.column_stack([keys, first])[first > 0], axis=0).tolist():
        before = [(number, row - 1, column)] if ends & 1 else []
        before += [(number, row, column - 1)] if ends & 2 else []
        before += [(number, row - 1, column - 1)] if ends == 3 else []
        # A copy may show nothing but the pixels that it shares.
        pairs += [(place[number, row, column], place.setdefault(copy, len(place))) for copy in before]
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    edges = coo_array((np.ones(len(pairs), bool), (one, other)), shape=(len(place), len(place)))
    _, group = connected_components(edges, directed=False)
    result = np.zeros_like(numbers)
    result[at] = group[own.ravel()] + 1
    return result


def resize_objects(
    numbers: np.ndarray, target: np.ndarray, size: int
) -> tuple[np.ndarray, list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Scale a map of objects with its target; every object keeps at least one pixel.

    Each pixel of the scaled target goes to the object that covers most of it, by the bilinear weights with which
    `fewlabel.data.augment.resize` scales the target (of equals the lowest number). An object that would be left without
    a pixel takes the one under its own pixel nearest to its centroid, or, where that is another object's only one, the
    nearest other.

    Args:
        numbers: int32 (s, s), 0 = background.
        target: bool (size, size), the scaled target.
        size: New side.

    Returns:
        int32 (size, size), and for each object that was given a pixel back: that pixel, and the object's own pixel
        (row, column) in ``numbers``.
    """
    side = numbers.shape[0]
    weights = _weights(side, size)
    result, best = np.zeros((size, size), np.int32), np.zeros((size, size), np.float32)
    places = [(index, box) for index, box in enumerate(ndimage.find_objects(numbers), 1) if box is not None]
    for number, (rows, columns) in places:
        down, right = weights[:, rows], weights[:, columns]
        (y0, y1), (x0, x1) = _reach(down), _reach(right)
        share = down[y0:y1] @ (numbers[rows, columns] == number).astype(np.float32) @ right[x0:x1].T
        held = share > best[y0:y1, x0:x1]
        best[y0:y1, x0:x1][held] = share[held]
        result[y0:y1, x0:x1][held] = number
    result[~target] = 0
    pixels = np.bincount(result.ravel(), minlength=len(places) and places[-1][0] + 1)
    restored = []
    for number, (rows, columns) in places:
        if pixels[number]:
            continue
        y, x = np.nonzero(numbers[rows, columns] == number)
        near = int(np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2))
        source = rows.start + int(y[near]), columns.start + int(x[near])
        free = np.argwhere((result == 0) | (pixels[result] > 1))
        if not len(free):  # more objects than pixels
            continue
        at = np.array([int((value + 0.5) * size / side) for value in source])
        row, column = free[int(np.argmin(((free - at) ** 2).sum(axis=1)))].tolist()
        pixels[result[row, column]] -= 1
        pixels[number] += 1
        result[row, column] = number
        restored.append(((row, column), source))
    return result, restored


@lru_cache(maxsize=16)
def _weights(side: int, size: int) -> np.ndarray:
    """float32 (size, side): share of each pixel in each of the scaled axis; bilinear, antialiased when shrinking."""
    plane = torch.eye(side)[None, None]
    return F.interpolate(plane, (size, side), mode="bilinear", align_corners=False, antialias=size < side)[0, 0].numpy()


def _reach(weights: np.ndarray) -> tuple[int, int]:
    """First row and one past the last of those with a weight above 0."""
    held = np.flatnonzero(weights.any(axis=1))
    return (int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0)
