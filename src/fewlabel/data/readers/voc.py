"""Pascal VOC: an XML file of boxes per image, and maps of objects and classes where the masks are known.

::

    root/JPEGImages/ID.jpg           one file per image; any ending that fewlabel reads
    root/Annotations/ID.xml          <annotation> with <size> and one <object> per object: <name>, <bndbox>, <difficult>
    root/SegmentationObject/ID.png   map of objects: 1, 2, ..., 0 = background, 255 = ignored (a border around objects)
    root/SegmentationClass/ID.png    map of classes, likewise
    root/ImageSets/Segmentation/     train.txt, val.txt, trainval.txt, test.txt: one id per line; optional
    root/ImageSets/Main/             likewise, for data sets without maps and where Segmentation/ is missing
    root/labelmap.txt                names of the class indexes, background first; or classes.txt, class_names.txt

The root may also be the folder VOCdevkit around one such folder. Other folders are read too if XML files of this kind
lie beside the images, or in Annotations/ (annotations/) beside images/.

With maps the objects are the numbers in SegmentationObject, and an image without a map is unlabelled. Their classes
come from SegmentationClass, else from the XML file, whose n-th object is number n; without SegmentationObject each
8-connected component of a class is an object. The indexes of the classes are VOC's own unless a list names others.
An XML file beside maps that tell all is read only to find damage; what it says of objects and sizes is not compared.

Without maps the objects are the boxes, filled; difficult ones are ignored. VOC counts pixels from 1 and a box includes
its last pixel: <xmin>1</xmin> <xmax>3</xmax> are the first three pixels, 0 to 3 in pixel edges.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle
from fewlabel.core.types import Instances
from fewlabel.data import polygons
from fewlabel.data.dataset import Canvas
from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import (
    ENDINGS,
    TARGET,
    FolderDataset,
    Index,
    Labels,
    below,
    by_stem,
    list_problems,
    only,
    refuse_size,
    twins,
)
from fewlabel.data.readers.lists import find_lists, listed_parts
from fewlabel.data.readers.maps import (
    IGNORED,
    classified,
    from_indexes,
    from_numbers,
    read_map,
    read_names,
    refuse_indexes,
    region,
)
from fewlabel.data.readers.xml import Document, number_of, outermost, shown, text_of

IMAGES, BOXES, NUMBERS, INDEXES = "JPEGImages", "Annotations", "SegmentationObject", "SegmentationClass"
NAMES = ("labelmap.txt", "classes.txt", "class_names.txt")
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's own classes; their indexes in maps are 1 to 20."""

Files = dict[str, tuple[Path, ...]]
_Filled = tuple[Rle, int, np.ndarray]  # mask, class and exact box


