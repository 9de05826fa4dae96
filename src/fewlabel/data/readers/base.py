"""What all readers have in common: an index of files, made once, and samples that are read when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD, Image, Labelled, Unlabelled
from fewlabel.data.dataset import Canvas, Problem, first_of
from fewlabel.data.dataset import Labels as Labels
from fewlabel.data.large import LargeImage, is_large, open_large
from fewlabel.data.moments import WHOLE
from fewlabel.data.pixels import MAX_PIXELS, FileError, read_image

ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
"""Endings of image files, in lower case."""

NAME = 255  # characters that a file's name may have

TARGET = ("target",)
"""Classes of a data set that tells objects from background only."""


@dataclass(frozen=True)
class Index:
    """What a reader found without opening an image.

    Attributes:
        images: Image files by id; more than one file for an id is a problem of that id.
        labelled: Ids that have labels, be they none.
        train: Ids of the training part, in the data set's own order; a repetition is a problem that `problems` names.
        test: Ids of the test part, likewise.
        classes: Names of the classes.
        problems: What is wrong with single ids.
    """

    images: dict[str, tuple[Path, ...]]
    labelled: frozenset[str]
    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    classes: tuple[str, ...] = TARGET
    problems: tuple[Problem, ...] = field(default=())


class FolderDataset(ABC):
    """Base of the readers; satisfies `fewlabel.data.dataset.Dataset`.

    A reader says whether a folder has its layout (`recognise`), finds the files (`_index`) and reads the labels of one
    image (`_labels`). Images are read when they are asked for, never kept.

    Args:
        root: The data set's folder, or its file where the layout is one.
        exclude: Ids to leave out of both parts, for example those that a check rejected; nothing that is wrong with
            them is reported.
        strict: True: the first problem of lists and folders is raised. False: all are kept in ``problems`` and using
            such an id raises.
        max_pixels: Largest height x width of an image or mask that is decoded.
        radiometry: How grey values become the input of networks; every image carries it.
        every: Of the images of a part that belong to one group, such as the frames of a video, only each ``every``-th
            is taken, beginning with the first; they are counted before ``exclude``, so that it moves none.

    Attributes:
        format: The layout's name, a key of `fewlabel.data.readers.READERS`.
        root: As given.
        name: The root's name.
        classes: Names of the classes; `Instances.classes` are indexes into them.
        train_ids: Ids of the training part, each once.
        test_ids: Ids of the test part, each once.
        problems: What is wrong with single ids; empty if strict.
        max_pixels: As given.
        radiometry: As given.
        boxes_only: Whether the labels are boxes: every mask is its box filled, which `Instances.boxes` holds exactly.

    Raises:
        DataError: The root does not have the layout, or holds no image; with ``strict`` also the first of the problems.
    """

    format: ClassVar[str]
    boxes_only: bool = False

    def __init__(
        self,
        root: Path | str,
        exclude: frozenset[str] = frozenset(),
        *,
        strict: bool = True,
        max_pixels: int = MAX_PIXELS,
        radiometry: Radiometry = STANDARD,
        every: int = 1,
    ) -> None:
        self.root = Path(root)
        self.max_pixels = max_pixels
        self.radiometry = radiometry
        self.name = self.root.resolve().name
        if not self.root.exists():
            raise DataError(f"The data folder {self.root} does not exist; give the folder of the images.")
        index = self._index()
        found = (*twins(index.images), *_unspeakable(index.images), *index.problems)
        problems = [problem for problem in found if problem.id not in exclude]
        if strict and problems:
            raise DataError(first_of(self.name, problems))
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.classes = index.classes
        self._images = _Files(index.images)
        self._labelled = index.labelled
        self.train_ids, self.test_ids = (
            tuple(id for id in self._thinned(dict.fromkeys(part), every) if id not in exclude)
            for part in (index.train, index.test)
        )

    @classmethod
    @abstractmethod
    def recognise(cls, root: Path) -> str | None:
        """Why ``root`` seems to have this layout, as the end of a sentence ("it holds ..."), or None if it does not.

        Looks at names and, where it must, at the beginning of a few files; never raises.
        """

    @abstractmethod
    def _index(self) -> Index:
        """Find the files below ``self.root``; DataError if they do not have the layout."""

    @abstractmethod
    def _labels(self, id: str, image: Canvas) -> Labels:
        """Read the labels of an id that has some; DataError if they cannot be used."""

    def _thinned(self, ids: Iterable[str], every: int) -> Iterator[str]:
        """Each ``every``-th id of each group, from the first one on."""
        seen = Counter[str]()
        for id in ids:
            if every == 1:
                yield id
                continue
            group = self.group(id) if id in self._images else id
            if seen[group] % every == 0:
                yield id
            seen[group] += 1

    def has_mask(self, id: str) -> bool:
        """Whether the data set has labels for this id, be they none; no file is opened."""
        return id in self._labelled

    def group(self, id: str) -> str:
        """What the image must not be torn from; its own id unless the layout knows of sequences."""
        return id

    def image(self, id: str) -> Image:
        """Read the image of ``id``; DataError if it has no file, two files or a broken one."""
        return replace(self._image(id), radiometry=self.radiometry)

    def labelled(self, id: str) -> Labelled:
        """Read image and labels.

        Raises:
            DataError: No labels, a broken file, or labels of another size than their image.
        """
        image = self.image(id)
        return Labelled(image, *self.labels(id, image))

    def unlabelled(self, id: str) -> Unlabelled:
        """Read the image alone; DataError as `image`."""
        return Unlabelled(self.image(id))

    def opened(self, id: str) -> Image | LargeImage:
        """Read the image, or open its file by windows; see `fewlabel.data.dataset.Dataset.opened`."""
        path = self._file(id)
        if self.radiometry.policy in WHOLE or not self._is_alone(id) or not is_large(path):
            return self.image(id)
        return open_large(path, id, self.radiometry, max_pixels=self.max_pixels)

    def labels(self, id: str, image: Canvas) -> Labels:
        """Read the labels of an image that is open; DataError as `labelled`."""
        if not self.has_mask(id):
            raise DataError(f"image '{id}' of {self.name} has no labels: add them or use it unlabelled.")
        return self._labels(id, image)

    def _is_alone(self, id: str) -> bool:
        """Whether an image has its file for itself; readers of files that hold several images say so."""
        return True

    def _image(self, id: str) -> Image:
        """Decode the image of an id; readers of files that hold several images do it in their own way."""
        return read_image(self._file(id), id, max_pixels=self.max_pixels)

    def _file(self, id: str) -> Path:
        """The one file of an id's image."""
        if id not in self._images:
            raise DataError(f"{self.name} has no image '{id}' below {self.root}: check the id or add the file.")
        return only(self._images[id])


