"""Geometry of run-length codes, without masks: memory grows with the runs, never with the image.

A code is COCO's compressed RLE. In between it is `Spans`: where each run of ones starts and stops, counted down the
columns. That makes the shift of a mask from a tile into a large image, its crop, and the union of masks a few
operations on short arrays. The text form is the business of `rle_text`.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.rle_text import read_counts, write_counts


class Rle(TypedDict):
    """COCO's compressed run-length code of one mask."""

    size: list[int]
    counts: bytes


class Spans(NamedTuple):
    """The runs of ones of a mask `(H, W)`.

    Attributes:
        starts: int64 `(K,)`, first pixel of each run as `column * H + row`; increasing.
        stops: int64 `(K,)`, one past the last pixel of each run; at or before the next start.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())


def spans(rle: Rle) -> Spans:
    """Read the runs of a code.

    Args:
        rle: COCO's compressed run-length code.

    Returns:
        Its runs of ones.

    Raises:
        DataError: The text is damaged, or its counts do not add up to the mask's size.
    """
    counts = read_counts(rle["counts"])
    pixels = int(rle["size"][0]) * int(rle["size"][1])
    if counts.sum() != pixels or (counts < 0).any():
        raise DataError(
            f"A run-length code counts {int(counts.sum())} pixels, expected {pixels} for the size {list(rle['size'])};"
            " write the mask again."
        )
    edges = np.cumsum(counts)
    starts, stops = edges[0 : len(edges) - len(edges) % 2 : 2], edges[1::2]
    held = stops > starts
    return Spans(starts[held], stops[held])


def from_spans(runs: Spans, size: tuple[int, int]) -> Rle:
    """Write runs as a code; runs that meet become one, so equal masks have equal bytes.

    Args:
        runs: Runs of ones, none empty.
        size: Rows and columns of the mask.

    Returns:
        The code, byte for byte what `fewlabel.core.masks.encode` makes of the mask.
    """
    return from_many_spans(runs, np.array([0, len(runs.starts)]), size)[0]


def from_many_spans(runs: Spans, edges: np.ndarray, size: tuple[int, int]) -> list[Rle]:
    """Write the runs of many masks of one size, in one pass.

    Args:
        runs: The runs of all masks, one mask after the other.
        edges: int64 `(N + 1,)`: mask `i` holds the runs `edges[i]` to `edges[i + 1]`.
        size: Rows and columns of the masks.

    Returns:
        N codes.
    """
    masks, pixels = len(edges) - 1, size[0] * size[1]
    owner = np.repeat(np.arange(masks), np.diff(edges))
    # A run that starts where the run before it stopped, in the same mask, goes on with it.
    fresh = np.ones(len(owner), dtype=bool)
    fresh[1:] = (runs.starts[1:] != runs.stops[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(fresh)
    starts, stops = runs.starts[first], runs.stops[np.append(first[1:], len(fresh))[: len(first)] - 1]
    held = np.bincount(owner[first], minlength=masks)
    # Counts of a mask: for each run its gap and its length, then the rest behind the last run unless that is empty.
    ends = np.cumsum(held)
    rest = np.full(masks, pixels)
    rest[held > 0] -= stops[ends[held > 0] - 1]
    lengths = 2 * held + (rest > 0)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    before = np.concatenate([[0], stops[:-1]]) if len(stops) else stops
    before[(ends - held)[held > 0]] = 0
    place = 2 * np.arange(len(starts)) + np.repeat(bounds[:-1] - 2 * (ends - held), held)
    counts = np.empty(bounds[-1], dtype=np.int64)
    counts[place], counts[place + 1] = starts - before, stops - starts
    counts[bounds[1:][rest > 0] - 1] = rest[rest > 0]
    texts = write_counts(counts, bounds)
    return [{"size": [int(size[0]), int(size[1])], "counts": text} for text in texts]


def label_spans(labels: np.ndarray, height: int, top: int = 0, left: int = 0) -> tuple[np.ndarray, Spans]:
    """Runs of all labelled regions of a part of an image, in one pass over it.

    Args:
        labels: int `(h, w)`, 0 = background.
        height: Rows of the whole image.
        top: Row of the image at which the part starts.
        left: Column of the image at which the part starts.

    Returns:
        The label of each run, int64 `(K,)`, sorted; and the runs, counted down the columns of the whole image, in
        order within each label. Runs of neighbouring columns are left apart also where they meet.
    """
    rows = np.flatnonzero(labels.any(axis=1))
    if not len(rows):
        return np.zeros(0, np.int64), Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    slab = labels[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(slab.any(axis=0))
    labels = slab[:, columns[0] : columns[-1] + 1]  # few objects fill a small part of an image
    top, left = top + int(rows[0]), left + int(columns[0])
    starts, stops = _changes(labels)
    spot = starts[1] + left, stops[1] + left
    owner = labels[starts].astype(np.int64)
    first = spot[0] * np.int64(height) + (starts[0] + top)
    last = spot[1] * np.int64(height) + (stops[0] + top + 1)
    # Sorted separately: within a label the k-th start down the columns belongs to the k-th stop.
    order, ending = np.lexsort((first, owner)), np.lexsort((last, labels[stops]))
    return owner[order], Spans(first[order], last[ending])


def _changes(labels: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the first and of the last pixel of each vertical run of one label above 0."""
    differs = labels[1:] != labels[:-1]
    begins, ends = labels != 0, labels != 0
    begins[1:] &= differs
    ends[:-1] &= differs
    above, below = np.nonzero(begins), np.nonzero(ends)
    return (above[0], above[1]), (below[0], below[1])