class VocDataset(FolderDataset):
    """A data set in the layout of Pascal VOC."""

    format = "voc"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        folder = _home(root)
        for name in (BOXES, NUMBERS, INDEXES):
            if (folder / IMAGES).is_dir() and (folder / name).is_dir():
                return f"it holds {IMAGES}/ and {name}/"
        images, boxes = _plain(folder)
        first = next((paths[0] for id, paths in boxes.items() if id in images), None)
        if first is None or outermost(first) != "annotation":
            return None
        return f"it holds images and Pascal VOC's XML files, such as {first.name}"

    def _index(self) -> Index:
        home = _home(self.root)
        if (home / IMAGES).is_dir():
            images, boxes = by_stem(home / IMAGES), by_stem(home / BOXES, (".xml",))
        else:
            images, boxes = _plain(home)
        if not images:
            raise DataError(
                f"{self.root} holds no image: expected the layout {IMAGES}/ {BOXES}/ ImageSets/, or XML files beside"
                f" images that end with {', '.join(ENDINGS)}."
            )
        self._boxes, self._numbers, self._indexes = (
            {id: paths for id, paths in files.items() if id in images}
            for files in (boxes, by_stem(home / NUMBERS), by_stem(home / INDEXES))
        )
        labels = {**self._indexes, **self._numbers}
        self.boxes_only = not labels
        labels = labels or self._boxes
        if not labels:
            raise DataError(f"{self.root} has no XML file or map that is named like one of its images: rename them.")
        listed = next((read_names(path) for name in NAMES if (path := home / name).is_file()), None)
        # Maps hold indexes, which nothing but a list explains; where XML files alone name classes, they are the list.
        classes = listed or (CLASSES if self._indexes else self._named())
        self._class = {name: index for index, name in enumerate(classes)}
        sets = [home / "ImageSets" / "Main", home]
        lists = find_lists(*(sets if self.boxes_only else [home / "ImageSets" / "Segmentation", *sets]))
        problems = (
            *(problem for files in (self._boxes, self._numbers, self._indexes) for problem in twins(files)),
            *list_problems(lists.all(), images, home),
        )
        return Index(images, frozenset(labels), *listed_parts(lists, images, labels), classes, problems)

    def _named(self) -> tuple[str, ...]:
        """The names that XML files give, sorted; files that cannot be read are passed over until they are used."""
        names: set[str] = set()
        for paths in self._boxes.values():
            try:
                names.update(text_of(item, "name") for item in _objects(paths[0])[0])
            except DataError:
                continue
        return tuple(sorted(names - {""})) or TARGET

    def _labels(self, id: str, image: Canvas) -> Labels:
        if self.boxes_only:
            return self._filled(only(self._boxes[id]), image)
        if id not in self._indexes:
            return self._by_xml(id, image)
        if id in self._boxes:
            _objects(only(self._boxes[id]))  # nothing of it is used, but a broken file must not go unnoticed
        path = only(self._indexes[id])
        indexes = read_map(path, "class map", image, self.max_pixels)
        refuse_indexes(path, indexes, self.classes)
        if id not in self._numbers:
            return Labels(from_indexes(indexes), region(indexes == IGNORED))
        numbers = read_map(only(self._numbers[id]), "object map", image, self.max_pixels)
        border = numbers == IGNORED
        return classified(np.where(border, 0, numbers), np.where(border, IGNORED, indexes), path)

    def _by_xml(self, id: str, image: Canvas) -> Labels:
        """Objects of an object map; the n-th <object> of the XML file tells the class of number n."""
        map_path = only(self._numbers[id])
        numbers = read_map(map_path, "object map", image, self.max_pixels)
        if id not in self._boxes:
            raise FileError(
                map_path,
                f"object map {map_path} tells no classes: add {INDEXES}/{map_path.name} or"
                f" {BOXES}/{map_path.stem}.xml.",
            )
        path = only(self._boxes[id])
        items, _ = _objects(path)
        instances, wanted = from_numbers(np.where(numbers == IGNORED, 0, numbers))
        if len(wanted) and wanted[-1] > len(items):
            raise FileError(
                path,
                f"{path} has {len(items)} objects, but {map_path} holds the number {wanted[-1]}: add the missing"
                f" objects or {INDEXES}/{map_path.name}.",
            )
        classes = [self._class_of(items[number - 1], int(number), path) for number in wanted]
        return Labels(replace(instances, classes=np.array(classes, np.int64)), region(numbers == IGNORED))

    def _class_of(self, item: Element, number: int, path: Path) -> int:
        name = text_of(item, "name")
        if name not in self._class:
            raise FileError(
                path,
                f"{path}: object {number} is called {shown(name)}, which is none of the {len(self._class)} classes:"
                " mend its <name> or add it to the list of classes.",
            )
        return self._class[name]

    def _filled(self, path: Path, image: Canvas) -> Labels:
        """Objects of an XML file, each box filled."""
        items, size = _objects(path)
        if size is not None:
            refuse_size(path, "annotation", size, image)
        kept: list[_Filled] = []
        difficult: list[_Filled] = []
        for number, item in enumerate(items, 1):
            rle, box = _box(item, number, path, image.size)
            into = difficult if text_of(item, "difficult", "0") not in ("0", "false", "False") else kept
            into.append((rle, self._class_of(item, number, path), box))
        return Labels(_gather(kept, image.size), _gather(difficult, image.size) if difficult else None)


def _gather(objects: list[_Filled], size: tuple[int, int]) -> Instances:
    """Instances of filled boxes."""
    return polygons.instances(
        size, [row[0] for row in objects], [row[1] for row in objects], [row[2] for row in objects]
    )


def _home(root: Path) -> Path:
    """The folder that holds JPEGImages/: the root, or the only one in VOCdevkit/ (or in a folder around it)."""
    if (root / IMAGES).is_dir():
        return root
    found = [path.parent for pattern in ("*/", "VOCdevkit/*/") for path in sorted(root.glob(pattern + IMAGES))]
    return found[0] if len(found) == 1 else root


def _plain(root: Path) -> tuple[Files, Files]:
    """Images and XML files of other folders, by ids that fit each other."""
    images = root / "images" if (root / "images").is_dir() else root
    boxes = next((path for name in (BOXES, "annotations") if (path := root / name).is_dir()), images)
    return below(images), {
        id.removesuffix(".xml"): paths for id, paths in below(boxes, (".xml",)).items()
    }  # `id_of` drops the endings of images only


def _objects(path: Path) -> tuple[list[Element], tuple[int, int] | None]:
    """The <object> elements of a file in order, and the image's rows and columns if it tells them."""
    items, size = [], None
    for child, _ in Document(path, "annotation").children():
        if child.tag == "object":
            items.append(child)
        elif child.tag == "size":
            height, width = (number_of(text_of(child, side, "0"), path, f"<{side}>") for side in ("height", "width"))
            size = (int(height), int(width)) if height > 0 and width > 0 else None  # some tools leave it at 0
    return items, size


def _box(item: Element, number: int, path: Path, size: tuple[int, int]) -> tuple[Rle, np.ndarray]:
    """The box of an object, filled, and its exact edges float32 (4,), xyxy."""
    box = item.find("bndbox")
    if box is None:
        raise FileError(path, f"{path}: object {number} has no <bndbox>: draw its box or remove it.")
    x0, y0, x1, y1 = (
        number_of(box.findtext(side), path, f"<{side}> of object {number}") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    try:
        return polygons.fill_box((x0 - 1, y0 - 1, x1, y1), size)
    except polygons.ShapeError as error:
        raise FileError(path, f"{path}: object {number} cannot be used, {error}: mend or remove it.") from error