class _Files(Mapping[str, tuple[Path, ...]]):
    """Files by id, held as text: a hundred thousand paths take four times as much."""

    def __init__(self, files: Mapping[str, tuple[Path, ...]]) -> None:
        self._names = {id: tuple(map(str, paths)) if len(paths) > 1 else str(paths[0]) for id, paths in files.items()}

    def __getitem__(self, id: str) -> tuple[Path, ...]:
        names = self._names[id]
        return (Path(names),) if isinstance(names, str) else tuple(map(Path, names))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, id: object) -> bool:
        return id in self._names


def refuse_size(path: Path, kind: str, size: tuple[int, int], image: Canvas) -> None:
    """Raise a FileError if labels are not of the size of their image.

    Args:
        path: File of the labels.
        kind: What the file is, such as "mask".
        size: Rows and columns that it holds or announces.
        image: The image.
    """
    if size != image.size:
        raise FileError(
            path,
            f"{kind} {path} is {size[0]} x {size[1]} pixels (height x width), but its image is {image.height} x"
            f" {image.width}: export the {kind} again at the size of the image.",
        )


def by_stem(folder: Path, endings: Iterable[str] = ENDINGS, suffix: str = "") -> dict[str, tuple[Path, ...]]:
    """Files of a folder (not of folders in it) by stem, sorted; hidden files are passed over.

    Args:
        folder: Where to look; need not exist.
        endings: Wanted file endings in lower case.
        suffix: End of the stems of wanted files, such as "_pixels0"; it is no part of the keys.

    Returns:
        All files of a stem, by stem.
    """
    known, found = frozenset(endings), defaultdict(list)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in known and path.stem.endswith(suffix) and not path.name.startswith("."):
                found[path.stem.removesuffix(suffix)].append(path)
    return {stem: tuple(paths) for stem, paths in found.items()}


