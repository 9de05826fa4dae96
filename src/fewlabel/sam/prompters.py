"""Where to ask SAM: a regular grid, or the peaks, boxes and coarse masks that stand out in the response of a prior.

All of it is pure: a response goes in, prompts for `fewlabel.sam.everything` come out, strongest first. Points are xy in
continuous image pixels, so the centre of column c is c + 0.5; boxes are xyxy pixel edges.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.core.masks import boxes as tight_boxes
from fewlabel.core.masks import component_boxes, components

GAUSSIAN = 1.4826  # standard deviation of a normal distribution over its median absolute deviation

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Proposals:
    """P prompts for one image; a proposal has a point, a box or both, and may have a coarse mask.

    Attributes:
        strengths: float32 `(P,)`, how much speaks for each proposal, in the unit of whatever made them.
        points: float32 `(P, 2)` xy of one foreground click each, or None.
        boxes: float32 `(P, 4)` xyxy, or None.
        regions: int `(H, W)` or None; the coarse mask of proposal i is where it equals i + 1.
    """

    strengths: Floats
    points: Floats | None = None
    boxes: Floats | None = None
    regions: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        count = len(self.strengths)
        points, boxes = (None if part is None else part.shape for part in (self.points, self.boxes))
        if (points, boxes) == (None, None) or points not in (None, (count, 2)) or boxes not in (None, (count, 4)):
            raise DataError(
                f"Proposals have {count} strengths but points of shape {points} and boxes of shape {boxes}; give "
                "points (P, 2), boxes (P, 4) or both, one per strength."
            )

    def __len__(self) -> int:
        return len(self.strengths)

    @property
    def centres(self) -> Floats:
        """Centre of each proposal, float32 `(P, 2)` xy: its point, or else the middle of its box."""
        if self.points is not None:
            return self.points
        assert self.boxes is not None  # one of the two is given
        return ((self.boxes[:, :2] + self.boxes[:, 2:]) / 2).astype(np.float32)


def grid_points(side: int, size: tuple[int, int]) -> Floats:
    """Centres of the cells of a regular grid over an image, as in SAM's automatic procedure (SAM, appendix B).

    Args:
        side: Points along each axis, at least 1.
        size: (H, W) of the image.

    Returns:
        float32 `(side * side, 2)` xy in raster order.
    """
    share = (np.arange(side) + 0.5) / side
    rows, columns = np.meshgrid(share * size[0], share * size[1], indexing="ij")
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float32)


def robust_level(response: np.ndarray, deviations: float, floor: float) -> float:
    """Level above which a response stands out: `max(floor, median + deviations * 1.4826 * MAD)`.

    MAD is the median absolute deviation, so a few strong targets do not raise the level. A response that is 0 nearly
    everywhere has neither median nor deviation; there the floor alone decides.

    Args:
        response: float `(H, W)`, finite.
        deviations: Number of robust standard deviations.
        floor: Least level, in the response's unit.

    Raises:
        DataError: `response` is not `(H, W)`, is empty or holds a value that is not finite.
    """
    if response.ndim != 2 or response.size == 0 or not np.isfinite(response).all():
        raise DataError(
            f"A response to take prompts from has shape {response.shape} and {int((~np.isfinite(response)).sum())} "
            "values that are not finite; give one finite map (H, W)."
        )
    median = float(np.median(response))
    return max(floor, median + deviations * GAUSSIAN * float(np.median(np.abs(response - median))))


def peaks(
    response: np.ndarray, *, deviations: float = 3.0, floor: float = 0.0, distance: float = 4.0, most: int = 100
) -> Proposals:
    """Points at the local maxima of a response.

    A maximum is a pixel that no 8-neighbour exceeds. They are taken strongest first (raster order among equals), and
    one that is nearer than `distance` to a stronger one is left out; so a plateau gives one point, a flat map none.

    Args:
        response: float `(H, W)`, finite; high where something is.
        deviations: Robust standard deviations above the median that a peak must exceed, see `robust_level`.
        floor: Value that a peak must exceed whatever the rest of the map.
        distance: Least distance of two peaks in pixels.
        most: Largest number of peaks.

    Returns:
        Points at pixel centres with the response there as their strength.

    Raises:
        DataError: `response` is not one finite map `(H, W)`.
    """
    level = robust_level(response, deviations, floor)
    highest = ndimage.maximum_filter(response, size=3, mode="nearest")
    rows, columns = np.nonzero((response == highest) & (response > level))
    strengths = response[rows, columns]
    reach = max(int(np.ceil(distance)) - 1, 0)
    offsets = np.arange(-reach, reach + 1)
    disc = np.hypot(offsets[:, None], offsets) < distance
    taken = np.zeros((response.shape[0] + 2 * reach, response.shape[1] + 2 * reach), bool)
    kept: list[int] = []
    for index in np.argsort(-strengths, kind="stable"):
        if len(kept) == most:
            break
        row, column = int(rows[index]), int(columns[index])
        if not taken[row + reach, column + reach]:
            taken[row : row + 2 * reach + 1, column : column + 2 * reach + 1] |= disc
            kept.append(int(index))
    points = np.stack([columns[kept], rows[kept]], axis=1) + 0.5
    return Proposals(strengths[kept].astype(np.float32), points.astype(np.float32))


def boxes(
    response: np.ndarray, *, deviations: float = 3.0, floor: float = 0.0, margin: float = 1.0, most: int = 100
) -> Proposals:
    """Boxes around the connected components of a response.

    Args:
        response: float `(H, W)`, finite.
        deviations: Robust standard deviations above the median where components begin, see `robust_level`.
        floor: Value that every pixel of a component exceeds.
        margin: Pixels added on each side, up to the image's border.
        most: Largest number of boxes; components with the highest maxima come first.

    Returns:
        Boxes with the highest response inside as their strength.

    Raises:
        DataError: `response` is not one finite map `(H, W)`.
    """
    strengths, _, labels = _strongest(response, robust_level(response, deviations, floor), most)
    return Proposals(strengths, boxes=_widen(component_boxes(labels, len(strengths)), margin, response.shape))


def coarse_masks(response: np.ndarray, *, deviations: float = 3.0, floor: float = 0.0, most: int = 100) -> Proposals:
    """Connected components of a response as coarse masks, each with a point at its strongest pixel.

    Args:
        response: float `(H, W)`, finite.
        deviations: Robust standard deviations above the median where components begin, see `robust_level`.
        floor: Value that every pixel of a component exceeds.
        most: Largest number of components; those with the highest maxima come first.

    Returns:
        Points and regions with the highest response inside as their strength.

    Raises:
        DataError: `response` is not one finite map `(H, W)`.
    """
    strengths, points, labels = _strongest(response, robust_level(response, deviations, floor), most)
    return Proposals(strengths, points, regions=labels)


def grow(grey: np.ndarray, point: np.ndarray, half: int = 7) -> NDArray[np.bool_]:
    """Region around a point that lies beyond half way from its surroundings' median to its own level.

    Args:
        grey: float `(H, W)` in any unit.
        point: `(2,)` xy in the image.
        half: Half side in pixels of the square of surroundings.

    Returns:
        bool `(H, W)`, the 8-connected region of the point's pixel.
    """
    row, column = (int(np.clip(point[1 - axis], 0, grey.shape[axis] - 1)) for axis in (0, 1))
    around = grey[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    level, base = float(grey[row, column]), float(np.median(around))
    sign = 1.0 if level >= base else -1.0
    labels, _ = components(sign * grey >= sign * (level + base) / 2)
    return np.asarray(labels == labels[row, column])


def with_boxes(grey: np.ndarray, proposals: Proposals, half: int = 7, margin: float = 1.0) -> Proposals:
    """The same points, each with a box around the region that `grow` finds from it.

    Args:
        grey: float `(H, W)` in any unit.
        proposals: P proposals with points.
        half: Half side in pixels of the square of surroundings.
        margin: Pixels added on each side, up to the image's border.

    Returns:
        Proposals with points and boxes, in the same order.
    """
    grown = np.zeros((len(proposals), 4), np.float32)
    for box, point in zip(grown, proposals.centres, strict=True):
        box[:] = tight_boxes(grow(grey, point, half)[None])[0]
    return replace(proposals, boxes=_widen(grown, margin, grey.shape))


def _widen(edges: Floats, margin: float, size: tuple[int, ...]) -> Floats:
    """Boxes `(P, 4)` with a margin on each side, cut to an image of `size` (H, W)."""
    sides = np.array([-margin, -margin, margin, margin], np.float32)
    return np.clip(edges + sides, 0, np.array([size[1], size[0]] * 2, np.float32))


def _strongest(response: np.ndarray, level: float, most: int) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """Maximum, its pixel's centre and the label map of the components above a level, highest maximum first."""
    labels, count = components(response > level)
    numbers = np.arange(1, count + 1)
    heights = np.array(ndimage.maximum(response, labels, numbers), np.float32)
    order = np.argsort(-heights, kind="stable")[:most]
    where = np.array(ndimage.maximum_position(response, labels, numbers), np.float32).reshape(count, 2)
    renumbered = np.zeros(count + 1, np.int32)
    renumbered[order + 1] = np.arange(1, len(order) + 1)
    return heights[order], where[order, ::-1] + np.float32(0.5), renumbered[labels]
