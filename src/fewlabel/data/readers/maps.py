"""Objects out of maps of numbers, as masks, Pascal VOC and Cityscapes store them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewlabel.core.banded import banded_instances
from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.core.rle import Spans, box, from_many_spans, label_spans
from fewlabel.core.types import Instances
from fewlabel.data.dataset import Canvas
from fewlabel.data.large import HELD
from fewlabel.data.pixels import FileError, read_label_map
from fewlabel.data.readers.base import Labels, refuse_size
from fewlabel.data.readers.documents import read_text

IGNORED = 255
"""Class index of pixels that are neither object nor background."""

BAND = 512  # rows of a large map that are looked at at once

LONGEST = 255
"""Most characters of a class's name."""

BACKGROUNDS = ("background", "_background_", "__background__", "bg")
"""What lists of names call the index 0; such a name may stand first and is no class."""


def read_map(path: Path, kind: str, image: Canvas, max_pixels: int) -> np.ndarray:
    """Read a map of numbers of the image's size.

    Args:
        path: Its file.
        kind: What the file is, such as "class map".
        image: The image.
        max_pixels: Largest height x width that is decoded.

    Returns:
        int32 (H, W), 0 or more.

    Raises:
        FileError: It cannot be read, has another size, or holds negative numbers.
    """
    numbers = read_label_map(path, max_pixels=max_pixels)
    refuse_size(path, kind, (numbers.shape[0], numbers.shape[1]), image)
    if numbers.min() < 0:
        raise FileError(path, f"{kind} {path} holds {numbers.min()}: count from 1, because 0 is background.")
    return numbers


def from_mask(mask: np.ndarray) -> Instances:
    """One instance per 8-connected component of a mask bool (H, W); a large one is labelled band by band."""
    if mask.size <= HELD:
        return Instances.from_semantic(mask)
    bands = (mask[top : top + BAND] for top in range(0, len(mask), BAND))
    size = (mask.shape[0], mask.shape[1])
    return banded_instances(((band, np.broadcast_to(1.0, band.shape)) for band in bands), size)


def from_numbers(numbers: np.ndarray) -> tuple[Instances, np.ndarray]:
    """One instance per number, in as many pieces as it has.

    Args:
        numbers: int32 (H, W), 0 = background; numbers need not be contiguous.

    Returns:
        Instances of class 0 in the order of their numbers, and these numbers int64 (N,).
    """
    if numbers.size > HELD:
        return _from_large(numbers)
    wanted = np.unique(numbers)
    wanted = wanted[wanted > 0].astype(np.int64)
    labels = np.where(numbers > 0, np.searchsorted(wanted, numbers) + 1, 0).astype(np.int32)
    return Instances.from_components(labels, np.arange(1, len(wanted) + 1)), wanted