def below(folder: Path, endings: Iterable[str] = ENDINGS) -> dict[str, tuple[Path, ...]]:
    """Files of a folder and of all folders in it by id, sorted; hidden ones and linked folders are passed over.

    Args:
        folder: Where to look; need not exist.
        endings: Wanted file endings in lower case.

    Returns:
        All files of an id, by id as `id_of` makes it.
    """
    known, found = frozenset(endings), defaultdict(list)
    for path in _walk(folder):
        if path.suffix.lower() in known:
            found[id_of(path.relative_to(folder))].append(path)
    return {id: tuple(paths) for id, paths in found.items()}


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in sorted order; a folder that is a link may lead back to where it stands."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                if not path.is_symlink():
                    yield from _walk(path)
            else:
                yield path


def id_of(name: Path | str) -> str:
    """An image's id by its name in the data set: without the ending, folders joined by two underscores.

    An id names files in a run folder, so it holds no slash. ``train/a.png`` becomes ``train__a``, ``Misc_1.png`` and
    ``Misc_1`` become ``Misc_1``; dots that start no known ending belong to the id.
    """
    text = str(name).replace("\\", "/").strip("/").replace("/", "__")
    for ending in ENDINGS:
        if text.lower().endswith(ending):
            return text[: -len(ending)]
    return text


def only(paths: tuple[Path, ...]) -> Path:
    """The one file of an id; FileError if there are two."""
    if len(paths) > 1:
        raise FileError(paths[1], _two_files(paths))
    return paths[0]


def twins(files: dict[str, tuple[Path, ...]]) -> Iterator[Problem]:
    """Ids with more than one file."""
    for id, paths in files.items():
        if len(paths) > 1:
            yield Problem(id, paths[1], _two_files(paths))


def _unspeakable(files: dict[str, tuple[Path, ...]]) -> Iterator[Problem]:
    """Ids from names that are no text, which no list, JSON or report can hold."""
    for id, paths in files.items():
        if any("\ud800" <= sign <= "\udfff" for sign in id):
            yield Problem(id, paths[0], f"{str(paths[0])!r} has a name that is not UTF-8: rename the file.")


def _two_files(paths: tuple[Path, ...]) -> str:
    names = " and ".join(path.name for path in paths)
    return f"{paths[0].parent} holds {names} for the same id '{id_of(paths[0].name)}': keep one of them."


class Listed(NamedTuple):
    """One line of an id list.

    Attributes:
        id: The id that it names.
        file: The list.
        line: Number of the line, from 1.
    """

    id: str
    file: Path
    line: int


def read_list(path: Path) -> list[Listed]:
    """Read an id list: one id per line, with or without a file ending; any line ends, with or without byte order mark.

    Raises:
        DataError: The file is not UTF-8 text, names nothing, or has a line that is too long for a name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: a byte order mark is no part of the first id
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"id list {path} cannot be read as UTF-8 text: save it as plain text, one id per line."
        ) from error
    lines = [Listed(id_of(line.strip()), path, number) for number, line in enumerate(text.splitlines(), 1)]
    entries = [entry for entry in lines if entry.id]
    if not entries:
        raise DataError(f"id list {path} names no image: put one id on each line or remove the file.")
    for entry in entries:
        if len(entry.id) > NAME:
            raise DataError(
                f"{path}, line {entry.line}, has {len(entry.id)} characters, more than a file's name can have: put one"
                " id on each line."
            )
    return entries


def list_problems(entries: Iterable[Listed], images: dict[str, tuple[Path, ...]], where: Path) -> Iterator[Problem]:
    """Listed ids without an image below the folder ``where``, or listed twice."""
    first: dict[str, Listed] = {}
    for entry in entries:
        id, path, line = entry
        place = f"{path}, line {line}"
        if id not in images:
            yield Problem(id, path, f"{place}: '{id}' has no file in {where}: add it or remove the line.")
        if id in first:
            before = first[id]
            there = f"line {before.line}" if before.file == path else f"{before.file}, line {before.line}"
            yield Problem(id, path, f"{place}: '{id}' is listed already in {there}: remove one of them.")
        else:
            first[id] = entry
