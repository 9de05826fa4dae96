"""COCO's JSON: one file per part, images anywhere beside it.

::

    root/annotations/instances_train*.json  the part is told by the name: train, val or valid, test
    root/annotations/instances_val*.json
    root/images/..., root/train2017/...     images; "file_name" may hold folders
    root/train/_annotations.coco.json       or beside the images, as Roboflow exports it; likewise valid/ and test/
    root.json                               or one file alone, with its images beside it

Objects are polygons (several make one object), run-length codes of either kind, or boxes where there is neither;
``iscrowd: 1`` is an ignored region. An image that a file lists without annotations is labelled with nothing; an image
of a file that has no key "annotations" (COCO's image_info files) and an image that no file lists have no labels.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle, areas
from fewlabel.data.dataset import Canvas, Problem
from fewlabel.data.pixels import FileError
from fewlabel.data.polygons import ShapeError, fill_box, instances, rasterise, run_lengths
from fewlabel.data.readers.base import TARGET, FolderDataset, Index, Labels, below, id_of
from fewlabel.data.readers.coco_json import (
    Annotation,
    Document,
    Picture,
    find_documents,
    is_coco,
    merge_categories,
    read_document,
)
from fewlabel.data.readers.documents import name_images, part_in
from fewlabel.data.readers.lists import held_out

ASIDE = ("annotations", "annotation", "labels", "json")  # folders whose files are about images one folder up
IMAGES = ("images", "image", "img", "imgs", "data")  # folders of images beside a file


class Entry(NamedTuple):
    """An image that a file lists.

    Attributes:
        file: The file.
        picture: Its entry there.
        annotations: Its objects and ignored regions.
    """

    file: Path
    picture: Picture
    annotations: Sequence[Annotation]


class CocoDataset(FolderDataset):
    """A data set of COCO files."""

    format = "coco"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        if root.is_file():
            return "it is a COCO file" if is_coco(root) else None
        found = find_documents(root) if root.is_dir() else []
        return f"it holds the COCO file {found[0].relative_to(root)}" if found else None

    def _index(self) -> Index:
        folder = _folder(self.root)
        files = [self.root] if self.root.is_file() else find_documents(folder)
        if not files:
            raise DataError(
                f"{self.root} holds no COCO file: expected annotations/instances_train.json or the like, with the keys"
                " images, annotations and categories."
            )
        found, damaged = _read_all(files, folder)
        # Files with labels come first, so that an image_info file that repeats an image takes nothing away.
        documents = sorted(found, key=lambda document: document.annotations is None)
        self._indexes, classes = merge_categories(documents)
        shelf = _Shelf(folder)
        entries, parts, problems = _listed(documents, shelf)
        problems = damaged + problems
        # A file alone, out of several, must not make unlabelled training images of the others' test images; nor must
        # files beside a damaged one.
        alone = damaged or self.root.is_file() and set(find_documents(folder)) - {self.root}
        spare = [] if alone else shelf.unlisted(entries)
        parts["train"] += spare
        names = [(path, str(entry.picture.name)) for path, entry in entries.items()]
        ids = name_images([*names, *((path, shelf.name(path)) for path in spare)], folder)
        images = defaultdict[str, tuple[Path, ...]](tuple)
        for path, id in ids.items():
            images[id] += (path,)
        self._entries = {ids[path]: entry for path, entry in entries.items()}
        annotated = frozenset(document.file for document in documents if document.annotations is not None)
        labelled = frozenset(id for id, entry in self._entries.items() if entry.file in annotated)
        objects = [a for entry in entries.values() for a in entry.annotations if not a.crowd]
        self.boxes_only = bool(objects) and all(annotation.shape is None for annotation in objects)
        train, val, test = ([ids[path] for path in parts[part]] for part in ("train", "val", "test"))
        if not images:
            first = f", the first: {problems[0].reason}" if problems else f": add images to {folder}."
            raise DataError(f"{self.name} lists {len(problems)} images without a file{first}")
        held = held_out(train, val, test, labelled)
        return Index(dict(images), labelled, *held, classes=classes or TARGET, problems=tuple(problems))

    def _labels(self, id: str, image: Canvas) -> Labels:
        file, picture, annotations = self._entries[id]
        if picture.size is not None and picture.size != image.size:
            raise FileError(
                file,
                f"JSON file {file}, image {picture.id!r}: it is said to be {picture.size[0]} x {picture.size[1]} pixels"
                f" (height x width), but {image.path} is {image.height} x {image.width}: export its labels again.",
            )
        found: dict[bool, list[tuple[Rle, int, np.ndarray | None]]] = {False: [], True: []}
        for annotation in annotations:
            try:
                if annotation.category not in self._indexes:
                    raise ShapeError(f"category {annotation.category!r} is not in categories")
                rle, box = read_shape(annotation, image.size)
            except ShapeError as error:
                where = f"JSON file {file}, annotation {annotation.id!r} of image '{id}'"
                raise FileError(file, f"{where}: {error}: correct or remove it.") from None
            if areas([rle])[0]:
                found[annotation.crowd].append((rle, self._indexes[annotation.category], box))
        objects, crowds = (
            instances(image.size, *(zip(*found[crowd], strict=True) if found[crowd] else ((), ())))
            for crowd in (False, True)
        )
        return Labels(objects, crowds if len(crowds) else None)


def read_shape(annotation: Annotation, size: tuple[int, int]) -> tuple[Rle, np.ndarray | None]:
    """The mask of an annotation, and its exact box if it is a box only.

    Args:
        annotation: The annotation.
        size: Image rows and columns.

    Raises:
        ShapeError: It has no shape, or one that means nothing.
    """
    shape = annotation.shape
    if isinstance(shape, tuple):
        if odd := [polygon for polygon in shape if len(polygon) % 2]:
            raise ShapeError(f"a polygon has {len(odd[0])} numbers, expected pairs of x and y")
        return rasterise([np.frombuffer(polygon).reshape(-1, 2) for polygon in shape], size), None
    if isinstance(shape, dict):
        declared = shape.get("size")
        if declared is not None and declared != list(size):
            raise ShapeError(
                f"a run-length code is of size {declared!r}, but its image of {list(size)} (height, width)"
            )
        return run_lengths(_plain(shape.get("counts")), size), None
    if shape is not None:
        raise ShapeError("its segmentation is neither a list of polygons nor a run-length code")
    box = annotation.box
    if (
        not isinstance(box, list)
        or len(box) != 4
        or any(isinstance(side, bool) or not isinstance(side, int | float) for side in box)
    ):
        raise ShapeError("it has neither a segmentation nor a bbox of four numbers")
    try:
        x, y, width, height = (float(side) for side in box)
    except OverflowError:
        raise ShapeError("a box has a coordinate that is not a finite number") from None
    return fill_box((x, y, x + width, y + height), size)


def _plain(counts: object) -> object:
    return counts.tolist() if isinstance(counts, array) else counts


def _read_all(files: Sequence[Path], folder: Path) -> tuple[list[Document], list[Problem]]:
    """The documents of a data set, and one problem for each file that cannot be read; FileError if none can be."""
    documents, problems = list[Document](), list[Problem]()
    for file in files:
        try:
            documents.append(read_document(file, folder))
        except FileError as error:
            if len(files) == 1:
                raise
            problems.append(Problem(id_of(file.relative_to(folder)), file, str(error)))
    if not documents:
        raise FileError(problems[0].file, problems[0].reason)
    return documents, problems


def _folder(root: Path) -> Path:
    """The folder that the images lie in or below."""
    if root.is_dir():
        return root
    return root.parent.parent if root.parent.name.lower() in ASIDE else root.parent


def _listed(
    documents: Sequence[Document], shelf: _Shelf
) -> tuple[dict[Path, Entry], dict[str, list[Path]], list[Problem]]:
    """Listed images with their entries, the images of each part, and what is wrong with the lists."""
    entries: dict[Path, Entry] = {}
    parts: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    problems: list[Problem] = []
    for document in documents:
        problems += document.problems
        starts = shelf.suggested(document)
        for picture in document.pictures.values():
            assert picture.name is not None  # read_document has refused such files
            where = f"JSON file {document.file}, image {picture.id!r}"
            files = shelf.find(picture.name, starts, document.part)
            if len(files) != 1:
                what = f"{len(files)} files of that name" if files else "no file"
                reason = f"{where}: {picture.name!r} has {what} below {shelf.folder}: add it or correct the entry."
                problems.append(Problem(id_of(picture.name), document.file, reason))
                continue
            known = entries.get(files[0])
            if known is None:
                annotations = (document.annotations or {}).get(picture.id, ()) if picture.id is not None else ()
                entries[files[0]] = Entry(document.file, picture, annotations)
                parts[document.part].append(files[0])
            elif document.annotations is not None:
                reason = f"{where}: {files[0]} is listed already in {known.file} as image {known.picture.id!r}"
                problems.append(Problem(id_of(picture.name), document.file, f"{reason}: remove one of them."))
    return entries, parts, problems


class _Shelf:
    """The image files of a data set, found by the names that COCO files use.

    Args:
        folder: Folder that all of them lie in or below.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [path for paths in below(folder).values() for path in paths]
        self._files = {path.relative_to(folder).as_posix(): path for path in sorted(files)}
        self._by_name = defaultdict[str, list[str]](list)
        for place in self._files:
            self._by_name[place.rpartition("/")[2]].append(place)
        self._starts: set[PurePosixPath] = set()  # folders that names are counted from

    def find(self, name: str, starts: Sequence[str], part: str) -> list[Path]:
        """The file of a name: in one of the folders ``starts``, else anywhere if there is just one.

        Files below folders of another part are no candidates, so that train/1.png is not taken for a lost test/1.png.
        """
        for start in starts:
            place = f"{start}/{name}" if start != "." else name
            if place in self._files:
                self._starts.add(PurePosixPath(start))
                return [self._files[place]]
        found = [
            place
            for place in self._by_name.get(name.rpartition("/")[2], ())
            if place.endswith(f"/{name}") and part_in(place.rpartition("/")[0]) in (None, part)
        ]
        if len(found) == 1:
            self._starts.add(PurePosixPath(found[0].removesuffix(f"/{name}")))
        return [self._files[place] for place in found]

    def name(self, path: Path) -> str:
        """The name of an unlisted image, as a COCO file beside the others would have it."""
        place = PurePosixPath(path.relative_to(self.folder).as_posix())
        for start in place.parents:
            if start in self._starts:
                return str(place.relative_to(start))
        for start in place.parents:
            if _holds_training_images(start.name):
                return str(place.relative_to(start))
        return str(place)

    def unlisted(self, listed: Collection[Path]) -> list[Path]:
        """Image files that may be taken as unlabelled training images, sorted.

        They lie beside a listed image, or below a folder named images, train or unlabelled; a folder of masks or
        depth maps is neither. Files of a folder of test or validation images are left alone.
        """
        beside = {path.parent for path in listed}
        found = []
        for place, path in self._files.items():
            folders = place.split("/")[:-1]
            held = any(part_in(folder) in ("val", "test") for folder in folders)
            aside = any(folder.lower() in ASIDE for folder in folders)
            wanted = path.parent in beside or not aside and any(map(_holds_training_images, folders))
            if wanted and not held and path not in listed:
                found.append(path)
        return found

    def suggested(self, document: Document) -> list[str]:
        """Folders that the place and the part of a file suggest, relative to the data set's; the part's own first."""
        home = document.file.parent
        near = [home.parent, home] if home.name.lower() in ASIDE and home != self.folder else [home]
        stem = document.file.stem
        tails = [stem.removeprefix("instances_").removeprefix("image_info_"), document.part]
        tails += ["valid"] if document.part == "val" else []
        inner = [f"{images}/{tail}" for tail in tails for images in IMAGES] + tails + [*IMAGES, "."]
        return [
            (PurePosixPath(start.relative_to(self.folder).as_posix()) / path).as_posix()
            for start in near
            for path in inner
        ]


def _holds_training_images(folder: str) -> bool:
    """Whether a folder's name says that images to train on are in it."""
    return folder.lower() in IMAGES or folder.lower().startswith("unlabel") or part_in(folder) == "train"
