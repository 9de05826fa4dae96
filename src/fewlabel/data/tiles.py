"""Overlapping tiles of an image of any size, and the smooth blending of what a network says about them.

A prediction is least reliable at the border of its tile, so tiles overlap and a pixel's value is the mean over the
tiles that hold it, weighted by a window that falls smoothly towards the tile's border.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TILE, OVERLAP = 256, 64


class Tile(NamedTuple):
    """One square tile, by the row and column of its first pixel."""

    top: int
    left: int


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest evenly spread tiles along one axis that overlap by at least `overlap`."""
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def tiles(height: int, width: int, tile: int = TILE, overlap: int = OVERLAP) -> list[Tile]:
    """Positions of the tiles that cover an image.

    Args:
        height: Rows of the image, at least 1.
        width: Columns of the image, at least 1.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours in pixels, below `tile`.

    Returns:
        Tiles in raster order, spread evenly so that the last one ends at the image's border. An axis no longer than
        `tile` has one position, 0; its image must be padded to `tile` (see `pad`).

    Raises:
        ValueError: The sizes make no tiling.
    """
    if min(height, width) < 1 or not 0 <= overlap < tile:
        raise ValueError(f"no tiling of {height}x{width} pixels by tiles of {tile} that overlap by {overlap}")
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    return [Tile(top, left) for top in rows for left in columns]


def pad(image: np.ndarray, tile: int = TILE) -> np.ndarray:
    """Extend an image by reflection, at its bottom and right, to at least one tile.

    Args:
        image: `(..., H, W)`, H and W at least 1. A side shorter than the padding is reflected again and again.
        tile: Least side of the result in pixels.

    Returns:
        `(..., max(H, tile), max(W, tile))`; `image` itself when nothing is missing.
    """
    missing = [max(tile - side, 0) for side in image.shape[-2:]]
    if not any(missing):
        return image
    return np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, lack) for lack in missing], mode="reflect")


def window(tile: int = TILE, overlap: int = OVERLAP) -> np.ndarray:
    """Weights of a tile's pixels: 1 inside, falling as a raised cosine over the `overlap` pixels next to each border.

    Args:
        tile: Side of the tile in pixels.
        overlap: Width of the fall in pixels; 0 gives ones.

    Returns:
        float64 `(tile, tile)` in (0, 1]; symmetric; positive everywhere, so that the image's own border counts.
    """
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance / max(overlap, 0.5), 1.0))
    return np.outer(ramp, ramp)


def blend_weights(height: int, width: int, tile: int = TILE, overlap: int = OVERLAP) -> list[tuple[Tile, np.ndarray]]:
    """Tiles of an image with the share of each pixel's value that comes from each tile.

    Args:
        height: Rows of the (padded) image, at least `tile`.
        width: Columns of the (padded) image, at least `tile`.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours in pixels.

    Returns:
        One `(tile, float64 (tile, tile))` per tile; over all tiles the shares of a pixel sum to 1.
    """
    shape, places = window(tile, overlap), tiles(height, width, tile, overlap)
    total = np.zeros((height, width))
    for top, left in places:
        total[top : top + tile, left : left + tile] += shape
    return [(place, shape / total[place.top : place.top + tile, place.left : place.left + tile]) for place in places]


def over_tiles(
    image: np.ndarray,
    predict: Callable[[np.ndarray], np.ndarray],
    tile: int = TILE,
    overlap: int = OVERLAP,
    batch: int = 4,
) -> np.ndarray:
    """Apply a function of tiles to images of any one size.

    Args:
        image: float32 `(V, H, W)`: V views of one size.
        predict: Takes float32 `(B, tile, tile)`, returns `(B, tile, tile)`.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours in pixels.
        batch: Most tiles given to `predict` at once.

    Returns:
        float32 `(V, H, W)`: the blended values. An image of one tile or less is `predict(pad(image))`, cropped.
    """
    height, width = image.shape[-2:]
    padded = pad(image, tile)
    shares = blend_weights(padded.shape[-2], padded.shape[-1], tile, overlap)
    jobs = [(view, place, share) for view in range(len(image)) for place, share in shares]
    result = np.zeros(padded.shape, dtype=np.float64)
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        crops = [padded[view, top : top + tile, left : left + tile] for view, (top, left), _ in part]
        for (view, (top, left), share), value in zip(part, predict(np.stack(crops)), strict=True):
            result[view, top : top + tile, left : left + tile] += share * value
    return result[:, :height, :width].astype(np.float32)
