"""Instances of a large image from those of its overlapping tiles.

A mask that reaches an inner border of its tile is *cut*: the object may go on outside. One that does not is *whole*.
An object smaller than the overlap is whole in at least one tile, and that view is taken; its cut views, and its views
from other tiles, are recognised by the pixels they share with it and dropped. A larger object is cut everywhere, and
its pieces, which agree where their tiles overlap, become one mask. Objects that only touch share no pixels and stay
apart. Masks are runs throughout; what is kept is what tiles to come can still see.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.rle import Spans, box, clip, first_pixel, from_many_spans, join, shared, shift, spans
from fewlabel.core.types import Instances
from fewlabel.data.tiles import OVERLAP, TILE, Crop, crops

AGREE = 0.5  # least overlap of two views of one object: no view has more than that with each of two disjoint ones


@dataclass(frozen=True)
class View:
    """What one tile shows of an object.

    Attributes:
        runs: Its pixels, in the whole image.
        box: Their tight box: first column, first row, one past the last column, one past the last row.
        area: Their number.
        number: Class id.
        score: 0..1.
        crop: Which tile, by its place in the list.
        whole: Whether it stays clear of the tile's inner borders.
    """

    runs: Spans
    box: tuple[int, int, int, int]
    area: int
    number: int
    score: float
    crop: int
    whole: bool


class Match(NamedTuple):
    """How much two views of different tiles have in common.

    Attributes:
        zone_iou: Intersection over union inside the overlap of their tiles.
        iou: Intersection over union.
        first_smaller: Whether the first has no more pixels than the second inside the overlap.
        first_inside: Whether the first lies in the overlap with all its pixels.
        second_inside: Whether the second does.
    """

    zone_iou: float
    iou: float
    first_smaller: bool
    first_inside: bool
    second_inside: bool

    def swapped(self) -> "Match":
        """The same with first and second exchanged."""
        return Match(self.zone_iou, self.iou, not self.first_smaller, self.second_inside, self.first_inside)


def compare(first: View, second: View, zone: tuple[int, int, int, int], height: int) -> Match | None:
    """Compare two views.

    Args:
        first: A view.
        second: A view from another tile.
        zone: The box where their tiles overlap.
        height: Rows of the whole image.

    Returns:
        Their match; None where they share less than `AGREE` of the smaller one inside the zone.
    """
    both = shared(first.runs, second.runs)
    if not both:
        return None
    a, b = clip(first.runs, height, zone).area, clip(second.runs, height, zone).area
    if both < AGREE * min(a, b):
        return None
    iou = both / (first.area + second.area - both)
    return Match(both / (a + b - both), iou, a <= b, a == first.area, b == second.area)


def resolve(views: Sequence[View], matches: dict[tuple[int, int], Match]) -> list[View]:
    """Make objects of views that belong together.

    1. A whole view that is the best match, in its tile, of a whole view which reaches beyond that tile is a part of
       that object (objects of several parts) and dropped.
    2. Of whole views with an IoU of `AGREE` the one with the best score stays, the earlier one at equal scores.
    3. Cut views are dropped where whole ones cover `AGREE` of them.
    4. Cut views left over join those, cut or whole, with which they agree in the overlap of their tiles; one that
       agrees with none of a tile joins the cut one that contains it. Joined masks are united, and their score is the
       mean weighted by area.

    Args:
        views: All of one class.
        matches: Match of the views `i < j`, where there is one.

    Returns:
        The objects, each as a view.
    """
    near: list[dict[int, Match]] = [{} for _ in views]
    best: list[dict[int, float]] = [{} for _ in views]  # by tile, the highest zone_iou with a view of it
    for (i, j), match in matches.items():
        near[i][j], near[j][i] = match, match.swapped()
        for one, other in ((i, j), (j, i)):
            crop = views[other].crop
            best[one][crop] = max(best[one].get(crop, 0.0), match.zone_iou)
    whole = [i for i, view in enumerate(views) if view.whole and not _is_part(i, views, near, best)]
    kept: list[int] = []
    for i in sorted(whole, key=lambda i: -views[i].score):
        if not any(near[i][j].iou >= AGREE for j in kept if j in near[i]):
            kept.append(i)
    cover = join([views[i].runs for i in kept]) if kept else None
    cut = [
        i
        for i, view in enumerate(views)
        if not view.whole and (cover is None or shared(view.runs, cover) < AGREE * view.area)
    ]
    group = {i: i for i in (*kept, *cut)}

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i in cut:
        for j, match in near[i].items():
            if j not in group:
                continue
            inside = match.first_smaller and not views[j].whole and best[i][views[j].crop] < AGREE
            if match.zone_iou >= AGREE or inside:
                group[root(i)] = root(j)
    united = defaultdict(list)
    for i in sorted(group):
        united[root(i)].append(views[i])
    return [_unite(parts) for parts in united.values()]


def _is_part(i: int, views: Sequence[View], near: Sequence[dict[int, Match]], best: Sequence[dict[int, float]]) -> bool:
    """Whether a whole view shows one part of an object that another tile shows with more parts."""
    crop = views[i].crop
    return any(
        views[j].whole and match.first_inside and not match.second_inside and AGREE <= match.zone_iou >= best[j][crop]
        for j, match in near[i].items()
    )


def _unite(parts: Sequence[View]) -> View:
    """One view of all pixels."""
    if len(parts) == 1:
        return parts[0]
    areas = np.array([part.area for part in parts], dtype=np.float64)
    score = float(areas @ [part.score for part in parts] / areas.sum())
    runs = join([part.runs for part in parts])
    return replace(parts[0], runs=runs, area=runs.area, score=score)


def stitched(size: tuple[int, int], crops: Sequence[Crop], found: Iterable[Instances]) -> Iterator[Instances]:
    """Turn the instances of tiles into those of the image, as soon as no tile to come can change them.

    Args:
        size: Rows and columns of the image.
        crops: The tiles, as `fewlabel.data.tiles.crops` lists them; any order works, raster order keeps least.
        found: Instances of each tile, with masks of the tile's size, in the order of `crops`. Views of one object are
            only recognised where their classes are equal.

    Yields:
        Instances of the image, none twice, in no particular order; source and round are those of the tile that
        completed them.

    Raises:
        DataError: There are more or fewer instances than tiles, or their sizes differ.
    """
    edges = np.array([(c.left, c.top, c.left + c.width, c.top + c.height) for c in crops]).reshape(-1, 4)
    groups = _Groups()
    alive: dict[int, View] = {}  # views that this tile or later ones can still see
    leaving: defaultdict[int, list[int]] = defaultdict(list)  # those, by the last tile that sees them
    count = 0
    for count, instances in enumerate(found, 1):
        index = count - 1
        if index >= len(crops) or tuple(instances.size) != crops[index][2:]:
            wanted = f"{list(crops[index][2:])}" if index < len(crops) else "no more than the tiles"
            raise DataError(
                f"Instances of tile {count} have the size {list(instances.size)}, expected {wanted}; give those of each"
                " tile, in the tiles' order."
            )
        done: list[View] = []
        fresh: dict[int, View] = {}
        before = list(alive.items())
        boxes = np.array([view.box for _, view in before]).reshape(-1, 4)
        numbers = np.array([view.number for _, view in before], dtype=np.int64)
        for view in _views(instances, crops[index], index, size):
            seen = np.flatnonzero(_meet(edges, view.box))
            if len(seen) == 1:
                done.append(view)
                continue
            last = int(seen[-1])
            name = groups.add(view, last)
            fresh[name] = view
            leaving[last].append(name)
            for place in np.flatnonzero(_meet(boxes, view.box) & (numbers == view.number)):
                other, earlier = before[place]
                a, b = edges[index], edges[earlier.crop]
                zone = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
                match = compare(earlier, view, zone, size[0])
                if match is not None:
                    groups.connect(other, name, match)
        alive |= fresh
        for name in leaving.pop(index, []):
            del alive[name]
            done += groups.close(name, index)
        if done:
            yield _instances(done, size, instances)
    if count < len(crops):
        raise DataError(f"There are instances of {count} tiles, expected {len(crops)}; give those of each tile.")


def stitch(size: tuple[int, int], crops: Sequence[Crop], found: Iterable[Instances]) -> Instances:
    """Turn the instances of tiles into those of the image.

    Args:
        size: Rows and columns of the image.
        crops: The tiles.
        found: Instances of each tile, in the order of `crops`; see `stitched`.

    Returns:
        All of them, in raster order of their first pixel.

    Raises:
        DataError: As `stitched`.
    """
    parts = list(stitched(size, crops, found))
    if not parts:
        return Instances(size)
    rles = [rle for part in parts for rle in part.rles]
    order = sorted(range(len(rles)), key=lambda i: (first_pixel(spans(rles[i]), size[0]), rles[i]["counts"]))
    return Instances(
        size,
        tuple(rles[i] for i in order),
        np.concatenate([part.classes for part in parts])[order],
        np.concatenate([part.scores for part in parts])[order],
        np.concatenate([part.boxes for part in parts])[order],
        parts[0].source,
        parts[0].round,
    )


def over_crops(
    size: tuple[int, int], find: Callable[[Crop], Instances], tile: int = TILE, overlap: int = OVERLAP
) -> Instances:
    """Find the objects of an image tile by tile; one tile is looked at at a time.

    Args:
        size: Rows and columns of the image.
        find: Gives the instances of one tile, with masks of the tile's size.
        tile: Side of a tile in pixels.
        overlap: Least overlap of neighbours; more than the largest object has.

    Returns:
        The instances of the image, see `stitch`.
    """
    places = crops(*size, tile, overlap)
    return stitch(size, places, (find(place) for place in places))


def _views(instances: Instances, crop: Crop, index: int, size: tuple[int, int]) -> Iterator[View]:
    """Views of one tile, with their pixels placed in the image; empty masks are left out."""
    right, bottom = crop.left + crop.width, crop.top + crop.height
    for rle, number, score in zip(instances.rles, instances.classes, instances.scores, strict=True):
        runs = shift(spans(rle), crop.height, crop.top, crop.left, size[0])
        if not runs.area:
            continue
        x0, y0, x1, y1 = corners = box(runs, size[0])
        cut = (x0 == crop.left > 0) or (y0 == crop.top > 0) or (x1 == right < size[1]) or (y1 == bottom < size[0])
        yield View(runs, corners, runs.area, int(number), float(score), index, not cut)


def _meet(boxes: np.ndarray, other: tuple[int, int, int, int]) -> np.ndarray:
    """Which of the boxes, int `(N, 4)`, share pixels with another; bool `(N,)`."""
    x0, y0, x1, y1 = other
    return (boxes[:, 0] < x1) & (boxes[:, 1] < y1) & (boxes[:, 2] > x0) & (boxes[:, 3] > y0)


class _Groups:
    """Connected views, each group until the last tile that sees one of them is done."""

    def __init__(self) -> None:
        self._serial = 0
        self._views: dict[int, View] = {}
        self._matches: dict[int, dict[int, Match]] = {}  # of a view with earlier ones
        self._group: dict[int, int] = {}  # a group has the name of one of its views
        self._members: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}  # by group, the last tile that sees it

    def add(self, view: View, last: int) -> int:
        """Take a view that tile `last` is the last to see; returns its name."""
        name = self._serial
        self._serial += 1
        self._views[name], self._matches[name], self._group[name] = view, {}, name
        self._members[name], self._last[name] = [name], last
        return name

    def connect(self, earlier: int, later: int, match: Match) -> None:
        """Put the groups of two views together."""
        self._matches[later][earlier] = match
        keep, drop = self._group[earlier], self._group[later]
        if keep == drop:
            return
        if len(self._members[keep]) < len(self._members[drop]):
            keep, drop = drop, keep
        for name in self._members[drop]:
            self._group[name] = keep
        self._members[keep] += self._members.pop(drop)
        self._last[keep] = max(self._last[keep], self._last.pop(drop))

    def close(self, name: int, index: int) -> list[View]:
        """Objects of the group of a view if tile `index` is the last to see it; the group is forgotten."""
        if name not in self._group or self._last[self._group[name]] > index:
            return []
        root = self._group[name]
        del self._last[root]
        names = sorted(self._members.pop(root))
        place = {member: i for i, member in enumerate(names)}
        matches = {(place[a], place[b]): match for b in names for a, match in self._matches.pop(b).items()}
        for member in names:
            del self._group[member]
        return resolve([self._views.pop(member) for member in names], matches)


def _instances(done: Sequence[View], size: tuple[int, int], like: Instances) -> Instances:
    """Instances of the image."""
    runs = Spans(
        np.concatenate([view.runs.starts for view in done]), np.concatenate([view.runs.stops for view in done])
    )
    edges = np.cumsum([0, *(len(view.runs.starts) for view in done)])
    return Instances(
        size,
        tuple(from_many_spans(runs, edges, size)),
        np.array([view.number for view in done], dtype=np.int64),
        np.array([view.score for view in done], dtype=np.float32),
        np.array([box(view.runs, size[0]) for view in done], dtype=np.float32),
        like.source,
        like.round,
    )
