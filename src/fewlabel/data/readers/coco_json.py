"""COCO files as small values: which files of a folder are COCO's, and what each of them says."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewlabel.data.dataset import Problem
from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import by_stem, id_of
from fewlabel.data.readers.documents import ends_of, part_in, read_object

ROBOFLOW = "_annotations.coco.json"
LISTS = (b'"images"', b'"categories"', b'"annotations"')

Key = int | str
"""What COCO's files use as an id."""


class Picture(NamedTuple):
    """An entry of "images".

    Attributes:
        id: Its id in the file; None if it is neither number nor text, likewise below.
        name: Its "file_name" with "/" between folders, which may not lead upwards; None if there is none.
        size: Rows and columns; None if the file does not say both.
    """

    id: Key | None
    name: str | None
    size: tuple[int, int] | None


class Annotation(NamedTuple):
    """An entry of "annotations", as small as it can be kept; its shape is checked when the image is asked for.

    Attributes:
        id: Its id, for messages.
        image: Id of its image.
        category: Id of its category.
        crowd: Whether it is a region to ignore.
        shape: Polygons, each an array of x and y in turn; or "segmentation" as it is in the file; None if there is
            none and the box counts.
        box: "bbox" as it is in the file.
    """

    id: Key | None
    image: Key | None
    category: Key | None
    crowd: bool
    shape: Any
    box: Any


class Document(NamedTuple):
    """One COCO file.

    Attributes:
        file: The file.
        part: "train", "val" or "test".
        pictures: Entries of "images" by id.
        annotations: Annotations by image id; None if the file has no key "annotations".
        categories: Names by id.
        problems: Entries that cannot be used.
    """

    file: Path
    part: str
    pictures: dict[Key, Picture]
    annotations: dict[Key, list[Annotation]] | None
    categories: dict[Key, str]
    problems: list[Problem]


def is_coco(file: Path) -> bool:
    """Whether a file begins or ends like COCO's JSON; never raises."""
    ends = ends_of(file)
    return b"{" in ends[:64] and sum(name in ends for name in LISTS) >= 2


def find_documents(root: Path) -> list[Path]:
    """The COCO files of a folder: in itself, in annotations/ and in folders named after a part; never raises.

    Where the names say which files hold objects (instances_*, image_info_*, or Roboflow's), COCO's others are not
    taken: captions and key points are about the same images. A JSON file named after an image beside it is none.
    """
    found: list[Path] = []
    try:
        inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        for folder in (root, *(path for path in inner if path.name == "annotations" or part_in(path.name))):
            images = by_stem(folder)
            files = [path for path in by_stem(folder, (".json",)).items() if path[0] not in images]
            here = [path for _, paths in files for path in paths if is_coco(path)]
            named = [p for p in here if p.name == ROBOFLOW or p.name.startswith(("instances_", "image_info_"))]
            found += sorted(named, key=lambda path: path.name.startswith("image_info_")) or here
    except OSError:
        return found
    return found


def read_document(file: Path, root: Path) -> Document:
    """Read one COCO file, once; coordinates become arrays as they are read, so no large tree of numbers is held.

    Args:
        file: The file.
        root: Folder of the data set, whose own name tells no part.

    Raises:
        FileError: It is no JSON of this kind, or its ids are not unique.
    """
    value = read_object(file, _compact)
    pictures: dict[Key, Picture] = {}
    for place, picture in enumerate(_entries(value, "images", file)):
        if not isinstance(picture, Picture) or picture.id is None or picture.name is None:
            reason = "has no id or no file_name within the data set: add them or remove the entry."
            raise FileError(file, f"JSON file {file}: entry {place} of images {reason}")
        if picture.id in pictures:
            reason = f"image id {picture.id!r} is used twice: give every image an id of its own."
            raise FileError(file, f"JSON file {file}: {reason}")
        pictures[picture.id] = picture
    problems: list[Problem] = []
    annotations: dict[Key, list[Annotation]] | None = {} if "annotations" in value else None
    if annotations is not None:
        seen: set[Key] = set()
        for place, annotation in enumerate(_entries(value, "annotations", file)):
            if not isinstance(annotation, Annotation) or annotation.image is None:
                reason = "has no image_id: add it or remove the entry."
                raise FileError(file, f"JSON file {file}: entry {place} of annotations {reason}")
            image = pictures.get(annotation.image)
            where = f"JSON file {file}, annotation {annotation.id!r}"
            if image is None or image.name is None:
                reason = f"{where}: image {annotation.image!r} is not in images: add it there or remove the annotation."
                problems.append(Problem(f"image {annotation.image!r}", file, reason))
                continue
            if annotation.id is not None and annotation.id in seen:
                reason = f"{where}: its id is used twice: give every annotation an id of its own."
                problems.append(Problem(id_of(image.name), file, reason))
            if annotation.id is not None:
                seen.add(annotation.id)
            annotations.setdefault(annotation.image, []).append(annotation)
    part = part_in(file.stem) or (part_in(file.parent.name) if file.parent != root else None) or "train"
    return Document(file, part, pictures, annotations, _categories(value, file), problems)


