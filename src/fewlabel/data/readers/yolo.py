"""YOLO's text labels, polygons or boxes: one file per image, one object per line.

::

    root/data.yaml               names (list, or class number: name); train, val, test (folder, list of folders, or a
                                 .txt list of images); any name that ends with .yaml or .yml
    root/classes.txt             or the names alone, one per line
    root/images/train/ID.png     and root/labels/train/ID.txt; likewise val/ and test/, or without folders of parts
    root/train/images/ID.png     and root/train/labels/ID.txt; likewise valid/ and test/, as Roboflow exports it
    root/ID.png, root/ID.txt     or side by side

A line is ``class cx cy w h`` (a box) or ``class x y x y x y ...`` (a polygon of 3 points or more), all in 0..1 of the
image's width and height. An empty file says that there is nothing in the image; without a file it is unlabelled.
A sixth column after boxes (a confidence or a track) is passed over where every line of the file has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle
from fewlabel.data.dataset import Canvas, Problem
from fewlabel.data.pixels import FileError
from fewlabel.data.polygons import ShapeError, fill_box, instances, rasterise
from fewlabel.data.readers.base import ENDINGS, FolderDataset, Index, Labels, below, by_stem
from fewlabel.data.readers.documents import image_name, name_images, read_text
from fewlabel.data.readers.lists import held_out
from fewlabel.data.readers.yolo_layout import (
    CLASSES,
    PARTS,
    Names,
    find_names,
    find_yaml,
    folder_parts,
    is_yaml,
    named_parts,
)

BEYOND = 1.0  # how far from 0..1 a coordinate may be and still be a share of the width; it is cut at the image's edge


class YoloDataset(FolderDataset):
    """A data set with YOLO's labels."""

    format = "yolo"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        if root.is_file():
            return "it is YOLO's data.yaml" if is_yaml(root) else None
        if not root.is_dir():
            return None
        try:
            if found := find_yaml(root):
                return f"it holds {found[0].name} with names of classes"
            for images in (root / "images", *(root / part / "images" for part in ("train", "valid", "val", "test"))):
                labels = images.parent / "labels"
                if images.is_dir() and labels.is_dir() and below(labels, (".txt",)):
                    return f"it holds {images.relative_to(root)}/ and text files in {labels.relative_to(root)}/"
            names = next((name for name in CLASSES if (root / name).is_file()), None)
            if names and set(by_stem(root)) & set(by_stem(root, (".txt",))):
                return f"it holds {names} and text files beside images"
        except OSError:
            return None
        return None

    def _index(self) -> Index:
        self._names = find_names(self.root)
        folder = self._names.folder
        parts = named_parts(self._names) if self._names.parts else folder_parts(folder)
        files = list(dict.fromkeys(path for part in parts.values() for path in part))
        if not files:
            raise DataError(f"{self.root} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        ids = name_images(((path, image_name(path, folder)) for path in files), folder)
        images: dict[str, tuple[Path, ...]] = {}
        for path, id in ids.items():
            images[id] = (*images.get(id, ()), path)
        self._texts = {ids[path]: text for path in files if (text := label_file(path, folder)) is not None}
        self.boxes_only = only_boxes(self._texts.values())
        labelled = frozenset(self._texts)
        train, val, test = ([ids[path] for path in parts[part]] for part in PARTS)
        held = held_out(train, val, test, labelled)
        problems = tuple(_shared(parts, ids, self._names.file))
        return Index(images, labelled, *held, classes=self._names.classes, problems=problems)

    def _labels(self, id: str, image: Canvas) -> Labels:
        path = self._texts[id]
        rles: list[Rle] = []
        classes: list[int] = []
        boxes: list[np.ndarray | None] = []
        for number, row in read_rows(path):
            try:
                index = _class(row[0], self._names)
                scaled = row[1:] * np.tile([image.width, image.height], len(row) // 2)
                if len(row) == 5:
                    x, y, width, height = scaled.tolist()
                    rle, box = fill_box((x - width / 2, y - height / 2, x + width / 2, y + height / 2), image.size)
                    boxes.append(box)
                else:
                    rle = rasterise([scaled.reshape(-1, 2)], image.size)
                    boxes.append(None)
            except ShapeError as error:
                reason = f"label file {path}, line {number}: {error}: correct or remove the line."
                raise FileError(path, reason) from None
            rles.append(rle)
            classes.append(index)
        return Labels(instances(image.size, rles, classes, boxes))


def label_file(image: Path, folder: Path) -> Path | None:
    """The label file of an image, or None: in labels/ where the image is in images/, or beside it."""
    steps = list(image.relative_to(folder).parts[:-1])
    name = f"{image.stem}.txt"
    places = [image.with_name(name)]
    if "images" in steps:
        last = len(steps) - 1 - steps[::-1].index("images")
        steps[last] = "labels"
        places.insert(0, folder.joinpath(*steps, name))
    return next((place for place in places if place.is_file()), None)


def read_rows(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The objects of a label file.

    Yields:
        Number of the line, from 1, and float64 `(K,)`: the class and 4 numbers of a box or 6 or more of a polygon.

    Raises:
        FileError: A line has a wrong number of columns, or something that is no finite number near 0..1.
    """
    lines = [(number, line.split()) for number, line in enumerate(read_text(path, "label file").splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words]
    extra = bool(lines) and all(len(words) == 6 for _, words in lines)
    for number, words in lines:
        where = f"label file {path}, line {number}:"
        if not extra and (len(words) < 5 or len(words) % 2 == 0):
            raise FileError(
                path,
                f"{where} it has {len(words)} columns, expected 5 of a box (class cx cy w h) or a class and pairs of 3"
                " or more points: correct or remove the line.",
            )
        try:
            row = np.array([float(word) for word in (words[:5] if extra else words)])
        except ValueError:
            raise FileError(path, f"{where} it holds something that is no number: correct or remove it.") from None
        if not np.isfinite(row).all() or (row[1:] < -BEYOND).any() or (row[1:] > 1 + BEYOND).any():
            reason = "it holds a coordinate that is no share of the image in 0..1: divide by its width and height."
            raise FileError(path, f"{where} {reason}")
        yield number, row


def only_boxes(texts: Iterable[Path]) -> bool:
    """Whether label files hold boxes and no polygon; files that cannot be read are passed over here."""
    found = False
    for path in texts:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        for line in data.splitlines():
            columns = len(line.split())
            if columns > 6:
                return False
            found = found or columns >= 5
    return found


def _class(value: float, names: Names) -> int:
    if not float(value).is_integer() or not 0 <= value < len(names.classes):
        count = len(names.classes)
        raise ShapeError(f"class {value:g} is none of the {count} that {names.file.name} names (0 to {count - 1})")
    return int(value)


def _shared(parts: dict[str, list[Path]], ids: dict[Path, str], file: Path) -> Iterator[Problem]:
    """Images that are in a part twice or in two parts."""
    seen: dict[Path, str] = {}
    for part, paths in parts.items():
        for path in paths:
            if path in seen:
                there = f"twice in {part}" if seen[path] == part else f"in {seen[path]} and in {part}"
                yield Problem(
                    ids[path], file, f"{file}: {path} is {there}: remove it from one of the lists or folders."
                )
            seen.setdefault(path, part)
