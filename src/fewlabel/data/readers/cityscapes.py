"""Cityscapes: street scenes with fine labels.

::

    root/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    root/gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png
    root/gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json     read where instanceIds is missing
    root/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png      read where both are missing

The id is city, sequence and frame, such as ``aachen_000000_000019``; city and sequence are its group. The classes are
the eight that have instances and are evaluated. In instanceIds a number of 1000 or more is class id x 1000 + a count;
a class id alone marks a group whose objects could not be told apart: an ignored region. All other classes are
background, also caravan and trailer, which the benchmark does not evaluate.

Polygons are painted in their order, so that later ones cover earlier ones, by COCO's rules for pixels; along edges that
may differ by a pixel from the published maps. In labelIds the 8-connected components of a class are its objects.

The folder val is held out. Labels of the folder test are placeholders: its images are in neither part and unlabelled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import decode
from fewlabel.data import polygons
from fewlabel.data.dataset import Canvas
from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import FolderDataset, Index, Labels, by_stem, only, refuse_size, twins
from fewlabel.data.readers.documents import read_object
from fewlabel.data.readers.lists import folder_parts
from fewlabel.data.readers.maps import from_indexes, from_numbers, read_map

IMAGES, LABELS = "leftImg8bit", "gtFine"
PARTS = ("train", "val", "test")
IDS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
"""Evaluated classes with instances, by their ids in the maps."""

KINDS = {"instanceIds": ".png", "polygons": ".json", "labelIds": ".png"}
"""Label files, the best first, and their endings."""

COUNTED = 1000
"""Numbers from here on are class id x 1000 + a count."""

GROUP = "group"
"""What ends the label of a polygon around objects that could not be told apart."""

_UNPAINTED = ("license plate",)  # its id is -1: Cityscapes' own maps show what is below it


class CityscapesDataset(FolderDataset):
    """Cityscapes with its fine labels."""

    format = "cityscapes"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        parts = [part for part in PARTS if (root / IMAGES / part).is_dir()]
        return f"it holds {IMAGES}/{parts[0]}/" if parts else None

    def _index(self) -> Index:
        images: dict[str, tuple[Path, ...]] = {}
        folders: dict[str, str] = {}
        self._files: dict[str, dict[str, tuple[Path, ...]]] = {kind: {} for kind in KINDS}
        for part in PARTS:
            for city in _folders(self.root / IMAGES / part):
                found = by_stem(city, suffix=f"_{IMAGES}")
                for id, paths in found.items():
                    images[id] = images.get(id, ()) + paths
                    folders[id] = part
                if part == "test":
                    continue
                for kind, ending in KINDS.items():
                    files = by_stem(self.root / LABELS / part / city.name, (ending,), f"_{LABELS}_{kind}")
                    self._files[kind].update({id: paths for id, paths in files.items() if id in found})
        if not images:
            raise DataError(
                f"{self.root} holds no image: expected {IMAGES}/{PARTS[0]}/CITY/CITY_SEQUENCE_FRAME_{IMAGES}.png and"
                f" {LABELS}/ beside {IMAGES}/."
            )
        labelled = frozenset(id for files in self._files.values() for id in files)
        problems = tuple(problem for files in self._files.values() for problem in twins(files))
        return Index(images, labelled, *folder_parts(folders, labelled), tuple(IDS.values()), problems)

    def group(self, id: str) -> str:
        """City and sequence: neighbouring frames show the same street."""
        self._file(id)
        return id.rpartition("_")[0] or id

    def _labels(self, id: str, image: Canvas) -> Labels:
        kind = next(kind for kind in KINDS if id in self._files[kind])
        path = only(self._files[kind][id])
        if kind == "labelIds":
            return _components(read_map(path, "label map", image, self.max_pixels))
        if kind == "instanceIds":
            return _counted(read_map(path, "instance map", image, self.max_pixels))
        return _painted(path, image)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _classes(ids: np.ndarray) -> np.ndarray:
    """Class indexes of ids, -1 for ids of no class."""
    known = np.array(list(IDS))
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, at, -1)


def _counted(numbers: np.ndarray, unit: int = COUNTED) -> Labels:
    """Objects and groups of a map int32 (H, W) of class ids below ``unit`` and class ids x ``unit`` + count."""
    counted = numbers >= unit
    known = _classes(np.where(counted, numbers // unit, numbers)) >= 0
    objects, wanted = from_numbers(np.where(known & counted, numbers, 0))
    groups, kinds = from_numbers(np.where(known & ~counted, numbers, 0))
    ignored = replace(groups, classes=_classes(kinds)) if len(groups) else None
    return Labels(replace(objects, classes=_classes(wanted // unit)), ignored)


def _components(ids: np.ndarray) -> Labels:
    """Components of a map int32 (H, W) of class ids; nothing tells groups from objects there."""
    return Labels(from_indexes(_classes(ids) + 1))


def _painted(path: Path, image: Canvas) -> Labels:
    """Objects and groups of a file of polygons."""
    value = read_object(path)
    height, width, items = (value.get(key) for key in ("imgHeight", "imgWidth", "objects"))
    if not isinstance(height, int) or not isinstance(width, int) or not isinstance(items, list):
        raise FileError(path, f"{path} lacks imgHeight, imgWidth or objects: download or export it again.")
    refuse_size(path, "polygons", (height, width), image)
    ids = {name: id for id, name in IDS.items()}
    numbers = np.zeros(image.size, np.int32)
    unit = max(COUNTED, len(items))  # so that counts never run into the next class
    for count, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise FileError(path, f"{path}: object {count} has no label: mend it or download the file again.")
        label = item["label"]
        if item.get("deleted") or label in _UNPAINTED:
            continue
        try:
            outline = np.array(item.get("polygon"), dtype=np.float64, ndmin=2)
            mask = decode(polygons.rasterise([outline], image.size))
        except (polygons.ShapeError, ValueError, TypeError) as error:
            raise FileError(
                path, f"{path}: object {count} ({label[:40]}) has no usable outline, {error}: mend it."
            ) from None
        numbers[mask] = ids[label] * unit + count if label in ids else ids.get(label.removesuffix(GROUP), 0)
    return _counted(numbers, unit)
