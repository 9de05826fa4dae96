"""The id lists train, val, trainval and test that many layouts share, and which of them is held out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fewlabel.core.errors import DataError
from fewlabel.data.readers.base import ENDINGS, NAME, Listed, id_of, read_list

FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Parts by the names of their folders, in lower case."""

_PARTS = ("train", "val", "trainval", "test")
_BEGINNING = re.compile(r"train_?val_?test|train_?val|train|val|test")
_HEAD = 5  # lines that tell whether a file is an id list
_DEPTH = 3  # folders below the root in which lists are looked for that nothing reads


class Lists(NamedTuple):
    """What the lists of a data set name, in their order; empty where there is no such list.

    Attributes:
        train: The training list; ``trainval`` where there is none, or no validation list beside it.
        val: The validation list; empty where ``trainval`` stood in.
        test: The test list.
    """

    train: list[Listed]
    val: list[Listed]
    test: list[Listed]

    def all(self) -> list[Listed]:
        """Every entry, to look for problems."""
        return [*self.train, *self.val, *self.test]


def find_lists(*folders: Path) -> Lists:
    """Read ``train.txt``, ``val.txt``, ``trainval.txt`` and ``test.txt`` of the first folder that holds one of them.

    Args:
        folders: Where to look; need not exist.

    Raises:
        DataError: A list cannot be read or is empty.
    """
    for folder in folders:
        files = exact_lists(folder)
        if files:
            return read_lists(files)
    return Lists([], [], [])


def exact_lists(folder: Path) -> dict[str, Path]:
    """The files ``train.txt``, ``val.txt``, ``trainval.txt`` and ``test.txt`` of a folder, by part."""
    return {part: path for part in _PARTS if (path := folder / f"{part}.txt").is_file()}


def prefixed_lists(folder: Path, preferred: str = "") -> dict[str, Path]:
    """The files of a folder whose names begin with a part, such as ``train_NUAA-SIRST.txt``, by part.

    ``trainvaltest`` is passed over, because it splits nothing.

    Args:
        folder: Where to look; need not exist.
        preferred: What follows the part in the name of the list that counts before others of its part, such as "_full".

    Raises:
        DataError: There are several lists of one part.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.txt")):
        match = _BEGINNING.match(path.name)
        if match and (part := match[0].replace("_", "")) in _PARTS:
            found.setdefault(part, []).append(path)
    for part, paths in found.items():
        if preferred and (first := folder / f"{part}{preferred}.txt") in paths:
            found[part] = [first]
        elif len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(
                f"{folder} holds several {part} lists ({names}): keep one, because published splits must not be mixed."
            )
    return {part: paths[0] for part, paths in found.items()}


def read_lists(files: dict[str, Path]) -> Lists:
    """Read the lists of a data set.

    Args:
        files: List by part: "train", "val", "trainval" or "test".

    Raises:
        DataError: A list cannot be read or is empty.
    """
    train, val, both, test = (read_list(files[part]) if part in files else [] for part in _PARTS)
    # trainval repeats what train and val name, so it counts only where it says what they do not
    return Lists(train, val, test) if (train and val) or not both else Lists(both, [], test)


def stray_list(root: Path, images: Collection[str]) -> Path | None:
    """A text file that names some images of a data set, line by line: a split that its reader does not know.

    Only the first lines are looked at; most have to name images, with or without folders and endings. A file that is
    called like an image belongs to it, and one that names all images splits nothing; both are passed over.

    Args:
        root: The data set's folder.
        images: Ids of all its images.

    Returns:
        The first such file, or None.
    """
    for path in _texts(root, _DEPTH):
        if path.stem in images:
            continue
        try:
            with path.open(encoding="utf-8-sig") as file:
                head = _names(file.readline(_HEAD * NAME) for _ in range(2 * _HEAD))[:_HEAD]
            if 2 * sum(_named(line, images) for line in head) <= len(head):
                continue
            named = {id for line in _names(path.read_text(encoding="utf-8-sig").splitlines()) for id in _ids(line)}
        except (OSError, UnicodeDecodeError):
            continue  # no list that anyone could read
        if not named.issuperset(images):
            return path
    return None


def refuse_stray(root: Path, images: Collection[str], read: str) -> None:
    """Raise a DataError if a list lies where its reader does not look: were it overlooked, its test images would train.

    Args:
        root: The data set's folder.
        images: Ids of all its images.
        read: Where lists are looked for and what they are called, for the message.
    """
    stray = stray_list(root, images)
    if stray is not None:
        raise DataError(
            f"{stray.parent} holds the id list {stray.name}, which is not read: lists are looked for in {read}, so move"
            " those of the wanted split there and others out of the data folder."
        )


def _texts(folder: Path, depth: int) -> Iterator[Path]:
    """Text files of a folder and of those in it, in sorted order, without hidden ones and links to folders."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return  # what nobody may look into hides no list that others read
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == ".txt":
            if path.is_file():
                yield path
        elif depth and path.suffix.lower() not in ENDINGS and path.is_dir() and not path.is_symlink():
            yield from _texts(path, depth - 1)


def _names(lines: Iterable[str]) -> list[str]:
    """Lines without blanks around them; empty ones are dropped."""
    return [line for text in lines if (line := text.strip())]


def _ids(line: str) -> list[str]:
    """Ids that a line may mean: the line itself and each word of it, without folders."""
    return [id_of(re.split(r"[\\/]", name)[-1]) for name in (line, *re.split(r"[\s,;]+", line))]


def _named(line: str, images: Collection[str]) -> bool:
    """Whether a line names an image, or every word of it does (an image and its mask)."""
    whole, *words = _ids(line)
    return whole in images or all(word in images for word in words)


def held_out(
    train: Iterable[str], val: Iterable[str], test: Iterable[str], labelled: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test ids of a data set with three parts.

    The test part is held out where any of its images has labels, and the validation part trains then, because fewlabel
    draws validation images of its own from the labelled share. Where the labels of the test part are kept back by its
    publisher, the validation part is held out and the test part is left alone; without a validation part the test part
    stays what it is.

    Args:
        train: Ids of the training part.
        val: Ids of the validation part.
        test: Ids of the test part.
        labelled: Ids that have labels.

    Returns:
        Training and test ids.
    """
    train, val, test = tuple(train), tuple(val), tuple(test)
    if any(id in labelled for id in test):
        return train + val, test
    return (train, val) if val else (train, test)


def listed_parts(
    lists: Lists, images: Iterable[str], labelled: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test ids by `held_out`; without a training list all images that no other list names train, sorted.

    Args:
        lists: What the lists name.
        images: Ids of all images.
        labelled: Ids that have labels.
    """
    train, val, test = (tuple(entry.id for entry in part) for part in lists)
    return held_out(train or tuple(sorted(set(images) - set(val) - set(test))), val, test, labelled)


def folder_parts(folders: dict[str, str], labelled: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test ids by `held_out`, where folders tell the parts.

    Args:
        folders: Name of the part's folder by id, such as "validation"; an unknown name trains.
        labelled: Ids that have labels.
    """
    part = {id: FOLDERS.get(folder.lower(), "train") for id, folder in sorted(folders.items())}
    train, val, test = ([id for id in part if part[id] == name] for name in ("train", "val", "test"))
    return held_out(train, val, test, labelled)
