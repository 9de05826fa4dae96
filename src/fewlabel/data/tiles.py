"""Overlapping tiles of an image of any size, and the smooth blending of what a network says about them.

A prediction is least reliable at the border of its tile, so tiles overlap and a pixel's value is the mean over the
tiles that hold it, weighted by a window that falls smoothly towards the tile's border.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

TILE, OVERLAP = 256, 64


class Tile(NamedTuple):
    """One square tile, by the row and column of its first pixel."""

    top: int
    left: int


class Crop(NamedTuple):
    """One rectangle of an image.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


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


def crops(height: int, width: int, tile: int = TILE, overlap: int = OVERLAP) -> list[Crop]:
    """The tiles of an image as rectangles inside it.

    Args:
        height: Rows of the image, at least 1.
        width: Columns of the image, at least 1.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours in pixels, below `tile`.

    Returns:
        One crop for each of `tiles`, in the same order; smaller than a tile only where the image is.

    Raises:
        ValueError: The sizes make no tiling.
    """
    sides = min(tile, height), min(tile, width)
    return [Crop(top, left, *sides) for top, left in tiles(height, width, tile, overlap)]


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


def bands(
    rows: Callable[[int, int], np.ndarray],
    height: int,
    width: int,
    predict: Callable[[np.ndarray], np.ndarray],
    tile: int = TILE,
    overlap: int = OVERLAP,
    batch: int = 4,
) -> Iterator[tuple[int, np.ndarray]]:
    """Apply a function of tiles to an image that is read, and answered, by rows.

    The values are those of `over_tiles`, bit for bit where `predict` answers each tile regardless of the others in its
    batch, and otherwise to that function's rounding: batches here end with each row of tiles. Memory is a few arrays
    of `tile` whole rows, whatever the height.

    Args:
        rows: Gives rows `top` to `stop` (not included) of the image, float32 `(stop - top, W)`. Each row is asked for
            once, in order.
        height: H, rows of the image, at least 1.
        width: W, columns of the image, at least 1.
        predict: Takes float32 `(B, tile, tile)`, returns `(B, tile, tile)`.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours in pixels.
        batch: Most tiles given to `predict` at once.

    Yields:
        First row, and float32 `(h, W)`: the finished bands from top to bottom, which together are the image.

    Raises:
        ValueError: The sizes make no tiling.
    """
    places = tiles(height, width, tile, overlap)
    tops, lefts = sorted({place.top for place in places}), sorted({place.left for place in places})
    shape = window(tile, overlap)
    held = np.zeros((0, width), dtype=np.float32)  # rows from the top of the present row of tiles, read so far
    sums = np.zeros((tile, max(width, tile)))
    for top, after in zip(tops, [*tops[1:], height], strict=True):
        stop = min(top + tile, height)
        held = np.concatenate([held, rows(top + len(held), stop)])
        padded = pad(held, tile)
        for first in range(0, len(lefts), batch):
            part = lefts[first : first + batch]
            answers = predict(np.stack([padded[:, left : left + tile] for left in part]))
            for left, value in zip(part, answers, strict=True):
                sums[:, left : left + tile] += shape / _weights(Tile(top, left), tops, lefts, shape) * value
        done = after - top
        yield top, sums[:done, :width].astype(np.float32)
        held = held[done:]
        sums[: tile - done], sums[tile - done :] = sums[done:].copy(), 0.0


def _weights(place: Tile, tops: list[int], lefts: list[int], shape: np.ndarray) -> np.ndarray:
    """Sum over one tile of all tiles' windows, added in raster order as `blend_weights` adds them."""
    tile = len(shape)
    total = np.zeros((tile, tile))
    for down in (top - place.top for top in tops if abs(top - place.top) < tile):
        for right in (left - place.left for left in lefts if abs(left - place.left) < tile):
            total[max(down, 0) : tile + min(down, 0), max(right, 0) : tile + min(right, 0)] += shape[
                max(-down, 0) : tile - max(down, 0), max(-right, 0) : tile - max(right, 0)
            ]
    return total
