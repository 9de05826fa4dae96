"""The id lists train, val, trainval and test that many layouts share, and which of them is held out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from fewlabel.data.readers.base import Listed, read_list

FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Parts by the names of their folders, in lower case."""


class Lists(NamedTuple):
    """What the lists of a data set name, in their order; empty where there is no such list.

    Attributes:
        train: The training list; ``trainval`` where there is none.
        val: The validation list; empty where ``trainval`` stood in for ``train``.
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
        train, val, both, test = (
            read_list(path) if (path := folder / f"{part}.txt").is_file() else []
            for part in ("train", "val", "trainval", "test")
        )
        if train or val or both or test:
            # trainval repeats what train and val name, so it counts only where it says what they do not
            return Lists(train or both, val if train or not both else [], test)
    return Lists([], [], [])


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
