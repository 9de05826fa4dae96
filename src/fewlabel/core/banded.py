"""Connected components of a mask that comes in bands, from the top down: exact codes without the whole mask.

What is held is one band, the labels along its last row, and the runs and value sums of the components that reach that
row. A component that crosses the whole image is held in its runs until it ends.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.core.rle import Rle, Spans, from_many_spans, label_spans
from fewlabel.core.types import Instances, Source


@dataclass(frozen=True)
class Components:
    """Some 8-connected components of an image.

    Attributes:
        rles: Their masks, N COCO run-length codes of the image's size.
        boxes: int64 `(N, 4)`, xyxy in pixel edges.
        firsts: int64 `(N, 2)`, row and column of each first pixel in raster order.
        areas: int64 `(N,)`, pixels.
        totals: float64 `(N,)`, sums of the values that came with the mask over each component.
    """

    rles: tuple[Rle, ...]
    boxes: np.ndarray
    firsts: np.ndarray
    areas: np.ndarray
    totals: np.ndarray


def banded_components(bands: Iterable[tuple[np.ndarray, np.ndarray]], size: tuple[int, int]) -> Iterator[Components]:
    """Find the components of a mask that comes in bands.

    Args:
        bands: Mask, bool `(h, W)`, and values, float `(h, W)`, of consecutive bands of any heights, from the top down.
        size: Rows and columns of the image, H and W.

    Yields:
        After a band, the components that the bands to come cannot touch; at least one, each once.

    Raises:
        DataError: The bands do not make an image of this size.
    """
    height, width = size
    top = 0
    held, runs = _NONE, Spans(_NONE, _NONE)  # component of each run
    sums: np.ndarray = np.zeros(0)  # of each component
    above = np.zeros(width, dtype=np.int64)  # those components along the last row, counted from 1; 0 = background
    for mask, values in bands:
        if mask.shape != values.shape or mask.shape[1:] != (width,) or not 0 < len(mask) <= height - top:
            raise DataError(
                f"The band at row {top} has a mask {mask.shape} and values {values.shape}, expected 1 to {height - top}"
                f" rows of {width} pixels; give the bands of one image from the top down."
            )
        labels, count = components(mask)
        # Nodes of a graph: the held components, then those of this band; edges where they touch.
        nodes = len(sums) + np.arange(-1, count)
        old, new = _touching(above, labels[0])
        edges = coo_array((np.ones(len(old), bool), (old - 1, nodes[new])), shape=(len(sums) + count,) * 2)
        groups, group = connected_components(edges, directed=False)
        inside = np.bincount(labels[mask], weights=values[mask], minlength=count + 1)[1:]
        sums = np.bincount(group, weights=np.concatenate([sums, inside]), minlength=groups)
        owner, fresh = label_spans(labels, height, top)
        held = group[np.concatenate([held, nodes[owner]])].astype(np.int64)
        runs = Spans(np.concatenate([runs.starts, fresh.starts]), np.concatenate([runs.stops, fresh.stops]))
        top += len(mask)
        going = np.zeros(groups, dtype=bool)
        if top < height:
            going[group[nodes[labels[-1][labels[-1] > 0]]]] = True
        ended = ~going[held]
        if not going.all():
            yield _finish(held[ended], Spans(runs.starts[ended], runs.stops[ended]), sums[~going], size)
        numbers = np.cumsum(going)
        above = np.zeros(width, dtype=np.int64)
        if going.any():
            last = labels[-1] > 0
            above[last] = numbers[group[nodes[labels[-1][last]]]]
        held, runs = numbers[held[~ended]] - 1, Spans(runs.starts[~ended], runs.stops[~ended])
        sums = sums[going]
    if top != height:
        raise DataError(f"The bands have {top} rows in all, expected {height}; give all bands of the image.")


def banded_instances(
    bands: Iterable[tuple[np.ndarray, np.ndarray]], size: tuple[int, int], *, source: Source = "human", round: int = 0
) -> Instances:
    """Make one instance per component of a mask that comes in bands.

    Args:
        bands: Mask and values, such as probabilities, of each band; see `banded_components`.
        size: Rows and columns of the image.
        source: Who made them.
        round: Self-training round.

    Returns:
        The instances that `Instances.from_semantic` makes of the whole mask, byte for byte and in the same raster
        order; each score is the mean of the values over the mask.

    Raises:
        DataError: As `banded_components`.
    """
    parts = list(banded_components(bands, size))
    if not parts:
        return Instances(size, source=source, round=round)
    firsts = np.concatenate([part.firsts for part in parts])
    order = np.lexsort((firsts[:, 1], firsts[:, 0]))
    rles = [rle for part in parts for rle in part.rles]
    scores = np.concatenate([part.totals / part.areas for part in parts])
    return Instances(
        size=size,
        rles=tuple(rles[i] for i in order),
        classes=np.zeros(len(rles), dtype=np.int64),
        scores=scores[order].astype(np.float32),
        boxes=np.concatenate([part.boxes for part in parts])[order].astype(np.float32),
        source=source,
        round=round,
    )


_NONE = np.zeros(0, dtype=np.int64)


def _touching(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of labels above 0 that touch, also by a corner, between a row and the next one."""
    sides = ((above[:-1], below[1:]), (above, below), (above[1:], below[:-1]))
    upper, lower = (np.concatenate(rows) for rows in zip(*sides, strict=True))
    both = (upper > 0) & (lower > 0)
    return upper[both], lower[both]


def _finish(owner: np.ndarray, runs: Spans, sums: np.ndarray, size: tuple[int, int]) -> Components:
    """Components of runs, none of which turns into a next column, by their owners' order."""
    order = np.lexsort((runs.starts, owner))
    owner, starts, stops = owner[order], runs.starts[order], runs.stops[order]
    edges = np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner))
    each = edges[:-1]
    column, row = np.divmod(starts, size[0])
    first = np.minimum.reduceat(row * size[1] + column, each)
    bottom = (stops - 1) % size[0] + 1
    corners = (
        np.minimum.reduceat(column, each),
        np.minimum.reduceat(row, each),
        np.maximum.reduceat(column, each) + 1,
        np.maximum.reduceat(bottom, each),
    )
    return Components(
        rles=tuple(from_many_spans(Spans(starts, stops), edges, size)),
        boxes=np.stack(corners, axis=1),
        firsts=np.stack(np.divmod(first, size[1]), axis=1),
        areas=np.add.reduceat(stops - starts, each),
        totals=sums,
    )
