"""Polygons and boxes to masks by COCO's rules, and masks to polygons that give exactly the same mask back.

Points are (x, y) in pixels with the origin at the top left corner of the top left pixel, so the middle of the first
pixel is (0.5, 0.5) and an image of width W ends at x = W. Polygons are filled by COCO's rasteriser (the mask API of the
COCO tools): it draws the outline on a grid five times as fine and fills each column by parity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from faster_coco_eval.core import mask as coco

from fewlabel.core.masks import Rle, decode, encode
from fewlabel.core.types import Instances

FAR = 1e9
"""Coordinates beyond this are moved to it before a polygon is cut, so that no product overflows."""

ROUNDING = 1e-6
"""Pixels by which the edge of a box may miss the middle of a pixel for which it was meant; text files round."""

CANDIDATES = 1000
"""Corners that are looked at to join a loop to those before it; without a bound a mask of noise would take hours."""

MARGIN = 1000
"""Pixels, beside height and width, by which a polygon may stick out of the image before it is cut."""


class ShapeError(ValueError):
    """A shape that means nothing; the message is a clause such as "a polygon has 2 points, expected at least 3"."""


def rasterise(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> Rle:
    """Fill the union of polygons; what lies outside the image is cut off.

    Args:
        polygons: The parts of one object, at least one, each `(K, 2)`, x and y in pixels, K >= 3.
        size: Image rows and columns.

    Returns:
        Their mask. An object too thin to cover the middle of a pixel has the one pixel it lies in.

    Raises:
        ShapeError: A polygon has fewer than 3 points or a coordinate that is no finite number; or the object lies
            outside the image.
    """
    points = [_checked(polygon) for polygon in polygons]
    if not points:
        raise ShapeError("an object has no polygon")
    inside = [polygon for polygon in points if _touches(polygon, size)]
    if not inside:
        low, high = np.concatenate(points).min(axis=0), np.concatenate(points).max(axis=0)
        raise ShapeError(
            f"an object (x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}) lies outside its image of"
            f" {size[0]} x {size[1]} pixels (height x width)"
        )
    flat = [cut.ravel().tolist() for polygon in inside if len(cut := _near(polygon, size)) >= 3]
    code = coco.merge(coco.frPyObjects(flat, *size)) if flat else None
    if code is None or not coco.area(code):
        middle = np.concatenate(inside).mean(axis=0)
        return _rectangle(*_pixel(middle[0], size[1]), *_pixel(middle[1], size[0]), size)
    return {"size": list(size), "counts": code["counts"]}


def fill_box(box: Sequence[float], size: tuple[int, int]) -> tuple[Rle, np.ndarray]:
    """Fill a box.

    Args:
        box: x0, y0, x1, y1 in pixels with x0 <= x1 and y0 <= y1, but for rounding.
        size: Image rows and columns.

    Returns:
        The pixels whose middle is in the box (left and top edges count), at least the one in the box's middle; and the
        box float32 `(4,)`, cut at the image's edges but not rounded to pixels.

    Raises:
        ShapeError: A coordinate is no finite number, the corners are swapped, or the box lies outside the image.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not np.isfinite([x0, y0, x1, y1]).all():
        raise ShapeError("a box has a coordinate that is not a finite number")
    if x1 < x0 - ROUNDING or y1 < y0 - ROUNDING:
        raise ShapeError(f"a box has a negative width or height ({x1 - x0:g} x {y1 - y0:g})")
    height, width = size
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise ShapeError(
            f"a box (x {x0:g} to {x1:g}, y {y0:g} to {y1:g}) lies outside its image of {height} x {width} pixels"
            " (height x width)"
        )
    x0, y0 = min(max(x0, 0.0), width), min(max(y0, 0.0), height)
    x1, y1 = max(min(x1, width), x0), max(min(y1, height), y0)
    rle = _rectangle(*_span(x0, x1, width), *_span(y0, y1, height), size)
    return rle, np.array([x0, y0, x1, y1], dtype=np.float32)


def union(rles: Sequence[Rle]) -> Rle:
    """The union of masks of one size, at least one."""
    code = coco.merge(list(rles))
    return {"size": list(rles[0]["size"]), "counts": code["counts"]}


