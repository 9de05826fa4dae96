"""Where a data set with YOLO's labels says what its classes are and which images are in which part."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fewlabel.core.errors import DataError
from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import ENDINGS, below, by_stem
from fewlabel.data.readers.documents import ends_of, part_in, read_text

YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = ("classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels")
MAX_YAML = 1 << 16  # bytes; the parser is slow, and thousands of names fit
LARGE = 1e9  # numbers above it are neither counts nor names, and may be too long to be printed
PARTS = ("train", "val", "test")


# Bounded, because "any number of signs" would be tried from every line of a file of brackets.
_KEY = re.compile(rb"^[ \t{\"']{0,20}(names|train|val|nc|path)[ \t\"']{0,20}:", re.M)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without merge keys ("<<"), by which a file of thirty lines can ask for gigabytes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys alone; constructing one fails then."""


class Names(NamedTuple):
    """Where a data set says what its classes are.

    Attributes:
        file: The file.
        classes: Names of the classes.
        parts: Entries of data.yaml for train, val and test; empty for a list of names.
        folder: Folder that the entries are counted from, and which all images lie below.
    """

    file: Path
    classes: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    folder: Path


def find_yaml(root: Path) -> list[Path]:
    """The YAML files of a folder that name classes: data.yaml alone if it is one of them, else all, sorted."""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml") and is_yaml(path))
    named = [path for name in YAMLS for path in files if path.name == name]
    return named[:1] or files


def find_names(root: Path) -> Names:
    """What the classes of a data set are called.

    Args:
        root: Folder of the data set, or its YAML file.

    Raises:
        DataError: There is no such file, there are several, or it cannot be used.
    """
    found = [root] if root.is_file() else find_yaml(root)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{root} holds several YAML files that name classes ({names}): give the one you mean.")
    if found:
        return read_yaml(found[0])
    for path in (root / name for name in CLASSES):
        if path.is_file():
            lines = read_text(path, "list of classes").strip().splitlines()
            return Names(path, _clean([line.strip() for line in lines], path), {}, root)
    raise DataError(
        f"{root} holds neither data.yaml nor classes.txt: add classes.txt with one name of a class per line."
    )


def read_yaml(path: Path) -> Names:
    """Read data.yaml.

    Raises:
        FileError: It is no YAML of this kind.
    """
    if path.stat().st_size > MAX_YAML:
        raise FileError(
            path, f"{path} has more than {MAX_YAML} bytes, which is too long for a list of names: shorten it."
        )
    text = read_text(path, "YAML file")
    try:
        value = yaml.load(text, _Loader)  # a safe loader, see above
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" at line {line + 1}"
        raise FileError(path, f"YAML file {path} is damaged{where}: correct it.") from None
    if not isinstance(value, dict) or "names" not in value:
        raise FileError(path, f"YAML file {path} has no key 'names': list the names of the classes under it.")
    if "kpt_shape" in value:
        raise FileError(path, f"YAML file {path} is about key points, which are no masks: export polygons or boxes.")
    classes = _classes(value["names"], path)
    count = value.get("nc", len(classes))
    if count != len(classes):
        said = str(count) if isinstance(count, int) and abs(count) < LARGE else "no whole number"
        raise FileError(path, f"YAML file {path} names {len(classes)} classes, but nc is {said}: correct one of them.")
    parts = {part: _paths(value[part], part, path) for part in PARTS if value.get(part)}
    start = value.get("path")
    folder = Path(os.path.normpath(path.parent))
    if parts and isinstance(start, str) and "\0" not in start:
        # "path" is where the author kept the data; it counts only where the entries are not beside the YAML file.
        beside = any(_exists(_place(folder, entry)) for entries in parts.values() for entry in entries)
        other = Path(os.path.normpath(folder / start))
        folder = other if not beside and _exists(other) and other.is_dir() else folder
    return Names(path, classes, parts, folder)


