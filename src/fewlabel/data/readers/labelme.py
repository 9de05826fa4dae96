"""LabelMe's JSON: one file per image, beside it or in a folder of its own.

::

    root/ID.png          images, with any folders in the root
    root/ID.json         its labels; "imagePath" may also lead to the image from elsewhere in the root
    root/labels.txt      names of the classes in order, one per line; without it they are sorted by name

Shapes are polygons, rectangles, circles and masks (of brush or AI tools); those of one label and one "group_id" are
one object. The label ``__ignore__`` marks regions to ignore, as it does in LabelMe's own lists. Lines and points have
no area and are an error. Folders named train, val or valid, and test are parts. An image without a file is unlabelled,
one whose file has no shape is labelled with nothing.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import PngImagePlugin

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle, areas, encode
from fewlabel.core.types import Instances
from fewlabel.data.dataset import Canvas, Problem
from fewlabel.data.pixels import FileError
from fewlabel.data.polygons import ShapeError, fill_box, instances, rasterise, union
from fewlabel.data.readers.base import ENDINGS, TARGET, FolderDataset, Index, Labels, below
from fewlabel.data.readers.documents import ends_of, image_name, name_images, part_in, read_object, read_text
from fewlabel.data.readers.lists import held_out

IGNORE = "__ignore__"
NOT_CLASSES = (IGNORE, "_background_")  # of labels.txt
POLYGONS = ("polygon", "rotation", "quadrilateral")
AREAS = (*POLYGONS, "rectangle", "circle", "mask")
SIGNS = (b'"imagePath"', b'"imageData"', b'"imageHeight"')
LOOKED_AT = 20  # files that are opened to recognise the format


class Shape(NamedTuple):
    """One shape.

    Attributes:
        place: Its place in the file, from 0.
        label: Name of its class.
        group: Number that shapes of one object share, or None.
        kind: One of `AREAS`.
        points: x and y in turn, in pixels.
        picture: Base64 text of a mask's PNG; empty for others.
    """

    place: int
    label: str
    group: int | str | None
    kind: str
    points: array[float]
    picture: str


class Sheet(NamedTuple):
    """One file.

    Attributes:
        file: The file.
        image: "imagePath", or "" if the file does not say.
        size: Rows and columns that it tells of its image; None if it does not.
        shapes: Its shapes.
    """

    file: Path
    image: str
    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]


class LabelmeDataset(FolderDataset):
    """A data set of LabelMe's files."""

    format = "labelme"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        try:
            files = [path for paths in below(root, (".json",)).values() for path in paths]
        except OSError:
            return None
        found = next((path for path in files[:LOOKED_AT] if is_labelme(path)), None)
        return f"it holds the LabelMe file {found.relative_to(root)}" if found else None

    def _index(self) -> Index:
        files = sorted(path for paths in below(self.root).values() for path in paths)
        if not files:
            raise DataError(f"{self.root} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        ids = name_images(((path, image_name(path, self.root)) for path in files), self.root)
        images = defaultdict[str, tuple[Path, ...]](tuple)
        for path, id in ids.items():
            images[id] += (path,)
        problems: list[Problem] = []
        self._sheets: dict[str, Sheet] = {}
        for sheet in self._read(files, ids, problems):
            image = find_image(sheet, ids, self.root)
            if image is None:
                where = f"JSON file {sheet.file}: its image {sheet.image!r}"
                reason = f"{where} is not below {self.root}: add it or remove the file."
                problems.append(Problem(sheet.file.stem, sheet.file, reason))
            elif ids[image] in self._sheets:
                known = self._sheets[ids[image]].file
                reason = f"JSON file {sheet.file}: the image {image} has labels already in {known}: keep one of them."
                problems.append(Problem(ids[image], sheet.file, reason))
            else:
                self._sheets[ids[image]] = sheet
        classes = find_classes(self.root, self._sheets.values())
        self._indexes = {name: number for number, name in enumerate(classes)}
        groups = [
            group for sheet in self._sheets.values() for group in objects(sheet.shapes) if group[0].label != IGNORE
        ]
        self.boxes_only = bool(groups) and all([shape.kind for shape in group] == ["rectangle"] for group in groups)
        parts = defaultdict[str, list[str]](list)
        for path, id in ids.items():
            found = [part for folder in path.relative_to(self.root).parts[:-1] if (part := part_in(folder))]
            parts[found[0] if found else "train"].append(id)
        held = held_out(parts["train"], parts["val"], parts["test"], self._sheets)
        return Index(dict(images), frozenset(self._sheets), *held, classes=classes, problems=tuple(problems))

    def _read(self, images: Sequence[Path], ids: dict[Path, str], problems: list[Problem]) -> Iterator[Sheet]:
        """All files, once; those that are damaged become problems of the image they lie beside."""
        beside = {path.with_suffix(""): ids[path] for path in images}
        for paths in below(self.root, (".json",)).values():
            for path in paths:
                id = beside.get(path.with_suffix(""))
                if id is None and not is_labelme(path):
                    continue
                try:
                    yield read_sheet(path)
                except FileError as error:
                    problems.append(Problem(id or path.stem, path, str(error)))

    def _labels(self, id: str, image: Canvas) -> Labels:
        sheet = self._sheets[id]
        if sheet.size is not None and sheet.size != image.size:
            raise FileError(
                sheet.file,
                f"JSON file {sheet.file} is about an image of {sheet.size[0]} x {sheet.size[1]} pixels (height x"
                f" width), but {image.path} is {image.height} x {image.width}: label it again at this size.",
            )
        found: dict[bool, list[tuple[Rle, int, np.ndarray | None]]] = {False: [], True: []}
        for group in objects(sheet.shapes):
            rles, boxes = [], []
            for shape in group:
                try:
                    if shape.label != IGNORE and shape.label not in self._indexes:
                        raise ShapeError(f"the label {shape.label!r} is not in labels.txt")
                    rle, box = read_shape(shape, image.size)
                except ShapeError as error:
                    reason = f"JSON file {sheet.file}, shape {shape.place}: {error}: correct or remove it."
                    raise FileError(sheet.file, reason) from None
                rles.append(rle)
                boxes.append(box)
            whole, box = (rles[0], boxes[0]) if len(rles) == 1 else (union(rles), None)
            if areas([whole])[0]:
                found[group[0].label == IGNORE].append((whole, self._indexes.get(group[0].label, 0), box))
        made = {ignored: _instances(image.size, kept) for ignored, kept in found.items()}
        return Labels(made[False], made[True] if len(made[True]) else None)


def is_labelme(path: Path) -> bool:
    """Whether a file begins and ends like LabelMe's JSON; never raises."""
    ends = ends_of(path)
    return b'"shapes"' in ends and any(sign in ends for sign in SIGNS)


def read_sheet(path: Path) -> Sheet:
    """Read one file; the image that may be embedded in it is not kept.

    Raises:
        FileError: It is no JSON of this kind, or a shape has no area or is not described.
    """
    value = read_object(path)
    if not isinstance(value.get("shapes"), list):
        raise FileError(path, f"JSON file {path} has no list 'shapes': expected a file of LabelMe.")
    shapes = []
    for place, entry in enumerate(value["shapes"]):
        try:
            shapes.append(_shape(place, entry))
        except ShapeError as error:
            raise FileError(path, f"JSON file {path}, shape {place}: {error}: correct or remove it.") from None
    height, width = value.get("imageHeight"), value.get("imageWidth")
    image = value.get("imagePath")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return Sheet(path, image if isinstance(image, str) else "", size, tuple(shapes))


def find_image(sheet: Sheet, known: dict[Path, str], root: Path) -> Path | None:
    """The image of a file: where "imagePath" leads, or of that name beside it, or of its own name beside it."""
    steps = sheet.image.replace("\\", "/")
    beside = sheet.file.with_suffix("")
    places = [Path(os.path.normpath(sheet.file.parent / steps)), sheet.file.parent / steps.rpartition("/")[2]]
    places += [beside.with_name(beside.name + ending) for ending in (*ENDINGS, *map(str.upper, ENDINGS))]
    return next((place for place in places if place in known), None)


def find_classes(root: Path, sheets: Any) -> tuple[str, ...]:
    """Names of the classes: of labels.txt in its order, else of all shapes, sorted.

    Raises:
        FileError: labels.txt cannot be read.
    """
    path = root / "labels.txt"
    if path.is_file():
        lines = [line.strip() for line in read_text(path, "list of labels").splitlines()]
        names = [line for line in dict.fromkeys(lines) if line and line not in NOT_CLASSES]
        if names and all(name.isprintable() for name in names):
            return tuple(names)
        raise FileError(path, f"list of labels {path} names no class: write one name per line or remove the file.")
    return tuple(sorted({shape.label for sheet in sheets for shape in sheet.shapes} - {IGNORE})) or TARGET


def objects(shapes: Sequence[Shape]) -> list[list[Shape]]:
    """Shapes by object: those of one label and group are together, in the order of their first."""
    groups: dict[Any, list[Shape]] = {}
    for shape in shapes:
        groups.setdefault(shape.place if shape.group is None else (shape.label, shape.group), []).append(shape)
    return list(groups.values())


def read_shape(shape: Shape, size: tuple[int, int]) -> tuple[Rle, np.ndarray | None]:
    """The mask of a shape, and its exact box if it is a rectangle.

    Args:
        shape: The shape.
        size: Image rows and columns.

    Raises:
        ShapeError: It means nothing.
    """
    points = np.frombuffer(shape.points).reshape(-1, 2)
    if shape.kind in POLYGONS:
        return rasterise([points], size), None
    if not np.isfinite(points).all():
        raise ShapeError(f"a {shape.kind} has a coordinate that is not a finite number")
    if shape.kind == "rectangle":
        return fill_box((*points.min(axis=0), *points.max(axis=0)), size)
    if shape.kind == "circle":
        return _disk(points[0], float(np.hypot(*(points[1] - points[0]))), size), None
    return _mask(shape, points, size), None


def _shape(place: int, entry: Any) -> Shape:
    """A shape out of its JSON value."""
    if not isinstance(entry, dict):
        raise ShapeError("it is no shape")
    label, kind, group = entry.get("label"), entry.get("shape_type") or "polygon", entry.get("group_id")
    if not isinstance(label, str) or not label.strip() or not label.strip().isprintable():
        raise ShapeError("it has no label of printable letters")
    if kind not in AREAS:
        known = kind if isinstance(kind, str) and len(kind) < 40 else "unknown"
        raise ShapeError(f"a shape of type {known!r} has no area, expected {', '.join(AREAS)}")
    if group is not None and (isinstance(group, bool) or not isinstance(group, int | str)):
        raise ShapeError("its group_id is neither number nor null")
    try:
        points = array("d", [side for x, y in entry["points"] for side in (x, y)])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ShapeError("its points are not a list of pairs of numbers") from None
    count = len(points) // 2
    if kind not in POLYGONS and count != 2 and not (kind == "rectangle" and count == 4):
        raise ShapeError(f"a {kind} has {count} points, expected 2")
    picture = entry.get("mask")
    if kind != "mask":
        picture = ""
    if not isinstance(picture, str):
        raise ShapeError("a mask has no picture")
    return Shape(place, label.strip(), group, kind, points, picture)


def _disk(middle: np.ndarray, radius: float, size: tuple[int, int]) -> Rle:
    """Pixels whose middle is in a circle, at least the one in its own middle."""
    x, y = middle
    if x + radius < 0 or y + radius < 0 or x - radius > size[1] or y - radius > size[0]:
        raise ShapeError(f"a circle around ({x:g}, {y:g}) of radius {radius:g} lies outside its image")
    rows, columns = np.ogrid[: size[0], : size[1]]
    mask = np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius
    if not mask.any():
        mask[int(np.clip(y, 0, size[0] - 1)), int(np.clip(x, 0, size[1] - 1))] = True
    return encode(mask)


def _mask(shape: Shape, points: np.ndarray, size: tuple[int, int]) -> Rle:
    """A mask as LabelMe's AI tools store it: a PNG of the object's box, put at its top left corner."""
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    if abs(box).max() > 10 * max(size):
        raise ShapeError(f"a mask at x {box[0]:g} to {box[2]:g} and y {box[1]:g} to {box[3]:g} lies outside its image")
    x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(base64.b64decode(shape.picture))) as png:
            width, height = png.size
            if abs(height - (y1 - y0 + 1)) > 1 or abs(width - (x1 - x0 + 1)) > 1:
                raise ShapeError(f"a mask of {height} x {width} pixels has a box of {y1 - y0 + 1} x {x1 - x0 + 1}")
            png.load()
            values = np.asarray(png.convert("L") if png.mode not in ("1", "L", "I", "I;16") else png) > 0
    except ShapeError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError):
        raise ShapeError("a mask is no PNG picture in base64") from None
    mask = np.zeros(size, dtype=bool)
    top, left = max(y0, 0), max(x0, 0)
    cut = values[top - y0 : max(size[0] - y0, 0), left - x0 : max(size[1] - x0, 0)]
    mask[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return encode(mask)


def _instances(size: tuple[int, int], kept: Sequence[tuple[Rle, int, np.ndarray | None]]) -> Instances:
    return instances(size, [rle for rle, _, _ in kept], [number for _, number, _ in kept], [box for _, _, box in kept])
