"""Planes of an image that is too large to hold: each gives its windows, from the file or from run-length codes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from fewlabel.core import rle
from fewlabel.core.masks import Rle, areas, decode
from fewlabel.data.large import LargeImage
from fewlabel.data.moments import prepared_windows


class Plane(Protocol):
    """A plane `(H, W)` that is made window by window.

    Attributes:
        shape: Rows and columns.
        nbytes: Memory that it takes between reads.
    """

    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102  described above
    @property
    def nbytes(self) -> int: ...  # noqa: D102

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The window `(height, width)` whose first pixel is (top, left); it lies inside the plane."""
        ...


class GreyPlane:
    """float32: what networks are given of a large image, see `fewlabel.data.moments.prepared_windows`.

    Args:
        image: The image; its radiometry is none that needs the whole. Its statistics are taken now, in one pass.
    """

    def __init__(self, image: LargeImage) -> None:
        self.shape, self.nbytes = image.size, image.reader.nbytes
        self.window = prepared_windows(image.radiometry, image.reader)


class ObjectPlane:
    """int32: numbers of objects, 0 = background; object i has the number i + 1.

    Where objects cover each other the smaller one is seen (of equals the later one), so that no small target vanishes
    below a large one. Each window decodes the part of the codes that lies in it.
    """

    def __init__(self, rles: Sequence[Rle], size: tuple[int, int]) -> None:
        """Take the codes of the objects' masks, all of one size; nothing is decoded."""
        self.shape = (int(size[0]), int(size[1]))
        self.nbytes = sum(len(code["counts"]) for code in rles)
        self._rles = rles

    @cached_property
    def _order(self) -> np.ndarray:
        """Objects as they are painted: later ones over earlier ones."""
        return np.argsort(-areas(self._rles), kind="stable")

    @cached_property
    def _boxes(self) -> np.ndarray:
        """Tight boxes, int64 `(N, 4)`, x first."""
        found = [rle.box(rle.spans(code), self.shape[0]) for code in self._rles]
        return np.array(found, np.int64).reshape(-1, 4)

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Plane.window`."""
        numbers = np.zeros((height, width), np.int32)
        corner = np.array([left, top])
        first = np.maximum(self._boxes[:, :2], corner)
        last = np.minimum(self._boxes[:, 2:], corner + (width, height))
        seen = (first < last).all(axis=1)
        for number in self._order[seen[self._order]]:
            (x0, y0), (x1, y1) = first[number].tolist(), last[number].tolist()
            part = decode(rle.crop(self._rles[number], y0, x0, y1 - y0, x1 - x0))
            numbers[y0 - top : y1 - top, x0 - left : x1 - left][part] = number + 1
        return numbers


class TargetPlane:
    """bool: where there is an object."""

    def __init__(self, objects: ObjectPlane) -> None:
        """See the objects as one mask."""
        self.shape, self.nbytes, self._objects = objects.shape, 0, objects

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Plane.window`."""
        return self._objects.window(top, left, height, width) > 0


class WeightPlane:
    """float32: 0 in regions that are ignored, but for the objects in them; 1 elsewhere."""

    def __init__(self, objects: ObjectPlane, ignored: ObjectPlane) -> None:
        """Take what is an object and what is ignored."""
        self.shape, self.nbytes, self._objects, self._ignored = objects.shape, ignored.nbytes, objects, ignored

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Plane.window`."""
        place = (top, left, height, width)
        left_out = self._ignored.window(*place) > 0
        if left_out.any():
            left_out &= self._objects.window(*place) == 0
        return (~left_out).astype(np.float32)