def run_lengths(counts: object, size: tuple[int, int]) -> Rle:
    """Check a run-length code of COCO, compressed (text) or not (a list of numbers).

    Args:
        counts: Lengths of the runs of background and object in turn, down the columns.
        size: Image rows and columns.

    Returns:
        The same mask in its shortest code.

    Raises:
        ShapeError: The code is damaged or does not cover the image.
    """
    total = size[0] * size[1]
    if isinstance(counts, str | bytes):
        try:
            code = counts.encode("ascii") if isinstance(counts, str) else counts
            return encode(decode({"size": list(size), "counts": code}))
        except (ValueError, RuntimeError, TypeError, OverflowError, SystemError):
            raise ShapeError("a compressed run-length code is damaged or does not cover the image") from None
    if not isinstance(counts, list) or any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in counts):
        raise ShapeError("a run-length code is not a list of whole numbers of at least 0")
    if sum(counts) != total:
        raise ShapeError(f"a run-length code covers {sum(counts)} pixels, but its image has {total}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return encode(flat.reshape(size, order="F"))


def instances(
    size: tuple[int, int], rles: Sequence[Rle], classes: Sequence[int], boxes: Sequence[np.ndarray | None] = ()
) -> Instances:
    """Instances made by people from their codes.

    Args:
        size: Image rows and columns.
        rles: N masks, none of them empty.
        classes: N class indexes.
        boxes: For each object its exact box, float `(4,)` xyxy, or None to take the one of its mask; empty for no
            exact boxes.

    Returns:
        The instances, of score 1.
    """
    found = np.zeros((len(rles), 4), dtype=np.float32)
    for row, rle, box in zip(found, rles, boxes or [None] * len(rles), strict=True):
        if box is None:
            x, y, width, height = np.asarray(coco.toBbox(rle)).ravel()
            row[:] = x, y, x + width, y + height
        else:
            row[:] = box
    ones = np.ones(len(rles), np.float32)
    return Instances(size, tuple(rles), np.array(classes, np.int64).reshape(-1), ones, found)


def loops(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask along the edges of its pixels (crack following).

    Pixels that touch at a corner only are one part, as 8-connected components are; a hole has a loop of its own.

    Args:
        mask: bool `(H, W)`.

    Returns:
        int64 `(K, 2)` each, the corners (x, y) in order; the last is joined to the first. They come in the order of
        their first corner from the top, from the left, which is the corner each begins with.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    tl, tr, bl, br = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    crossing = (tl == br) & (tr == bl) & (tl != tr)
    ys, xs = np.nonzero(tl ^ tr ^ bl ^ br | crossing)
    double = crossing[ys, xs]
    falling = (double & tl[ys, xs]).repeat(1 + double)
    x, y = xs.repeat(1 + double), ys.repeat(1 + double)
    # Where four edges meet the corner is there twice. The first copy takes the edge from the left, the second the one
    # to the right; which of them goes up decides whether the two pixels of the object stay together.
    copy = np.zeros(len(x), np.int64)
    copy[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    across, down = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
    for partner, order in (
        (across, np.lexsort((copy, x, y))),
        (down, np.lexsort((np.where(falling, 1 - copy, copy), y, x))),
    ):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    steps = across.tolist(), down.tolist()
    seen, found = bytearray(len(x)), []
    for start in range(len(x)):
        if seen[start]:
            continue
        chain_, at, turn = [], start, 0
        while not seen[at]:
            seen[at] = 1
            chain_.append(at)
            at, turn = steps[turn][at], 1 - turn
        found.append(np.stack([x[chain_] + left, y[chain_] + top], axis=1).astype(np.int64))
    return found


def outline(mask: np.ndarray) -> np.ndarray:
    """One polygon for a mask, whatever holes and parts it has.

    Every further loop is joined by a cut of no width, along which the polygon goes out and comes back, so that it is
    filled as if the cut were not there. A cut runs along the edges of pixels from the top of the loop to the nearest
    of the last `CANDIDATES` corners before it.

    Args:
        mask: bool `(H, W)`, not empty.

    Returns:
        int64 `(K, 2)`, corners (x, y); `rasterise` gives exactly the mask back.
    """
    found = loops(mask)
    corners = np.concatenate(found)
    owner = np.repeat(np.arange(len(found)), [len(loop) for loop in found])
    place = np.concatenate([np.arange(len(loop)) for loop in found])
    order = np.lexsort((corners[:, 0], corners[:, 1]))
    x, y = corners[order].T
    reading = y * (mask.shape[1] + 1) + x  # place of each corner in the order of reading, which is theirs
    children: dict[tuple[int, int], list[int]] = {}
    for number, loop in enumerate(found[1:], 1):
        left, top = loop[0]
        # A corner before the loop's first one is of a loop that begins earlier, so the cuts make a tree.
        before = int(np.searchsorted(reading, top * (mask.shape[1] + 1) + left))
        first = max(before - CANDIDATES, 0)
        nearest = order[first + int(np.argmin(abs(x[first:before] - left) + abs(y[first:before] - top)))]
        children.setdefault((int(owner[nearest]), int(place[nearest])), []).append(number)
    points: list[tuple[int, int]] = []
    todo: list[Iterator[tuple[int, int] | int]] = [_visit(found, children, 0)]
    while todo:
        item = next(todo[-1], None)
        if item is None:
            todo.pop()
        elif isinstance(item, tuple):
            points.append(item)
        else:
            here, there = points[-1], found[item][0]
            bend = (int(there[0]), here[1])
            points.append(bend)
            todo.append(chain(_visit(found, children, item), [(int(there[0]), int(there[1])), bend, here]))
    polygon = np.array(points, dtype=np.int64)
    return polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)]


def _visit(
    found: list[np.ndarray], children: dict[tuple[int, int], list[int]], number: int
) -> Iterator[tuple[int, int] | int]:
    """The corners of a loop in order, and after each the numbers of the loops that hang on it."""
    for place, (x, y) in enumerate(found[number].tolist()):
        yield x, y
        yield from children.get((number, place), ())


def _checked(polygon: np.ndarray) -> np.ndarray:
    """The points as float64, moved to within `FAR`."""
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ShapeError(f"a polygon has {len(points)} points, expected at least 3")
    if not np.isfinite(points).all():
        raise ShapeError("a polygon has a coordinate that is not a finite number")
    return points.clip(-FAR, FAR)


def _touches(points: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the box around the points meets the image."""
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((high >= 0).all() and low[0] <= size[1] and low[1] <= size[0])


def _near(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The polygon, cut if it goes far beyond the image: the rasteriser's time and memory grow with its length.

    Sutherland and Hodgman's clipping. The margin keeps it off polygons that stick out a little, which are to be drawn
    exactly as the COCO tools draw them.
    """
    margin = float(MARGIN + sum(size))
    for axis, limit in ((0, float(size[1])), (1, float(size[0]))):
        for sign, bound in ((1.0, -margin), (-1.0, -limit - margin)):
            values = sign * points[:, axis]
            inside = values >= bound
            if inside.all():
                continue
            following, then = np.roll(points, -1, axis=0), np.roll(values, -1)
            crosses = inside != np.roll(inside, -1)
            share = np.divide(bound - values, then - values, out=np.zeros(len(values)), where=crosses)[:, None]
            pairs = np.stack([points, points + share * (following - points)], axis=1)
            points = pairs[np.stack([inside, crosses], axis=1)]
    return points


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """First pixel and one past the last of those whose middle is in [low, high), at least one."""
    first, end = (max(int(np.ceil(side - 0.5 - ROUNDING)), 0) for side in (low, high))
    return (first, end) if first < end else _pixel((low + high) / 2, length)


def _pixel(at: float, length: int) -> tuple[int, int]:
    """The pixel at a coordinate, the nearest one if that is outside, as a span of one."""
    first = int(min(max(np.floor(at), 0), length - 1))
    return first, first + 1


def _rectangle(x0: int, x1: int, y0: int, y1: int, size: tuple[int, int]) -> Rle:
    """Code of the pixels from (x0, y0) to before (x1, y1), a box that is not empty."""
    height, width = size
    if y1 - y0 == height:
        runs = [x0 * height, (x1 - x0) * height]
    else:
        runs = [x0 * height + y0, *[y1 - y0, height - (y1 - y0)] * (x1 - x0)][:-1]
    rest = height * width - sum(runs)
    code = coco.frPyObjects({"size": list(size), "counts": runs + [rest] * (rest > 0)}, *size)
    return {"size": list(size), "counts": code["counts"]}
