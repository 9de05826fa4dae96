"""CVAT's own format for images ("CVAT for images 1.1").

::

    root/annotations.xml    <annotations>: labels in <meta>, one <image> per annotated image with its shapes in it
    root/images/NAME        the images, with any folders in their names; or beside annotations.xml

The root may also be the XML file. Read are polygons, masks, ellipses and boxes, also turned ones; polylines, points,
cuboids, skeletons and tags mark no area and are passed over. Coordinates are pixel edges, as CVAT draws them. Shapes of
one label and one group in an image are one object. Shapes may cover each other: each object keeps its whole area.

An image that the file lists has labels, be they none, so export a job when it is finished; images that it does not
list are unlabelled. The subset of an image (train, val, test or the like) is its part; without a subset it trains.

The file is read as a stream: only places of images in it are kept, and shapes are read when their image is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle, encode
from fewlabel.data import polygons
from fewlabel.data.dataset import Canvas, Problem
from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import ENDINGS, FolderDataset, Index, Labels, below, id_of, refuse_size
from fewlabel.data.readers.lists import folder_parts
from fewlabel.data.readers.xml import Document, number_of, outermost, shown, text_of

FILE, IMAGES = "annotations.xml", "images"
SHAPES = ("polygon", "mask", "box", "ellipse")
CORNERS = 128
"""Corners of the polygon that stands for an ellipse: it leaves out 0.03 % of the radius at most."""


class CvatDataset(FolderDataset):
    """A data set that CVAT exported for images."""

    format = "cvat"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        path = _file(root)
        return f"it holds CVAT's {path.name}" if path.is_file() and outermost(path) == "annotations" else None

    def _index(self) -> Index:
        path = _file(self.root)
        if not path.is_file():
            raise DataError(
                f"{self.root} has no {FILE}: export the task from CVAT in the format 'CVAT for images 1.1'."
            )
        folder = path.parent / IMAGES if (path.parent / IMAGES).is_dir() else path.parent
        images = below(folder)
        if not images:
            raise DataError(
                f"{folder} holds no image: export with images, or put files that end with {', '.join(ENDINGS)} there."
            )
        self._document = Document(path, "annotations")
        self._starts: dict[str, int] = {}
        folders, problems = dict.fromkeys(images, ""), list[Problem]()
        named, used, plain = list[str](), set[str](), True
        for element, start in self._document.children():
            if element.tag == "track":
                raise FileError(path, f"{path} holds tracks of a video: export it as 'CVAT for images 1.1' instead.")
            if element.tag == "meta":
                named += [text_of(label, "name") for labels in element.iter("labels") for label in labels.iter("label")]
            elif element.tag == "image":
                id, problem = _match(element, path, images, self._starts)
                if problem is not None:
                    problems.append(problem)
                    continue
                self._starts[id], folders[id] = start, element.get("subset", "")
                used.update(shape.get("label", "").strip() for _, shape in _shapes(element))
                plain = plain and all(_is_plain_box(shape) for _, shape in _shapes(element))
        self.boxes_only = plain and bool(used)
        classes = tuple(dict.fromkeys(name for name in named if name)) or tuple(sorted(used - {""})) or ("target",)
        self._class = {name: index for index, name in enumerate(classes)}
        parts = folder_parts(folders, self._starts)
        return Index(images, frozenset(self._starts), *parts, classes, tuple(problems))

    def _labels(self, id: str, image: Canvas) -> Labels:
        path, element = self._document.path, self._document.child(self._starts[id])
        told = [number_of(element.get(side), path, f"{side} of image '{id}'") for side in ("height", "width")]
        refuse_size(path, f"annotation of '{id}'", (int(told[0]), int(told[1])), image)
        # By group, label, and the shape's number if it has no group: it is an object of its own then.
        objects: dict[tuple[str, str, int], list[tuple[Rle, np.ndarray | None]]] = {}
        for number, shape in _shapes(element):
            label, group = shape.get("label", "").strip(), shape.get("group_id") or "0"
            where = f"shape {number} of image '{id}'"
            if label not in self._class:
                raise FileError(
                    path,
                    f"{path}: {where} has the label {shown(label)}, which is none of the {len(self._class)} labels:"
                    " mend it or add the label to <meta>.",
                )
            objects.setdefault((group, label, number if group == "0" else 0), []).append(
                _fill(shape, image.size, path, where)
            )
        rles = [polygons.union([rle for rle, _ in pieces]) for pieces in objects.values()]
        boxes = [pieces[0][1] if len(pieces) == 1 else None for pieces in objects.values()]
        classes = [self._class[label] for _, label, _ in objects]
        return Labels(polygons.instances(image.size, rles, classes, boxes))


def _file(root: Path) -> Path:
    return root if root.suffix.lower() == ".xml" else root / FILE


def _match(
    element: Element, path: Path, images: dict[str, tuple[Path, ...]], starts: dict[str, int]
) -> tuple[str, Problem | None]:
    """The id of an <image> element; projects keep the images of a subset in a folder of its name."""
    name, subset = element.get("name", ""), element.get("subset", "")
    id = next((id for id in (id_of(name), id_of(f"{subset}/{name}")) if id in images), id_of(name))
    if id not in images:
        return id, Problem(
            id, path, f"{path}: image {shown(name)} has no file beside it: add it or remove the <image>."
        )
    if id in starts:
        return id, Problem(id, path, f"{path}: image {shown(name)} is listed twice: keep one of its <image> elements.")
    return id, None


def _shapes(element: Element) -> Iterator[tuple[int, Element]]:
    """Shapes that mark areas, with their place among all children, counted from 1."""
    return ((number, shape) for number, shape in enumerate(element, 1) if shape.tag in SHAPES)


def _is_plain_box(shape: Element) -> bool:
    """Whether a shape is a box along the axes, alone in its group."""
    return shape.tag == "box" and (shape.get("group_id") or "0") == "0" and not _is_turned(shape)


def _is_turned(shape: Element) -> bool:
    try:
        return float(shape.get("rotation", "0")) % 360 != 0
    except ValueError:
        return True


def _fill(shape: Element, size: tuple[int, int], path: Path, where: str) -> tuple[Rle, np.ndarray | None]:
    """Mask of a shape, and its exact box if it is one."""

    def values(*names: str) -> list[float]:
        return [number_of(shape.get(name), path, f"{name} of {where}") for name in names]

    try:
        if shape.tag == "mask":
            return _unpacked(shape.get("rle", ""), values("left", "top", "width", "height"), size), None
        if shape.tag == "polygon":
            pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
            points = [[number_of(text, path, f"a coordinate of {where}") for text in pair] for pair in pairs]
            if any(len(pair) != 2 for pair in points):
                raise polygons.ShapeError("a point has not two coordinates")
            return polygons.rasterise([np.array(points)], size), None
        if shape.tag == "ellipse":
            x, y, across, down = values("cx", "cy", "rx", "ry")
            at = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
            outline = np.stack([across * np.cos(at), down * np.sin(at)], axis=1)
        else:
            x0, y0, x1, y1 = values("xtl", "ytl", "xbr", "ybr")
            if not _is_turned(shape):
                return polygons.fill_box((x0, y0, x1, y1), size)
            x, y, across, down = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
            outline = np.array([(-across, -down), (across, -down), (across, down), (-across, down)])
        angle = math.radians(
            number_of(shape.get("rotation", "0"), path, f"rotation of {where}")
        )  # clockwise, y is down
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        return polygons.rasterise([outline @ turn + (x, y)], size), None
    except polygons.ShapeError as error:
        raise FileError(path, f"{path}: {where} cannot be used, {error}: mend or remove it.") from error


def _unpacked(text: str, place: list[float], size: tuple[int, int]) -> Rle:
    """CVAT's run-length code: runs of background and object in turn, along the rows of the mask's own box.

    Args:
        text: Lengths of the runs.
        place: Left, top, width and height of the box in pixels.
        size: Image rows and columns.
    """
    left, top, width, height = (int(value) for value in place)
    if [left, top, width, height] != place or min(left, top, width - 1, height - 1) < 0:
        raise polygons.ShapeError(f"a mask has the box {place}, expected whole numbers and at least one pixel")
    if left + width > size[1] or top + height > size[0]:
        raise polygons.ShapeError(f"a mask ends at x {left + width}, y {top + height}, outside its image")
    try:
        counts = np.array([int(count) for count in text.split(",")], dtype=np.int64)
    except (ValueError, OverflowError):
        raise polygons.ShapeError("a run-length code is no list of whole numbers") from None
    # Bounds come before sums and repeats: no length may wrap around or take memory beyond the image.
    if counts.min() < 0 or counts.max() > width * height or int(counts.sum()) != width * height:
        raise polygons.ShapeError(f"a run-length code does not cover the {width * height} pixels of its box")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if not inside.any():
        raise polygons.ShapeError("a mask is empty")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return encode(mask)