def merge_categories(documents: Sequence[Document]) -> tuple[dict[Key, int], tuple[str, ...]]:
    """Class indexes by category id, and the classes' names, in the order of the category ids.

    Categories of one name are one class: some exports repeat the name of the data set's only class.

    Raises:
        FileError: Two files name one id differently, or there are annotations but no categories.
    """
    names: dict[Key, str] = {}
    for document in documents:
        for id, name in document.categories.items():
            if names.setdefault(id, name) != name:
                raise FileError(
                    document.file,
                    f"JSON file {document.file}: category {id!r} is {name!r}, but another file calls it {names[id]!r}:"
                    " export all parts with the same categories.",
                )
        if document.annotations and not document.categories:
            raise FileError(
                document.file, f"JSON file {document.file} has annotations but no categories: export it with them."
            )
    classes: dict[str, int] = {}
    order = sorted(names, key=lambda id: (isinstance(id, str), id))
    indexes = {id: classes.setdefault(names[id], len(classes)) for id in order}
    return indexes, tuple(classes)


def _compact(value: dict[str, Any]) -> Any:
    """A picture or an annotation in the place of its JSON object."""
    if "image_id" in value:
        shape = _arrays(value.get("segmentation"))
        return Annotation(
            _key(value.get("id")),
            _key(value["image_id"]),
            _key(value.get("category_id")),
            value.get("iscrowd") in (1, "1", True),
            shape,
            value.get("bbox") if shape is None else None,
        )
    if "file_name" in value:
        height, width = _whole(value.get("height")), _whole(value.get("width"))
        size = (height, width) if height is not None and width is not None else None
        return Picture(_key(value.get("id")), _name(value["file_name"]), size)
    return value


def _arrays(shape: Any) -> Any:
    """Polygons and runs as arrays; None where there are none; anything else as it is."""
    try:
        if isinstance(shape, dict) and isinstance(shape.get("counts"), list):
            return {**shape, "counts": array("q", shape["counts"])}
        if not isinstance(shape, list):
            return shape
        polygons = [shape] if shape and not isinstance(shape[0], list) else [part for part in shape if part != []]
        return tuple(array("d", polygon) for polygon in polygons) or None
    except (TypeError, OverflowError):
        return shape


def _key(value: Any) -> Key | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    key = _key(value)
    return key if isinstance(key, int) else None


def _name(value: Any) -> str | None:
    """A relative name of an image, without drive and leading folders that mean nothing here."""
    if not isinstance(value, str):
        return None
    steps = [step for step in value.replace("\\", "/").split("/") if step not in ("", ".")]
    return "/".join(steps) if steps and ".." not in steps else None


def _entries(value: dict[str, Any], name: str, file: Path) -> list[Any]:
    entries = value.get(name, [] if name == "categories" else None)
    if not isinstance(entries, list):
        raise FileError(file, f"JSON file {file} has no list {name!r}: expected COCO's keys images and annotations.")
    return entries


def _categories(value: dict[str, Any], file: Path) -> dict[Key, str]:
    """Names of the categories by id."""
    names: dict[Key, str] = {}
    for place, entry in enumerate(_entries(value, "categories", file)):
        id = _key(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if id is None or not isinstance(name, str) or not name.strip().isprintable() or not name.strip():
            reason = "has no id or no name of printable letters: add them."
            raise FileError(file, f"JSON file {file}: entry {place} of categories {reason}")
        if names.setdefault(id, name.strip()) != name.strip():
            raise FileError(file, f"JSON file {file}: category id {id!r} is used twice: give each one of its own.")
    if any(isinstance(id, str) for id in names) and any(isinstance(id, int) for id in names):
        raise FileError(file, f"JSON file {file} mixes numbers and texts as category ids: use numbers.")
    return names