def clip(runs: Spans, height: int, box: tuple[int, int, int, int]) -> Spans:
    """Keep the part of a mask that lies in a box.

    Args:
        runs: Runs of a mask `(H, W)`.
        height: H.
        box: First column, first row, one past the last column, one past the last row.

    Returns:
        Runs of the same mask without what lies outside.
    """
    x0, y0, x1, y1 = box
    lines = _by_column(_between(runs, x0 * height, x1 * height), height)
    base = lines.starts // height * height
    starts = np.maximum(lines.starts, base + y0)
    stops = np.minimum(lines.stops, base + y1)
    held = stops > starts
    return Spans(starts[held], stops[held])


def shift(runs: Spans, height: int, down: int, right: int, to: int) -> Spans:
    """Move a mask, also into an image of another height.

    Args:
        runs: Runs of a mask `(H, W)`.
        height: H.
        down: Rows to move by; negative moves up.
        right: Columns to move by; negative moves left.
        to: Rows of the image that the mask is moved into; the moved mask has to lie inside.

    Returns:
        Runs counted down the columns of that image.
    """
    lines = _by_column(runs, height)
    offset = (lines.starts // height + right) * to + down - lines.starts // height * height
    return Spans(lines.starts + offset, lines.stops + offset)


def crop(rle: Rle, top: int, left: int, height: int, width: int) -> Rle:
    """Cut a crop out of a mask.

    Args:
        rle: Code of the mask.
        top: First row of the crop.
        left: First column of the crop.
        height: Rows of the crop.
        width: Columns of the crop.

    Returns:
        Code of a mask `(height, width)`.

    Raises:
        DataError: The crop does not lie inside the mask, or the code is damaged.
    """
    rows, columns = rle["size"]
    _check_inside(top, left, height, width, (rows, columns))
    inside = clip(spans(rle), rows, (left, top, left + width, top + height))
    return from_spans(shift(inside, rows, -top, -left, height), (height, width))


def join(parts: Sequence[Spans]) -> Spans:
    """Pixels that are in any of the masks; all are of one image. Runs that meet become one."""
    return _covered(parts, 1)


def shared(first: Spans, second: Spans) -> int:
    """Number of pixels that two masks of one image have in common."""
    if not len(first.starts) or not len(second.starts):
        return 0
    low = max(first.starts[0], second.starts[0])
    high = min(first.stops[-1], second.stops[-1])
    return _covered((_between(first, low, high), _between(second, low, high)), 2).area if high > low else 0


def box(runs: Spans, height: int) -> tuple[int, int, int, int]:
    """Tight box of a mask.

    Args:
        runs: Runs of a mask `(H, W)`.
        height: H.

    Returns:
        First column, first row, one past the last column, one past the last row; zeros for an empty mask.
    """
    if not len(runs.starts):
        return 0, 0, 0, 0
    first, last = runs.starts // height, (runs.stops - 1) // height
    if (first != last).any():  # a run that turns into the next column holds a last row and a first row
        top, bottom = 0, height
    else:
        top, bottom = int((runs.starts - first * height).min()), int((runs.stops - last * height).max())
    return int(first[0]), top, int(last[-1]) + 1, bottom


def first_pixel(runs: Spans, height: int) -> tuple[int, int]:
    """Row and column of a mask's first pixel in raster order.

    Args:
        runs: Runs of a mask `(H, W)`, not empty.
        height: H.

    Returns:
        The highest row, and its first column.
    """
    lines = _by_column(runs, height)
    rows = lines.starts % height
    top = int(rows.min())
    return top, int(lines.starts[int(np.argmax(rows == top))] // height)


def _by_column(runs: Spans, height: int) -> Spans:
    """Cut runs where they turn from the end of a column into the next one."""
    first, last = runs.starts // height, (runs.stops - 1) // height
    pieces = last - first + 1
    if (pieces == 1).all():
        return runs
    number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    column = (np.repeat(first, pieces) + number) * height
    starts, stops = np.repeat(runs.starts, pieces), np.repeat(runs.stops, pieces)
    return Spans(np.maximum(starts, column), np.minimum(stops, column + height))


def _between(runs: Spans, low: int, high: int) -> Spans:
    """Runs cut to the pixels `low` to `high` in the order down the columns."""
    a, b = np.searchsorted(runs.stops, low, side="right"), np.searchsorted(runs.starts, high, side="left")
    return Spans(np.maximum(runs.starts[a:b], low), np.minimum(runs.stops[a:b], high))


def _covered(parts: Sequence[Spans], times: int) -> Spans:
    """Pixels that at least `times` of the masks hold."""
    spots = np.concatenate([edge for part in parts for edge in part])
    change = np.concatenate(
        [np.full(len(edge), sign) for part in parts for sign, edge in zip((1, -1), part, strict=True)]
    )
    order = np.argsort(spots, kind="stable")
    spots, depth = spots[order], np.cumsum(change[order])
    # Of several changes at one pixel only the last tells how many masks hold it.
    last = np.flatnonzero(np.diff(spots, append=np.int64(-1)) != 0)
    spots, inside = spots[last], depth[last] >= times
    turns = np.flatnonzero(np.diff(inside, prepend=False))
    return Spans(spots[turns[0::2]], spots[turns[1::2]])


def _check_inside(top: int, left: int, height: int, width: int, size: tuple[int, int]) -> None:
    """Refuse a crop that does not lie inside an image."""
    if min(top, left, height, width) < 0 or top + height > size[0] or left + width > size[1]:
        raise DataError(
            f"A crop of {height} x {width} pixels at row {top}, column {left} does not lie in an image of {size[0]} x"
            f" {size[1]}; give the crop's place in its image."
        )
