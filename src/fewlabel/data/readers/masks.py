"""Folders of mask files beside a folder of images.

::

    root/images/ID.png      one file per image: .png .bmp .jpg .jpeg .tif .tiff; folders in it become part of the id
    root/instances/ID.png   label map of 8, 16 or 32 bits: one number per object, 0 = background; numbers may have gaps
                            and an object may have several pieces
    root/labels/ID.png      class map, grey or palette: 1, 2, ... = classes, 0 = background, 255 = ignored; the folder
                            may also be called annotations, semantic, SegmentationClass or SegmentationClassPNG
    root/masks/ID.png       binary mask, nonzero = target
    root/classes.txt        names of the classes 1, 2, ..., one per line; or classes.json; optional
    root/train.txt          one id per line; optional, like val.txt and test.txt; they may also lie in root/img_idx/

With instances/ the class maps only say which class an object has (that of most of its pixels) and what is ignored.
Without it the objects are the 8-connected components of each class, or of the mask. Class maps that hold nothing but
0 and 255 in the whole data set are binary masks.

Without lists, folders called train, val and test (or training, validation) within images/ are the parts. Without either
a list somewhere else is an error: were it overlooked, its test images would train.

Also read is one folder per image with one mask file per object, as BBBC038 has it: root/ID/images/ID.png beside
root/ID/masks/*.png (or one folder deeper, in stage1_train/). A folder without masks/ is an unlabelled image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.data.dataset import Canvas
from fewlabel.data.pixels import FileError, read_label_map, read_mask
from fewlabel.data.readers.base import (
    ENDINGS,
    TARGET,
    FolderDataset,
    Index,
    Labels,
    below,
    list_problems,
    only,
    refuse_size,
    twins,
)
from fewlabel.data.readers.lists import FOLDERS, Lists, find_lists, folder_parts, listed_parts, refuse_stray
from fewlabel.data.readers.maps import (
    IGNORED,
    classified,
    from_indexes,
    from_mask,
    from_numbers,
    read_map,
    read_names,
    refuse_indexes,
    region,
)
from fewlabel.data.readers.scenes import read_scene, scenes

IMAGES, NUMBERS, BINARY = "images", "instances", "masks"
INDEXES = ("labels", "annotations", "semantic", "SegmentationClass", "SegmentationClassPNG")
NAMES = ("classes.txt", "classes.json")
LISTED, LISTED_SCENES = (
    f"{where} as train.txt, val.txt and test.txt" for where in ("the root or img_idx/", "the root")
)

Files = dict[str, tuple[Path, ...]]


class MasksDataset(FolderDataset):
    """A data set of label maps, class maps or binary masks."""

    format = "masks"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        if not (root / IMAGES).is_dir():
            scene = next((id for id, scene in scenes(root) if scene.masks), None)
            return None if scene is None else f"it holds {scene}/{IMAGES}/ and {scene}/{BINARY}/"
        folder = next((name for name in (NUMBERS, *INDEXES, BINARY) if below(root / name)), None)
        return None if folder is None else f"it holds {IMAGES}/ and {folder}/"

    def _index(self) -> Index:
        self._scenes: dict[str, tuple[Path, ...]] = {}
        if not (self.root / IMAGES).is_dir() and (index := self._index_scenes()) is not None:
            return index
        images = below(self.root / IMAGES)
        if not images:
            raise DataError(
                f"{self.root / IMAGES} holds no image: expected the layout {IMAGES}/ beside {NUMBERS}/, {INDEXES[0]}/"
                f" or {BINARY}/, with files that end with {', '.join(ENDINGS)}."
            )
        self._numbers = self._files(NUMBERS, images)
        self._indexes = next((files for name in INDEXES if (files := self._files(name, images))), {})
        self._masks = {} if self._numbers or self._indexes else self._files(BINARY, images)
        labels = self._numbers or self._indexes or self._masks
        if not labels:
            raise DataError(f"{self.root} has no mask file in {NUMBERS}/, {', '.join(INDEXES)}/ or {BINARY}/: add one.")
        classes = self._names()
        lists = find_lists(self.root, self.root / "img_idx")
        problems = (
            *twins(labels),
            *(twins(self._indexes) if self._numbers else ()),
            *list_problems(lists.all(), images, self.root / IMAGES),
        )
        return Index(images, frozenset(labels), *self._parts(lists, images, labels), classes, problems)

    def _index_scenes(self) -> Index | None:
        """The index where each image has a folder of its own; None if no folder is like that."""
        images: Files = {}
        for id, scene in scenes(self.root):
            images[id] = images.get(id, ()) + scene.images
            if scene.masks is not None:
                self._scenes[id] = scene.masks
        if not images:
            return None
        lists = find_lists(self.root)
        if not lists.all():
            refuse_stray(self.root, images, LISTED_SCENES)
        problems = tuple(list_problems(lists.all(), images, self.root))
        return Index(images, frozenset(self._scenes), *listed_parts(lists, images, self._scenes), problems=problems)

    def _files(self, folder: str, images: Files) -> Files:
        """The mask files of a folder by id; DataError if it has some and none is named like an image."""
        named = below(self.root / folder)
        files = {id: paths for id, paths in named.items() if id in images}
        if named and not files:
            raise DataError(
                f"no mask in {self.root / folder} (such as '{next(iter(named))}') is named like an image: rename them."
            )
        return files

    def _parts(self, lists: Lists, images: Files, labels: Files) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Training and test ids by lists, else by folders, else everything trains."""
        folders = {id: paths[0].relative_to(self.root / IMAGES).parts[0] for id, paths in images.items()}
        if not lists.all() and {FOLDERS.get(name.lower()) for name in folders.values()} & {"val", "test"}:
            return folder_parts(folders, labels)
        if not lists.all():
            refuse_stray(self.root, {paths[0].stem for paths in images.values()}, LISTED)
        return listed_parts(lists, images, labels)

    def _names(self) -> tuple[str, ...]:
        """Names of the classes; moves class maps that are binary masks to where they belong."""
        listed = next((read_names(path) for name in NAMES if (path := self.root / name).is_file()), None)
        if not self._indexes:
            if listed is not None and len(listed) > 1:
                raise DataError(
                    f"{self.root} names {len(listed)} classes, but {NUMBERS}/ and {BINARY}/ tell none apart: add class"
                    f" maps in {INDEXES[0]}/ or name one class."
                )
            return listed or TARGET
        if listed is not None and len(listed) > 1:
            return listed
        # Without names every map is read once; with one name until a map holds its index, which is the first as a rule.
        highest = 0
        for present in _present(self._indexes.values(), self.max_pixels):
            highest = max(highest, *(index for index in present if index != IGNORED), 0)
            if listed is not None and highest:
                break
        if not highest and not self._numbers:
            self._masks, self._indexes = self._indexes, {}
            return listed or TARGET
        return listed or tuple(f"class {number}" for number in range(1, max(highest, 1) + 1))

    def _labels(self, id: str, image: Canvas) -> Labels:
        if id in self._scenes:
            return Labels(read_scene(self._scenes[id], image, self.max_pixels))
        if id in self._masks:
            path = only(self._masks[id])
            mask = read_mask(path, max_pixels=self.max_pixels)
            refuse_size(path, "mask", (mask.shape[0], mask.shape[1]), image)
            return Labels(from_mask(mask))
        indexes = None
        if id in self._indexes:
            indexes_path = only(self._indexes[id])
            indexes = read_map(indexes_path, "class map", image, self.max_pixels)
            refuse_indexes(indexes_path, indexes, self.classes)
            if not self._numbers:
                return Labels(from_indexes(indexes), region(indexes == IGNORED))
        path = only(self._numbers[id])
        numbers = read_map(path, "label map", image, self.max_pixels)
        if indexes is not None:
            return classified(numbers, indexes, indexes_path)
        if len(self.classes) > 1:
            raise FileError(path, f"label map {path} has no class map beside it: add one in {INDEXES[0]}/ as well.")
        return Labels(from_numbers(numbers)[0])


def _present(files: Iterable[tuple[Path, ...]], max_pixels: int) -> Iterator[list[int]]:
    """Distinct numbers of each map; one that cannot be read has none, because its own error comes when it is used."""
    for paths in files:
        try:
            yield np.unique(read_label_map(paths[0], max_pixels=max_pixels)).tolist()
        except DataError:
            yield []