def is_yaml(path: Path) -> bool:
    """Whether a file looks like data.yaml: names of classes, and parts, a number of classes or a path."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    keys = set(_KEY.findall(ends_of(path)))
    return b"names" in keys and len(keys) > 1


def _classes(names: Any, path: Path) -> tuple[str, ...]:
    """Names out of a list, or out of a dict whose keys are the class numbers."""
    if isinstance(names, dict):
        try:
            keyed = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError, OverflowError):
            keyed = {}
        if len(keyed) != len(names) or sorted(keyed) != list(range(len(names))):
            raise FileError(path, f"YAML file {path} numbers its names otherwise than 0, 1, 2 ...: number all of them.")
        names = [keyed[key] for key in sorted(keyed)]
    if not isinstance(names, list):
        raise FileError(path, f"YAML file {path} has 'names' that are no list: write one name per class.")
    for place, name in enumerate(names):
        number = isinstance(name, int | float) and not isinstance(name, bool) and abs(name) < LARGE
        if not isinstance(name, str) and not number:
            raise FileError(path, f"YAML file {path}: name {place} is no text: put it in quotes.")  # no, yes, on, off
    return _clean([str(name).strip() for name in names], path)


def _clean(names: Sequence[str], path: Path) -> tuple[str, ...]:
    if not names:
        raise FileError(path, f"{path} names no class: write one name per class.")
    for place, name in enumerate(names):
        if not name or not name.isprintable():
            raise FileError(path, f"{path}: name {place} is empty or not printable: give every class a name.")
        if name in names[:place]:
            raise FileError(path, f"{path}: the name {name!r} stands there twice: give every class its own.")
    return tuple(names)


def _paths(value: Any, part: str, path: Path) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry and "\0" not in entry for entry in entries):
        raise FileError(path, f"YAML file {path}: {part} is neither a path nor a list of paths: name folders or lists.")
    return tuple(entries)


def _place(folder: Path, entry: str) -> Path:
    """Where an entry leads; Roboflow writes ../train/images for what lies beside its data.yaml."""
    place = Path(os.path.normpath(folder / entry))
    if not _exists(place) and entry.startswith("../"):
        return Path(os.path.normpath(folder / entry.removeprefix("../")))
    return place


def named_parts(names: Names) -> dict[str, list[Path]]:
    """Image files of the parts that data.yaml names; a part that is the very same as another counts once."""
    parts = {
        part: [path for entry in names.parts.get(part, ()) for path in _entry(entry, part, names)] for part in PARTS
    }
    for part, same in (("val", "train"), ("test", "train"), ("val", "test")):
        if set(parts[part]) == set(parts[same]):
            parts[part] = []
    known = {path for paths in parts.values() for path in paths}
    parts["train"] += [path for path in _unlabelled(names.folder) if path not in known]
    return parts


def _entry(entry: str, part: str, names: Names) -> list[Path]:
    """Image files of one entry: a folder with all folders in it, or a list."""
    place = _place(names.folder, entry)
    where = f"YAML file {names.file}: {part} {entry!r}"
    if not _exists(place):
        if part == "test":
            return []  # exports name a test part whether there is one or not
        raise FileError(names.file, f"{where} does not exist below {names.folder}: correct the path or remove it.")
    if not _is_within(place, names.folder):
        raise FileError(names.file, f"{where} leads out of {names.folder}: move the images there or give another path.")
    if place.is_dir():
        return sorted(path for paths in below(place).values() for path in paths)
    if place.suffix.lower() in ENDINGS:
        return [place]
    return _listed(place, names)


def _listed(file: Path, names: Names) -> list[Path]:
    """Image files that a .txt list names, counted from the list's folder or the data set's."""
    found = []
    for number, line in enumerate(read_text(file, "list of images").splitlines(), 1):
        entry = line.strip().replace("\\", "/")
        if not entry:
            continue
        places = [Path(os.path.normpath(start / entry)) for start in (file.parent, names.folder)]
        path = next(
            (place for place in places if _is_within(place, names.folder) and _exists(place) and place.is_file()),
            None,
        )
        if path is None:
            reason = f"{entry[:200]!r} is no file below {names.folder}: correct or remove the line."
            raise FileError(file, f"list {file}, line {number}: {reason}")
        found.append(path)
    return found


def _exists(path: Path) -> bool:
    """Whether there is such a file; a line of rubbish may be too long or hold what no name can hold."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_within(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts


def folder_parts(root: Path) -> dict[str, list[Path]]:
    """Image files by the part that their folder is named after; others train."""
    inner = [root / name / "images" for name in ("train", "valid", "val", "validation", "test")]
    starts = [root / "images"] if (root / "images").is_dir() else [start for start in inner if start.is_dir()]
    files = [path for start in starts for paths in below(start).values() for path in paths]
    files = files or [path for paths in by_stem(root).values() for path in paths]
    parts: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in sorted(files):
        folders = path.relative_to(root).parts[:-1]
        found = [part for folder in folders if (part := part_in(folder))]
        parts[found[0] if found else "train"].append(path)
    known = set(files)
    parts["train"] += [path for path in _unlabelled(root) if path not in known]
    return parts


def _unlabelled(folder: Path) -> list[Path]:
    """Images of folders named unlabelled, which need not be listed."""
    starts = [*folder.glob("unlabel*"), *folder.glob("images/unlabel*")]
    return sorted(path for start in starts if start.is_dir() for paths in below(start).values() for path in paths)