def _from_large(numbers: np.ndarray) -> tuple[Instances, np.ndarray]:
    """As `from_numbers`, by the runs of bands: no second map of the image's size is made."""
    size = height, _ = (numbers.shape[0], numbers.shape[1])
    found = [label_spans(numbers[top : top + BAND], height, top) for top in range(0, height, BAND)]
    owner = np.concatenate([owners for owners, _ in found])
    starts, stops = (np.concatenate([runs[edge] for _, runs in found]) for edge in (0, 1))
    order = np.lexsort((starts, owner))
    runs = Spans(starts[order], stops[order])
    wanted, first = np.unique(owner[order], return_index=True)
    edges = np.append(first, len(owner))
    each = [Spans(runs.starts[a:b], runs.stops[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    count = len(wanted)
    instances = Instances(
        size,
        tuple(from_many_spans(runs, edges, size)),
        np.zeros(count, np.int64),
        np.ones(count, np.float32),
        np.array([box(own, height) for own in each], np.float32).reshape(-1, 4),
    )
    return instances, wanted


def from_indexes(indexes: np.ndarray) -> Instances:
    """One instance per 8-connected component of each class, classes in order; class is index - 1.

    Args:
        indexes: int32 (H, W), 0 = background, `IGNORED` = nothing.
    """
    # Two components of different classes can touch, so each class is labelled alone; offsets keep numbers apart.
    labels, classes = np.zeros(indexes.shape, np.int32), list[int]()
    for index in np.unique(indexes):
        if index > 0 and index != IGNORED:
            own, count = components(indexes == index)
            labels += np.where(own > 0, own + len(classes), 0).astype(np.int32)
            classes += [int(index) - 1] * count
    found = Instances.from_components(labels, np.arange(1, len(classes) + 1))
    return replace(found, classes=np.asarray(classes, np.int64))


def class_of(numbers: np.ndarray, wanted: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """The class index that most pixels of each object have.

    Args:
        numbers: int32 (H, W), numbers of objects.
        wanted: int64 (N,), ascending numbers that occur.
        indexes: int32 (H, W), 0..255, class indexes.

    Returns:
        int64 (N,). Background counts only where an object has nothing else; of equals the lowest index wins.
    """
    inside = np.isin(numbers, wanted)
    rows = np.searchsorted(wanted, numbers[inside])
    votes = np.zeros((len(wanted), IGNORED + 1), np.int64)
    np.add.at(votes, (rows, indexes[inside]), 1)
    best = votes[:, 1:].argmax(axis=1) + 1
    return np.where(votes[:, 1:].any(axis=1), best, 0)


def classified(numbers: np.ndarray, indexes: np.ndarray, path: Path) -> Labels:
    """Objects by one map, their classes and what is ignored by another.

    Args:
        numbers: int32 (H, W), numbers of objects, 0 = background.
        indexes: int32 (H, W), 0..255, class indexes. An object with more ignored pixels than of any class is ignored.
        path: File of the class indexes, for errors.

    Raises:
        FileError: An object has no class.
    """
    instances, wanted = from_numbers(numbers)
    index = class_of(numbers, wanted, indexes)
    if not index.all():
        number = wanted[np.flatnonzero(index == 0)[0]]
        raise FileError(path, f"class map {path} is background at all of object {number}: give it its class there.")
    known = index != IGNORED
    kept = replace(instances, classes=np.where(known, index - 1, 0)).select(known)
    return Labels(kept, region((indexes == IGNORED) | np.isin(numbers, wanted[~known])))


def region(mask: np.ndarray) -> Instances | None:
    """A mask bool (H, W) as one ignored region; None if it is empty."""
    return Instances.from_masks(mask[None]) if mask.any() else None


def refuse_indexes(path: Path, indexes: np.ndarray, names: Sequence[str]) -> None:
    """Raise a FileError if a class map holds an index without a name.

    Args:
        path: Its file.
        indexes: int32 (H, W).
        names: Names of the indexes 1, 2, ...
    """
    present = np.unique(indexes)
    strange = present[(present < 0) | (present > len(names)) & (present != IGNORED)]
    if len(strange):
        raise FileError(
            path,
            f"class map {path} holds the index {strange[0]}, but classes have the indexes 1..{len(names)} and"
            f" {IGNORED} is ignored: name its class in the list of classes or export the map again.",
        )


def read_names(path: Path) -> tuple[str, ...]:
    """Read the names of the class indexes 1, 2, ...

    Text: one name per line. In ``labelmap.txt``, as CVAT writes it, colours follow after a colon and lines that begin
    with ``#`` are comments.
    JSON: a list of names, or an object from index to name or from name to index. A first name such as "background"
    (see `BACKGROUNDS`) stands for the index 0.

    Returns:
        The names, without background.

    Raises:
        DataError: The file is no list of distinct names.
    """
    names = _json_names(path) if path.suffix.lower() == ".json" else _text_names(path)
    if names and names[0] == "__ignore__":  # labelme's lists begin so; it stands for 255
        names = names[1:]
    if names and names[0].lower() in BACKGROUNDS:
        names = names[1:]
    if not names or len(names) >= IGNORED:
        raise DataError(f"class list {path} names {len(names)} classes, expected 1..{IGNORED - 1}: mend the list.")
    for name in names:
        if len(name) > LONGEST:
            raise DataError(f"class list {path} has a name of {len(name)} characters: put one name on each line.")
        if names.count(name) > 1:
            raise DataError(f"class list {path} names {name!r} more than once: give each class one line of its own.")
    return tuple(names)


def _text_names(path: Path) -> list[str]:
    lines = read_text(path, "class list").splitlines()
    if path.name == "labelmap.txt":
        lines = [line.split(":")[0] for line in lines if not line.lstrip().startswith("#")]
    return [name for line in lines if (name := line.strip())]


def _json_names(path: Path) -> list[str]:
    try:
        value = json.loads(read_text(path, "class list"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"class list {path} is not valid JSON ({str(error).rstrip('.')}): mend or remove it.") from None
    if isinstance(value, dict):
        pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in value.items()]
        try:
            numbered = {int(str(index)): name for index, name in pairs}
        except ValueError:
            numbered = {}
        first = min(numbered, default=0)
        if first not in (0, 1) or sorted(numbered) != list(range(first, first + len(pairs))):
            raise DataError(f"class list {path} has indexes that are not 1, 2, ...: number its classes without gaps.")
        # A list that begins with 0 names the background there; anything else at 0 has no place in a mask.
        if first == 0 and str(numbered[0]).lower() not in BACKGROUNDS:
            raise DataError(
                f"class list {path} calls the index 0 {str(numbered[0])[:40]!r}, but 0 is background: number classes"
                " from 1."
            )
        value = [numbered[index] for index in sorted(numbered)]
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise DataError(f'class list {path} is no list of names: write a JSON list such as ["cat", "dog"].')
    return value
