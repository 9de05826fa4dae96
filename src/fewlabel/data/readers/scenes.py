"""One folder per image with one mask file per object, as the 2018 Data Science Bowl was published (BBBC038)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fewlabel.core.masks import Rle, encode
from fewlabel.core.types import Instances
from fewlabel.data import polygons
from fewlabel.data.dataset import Canvas
from fewlabel.data.pixels import read_mask
from fewlabel.data.readers.base import by_stem, refuse_size

IMAGES, MASKS = "images", "masks"


class Scene(NamedTuple):
    """The files of one image.

    Attributes:
        images: Image files; more than one is a problem.
        masks: One mask per object, sorted; None if the folder has no masks/, so that the image is unlabelled.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...] | None


def scenes(root: Path) -> Iterator[tuple[str, Scene]]:
    """The folders ID/ with ID/images/ID.png below a folder, or below folders in it such as stage1_train/.

    Args:
        root: The data set's folder.

    Yields:
        The id, which is the folder's name, and its files, sorted.
    """
    for home in (root, *_folders(root)):
        for folder in _folders(home):
            images = by_stem(folder / IMAGES).get(folder.name)
            if images is not None:
                masks = None
                if (folder / MASKS).is_dir():
                    masks = tuple(path for paths in by_stem(folder / MASKS).values() for path in paths)
                yield folder.name, Scene(images, masks)


def read_scene(masks: tuple[Path, ...], image: Canvas, max_pixels: int) -> Instances:
    """One instance per mask file, all of class 0; an empty mask is no object.

    Args:
        masks: The files; nonzero = object. They may cover each other.
        image: The image.
        max_pixels: Largest height x width that is decoded.

    Raises:
        FileError: A mask cannot be read or has another size than the image.
    """
    rles = list[Rle]()
    for path in masks:
        mask = read_mask(path, max_pixels=max_pixels)
        refuse_size(path, "mask", (mask.shape[0], mask.shape[1]), image)
        if mask.any():
            rles.append(encode(mask))
    return polygons.instances(image.size, rles, [0] * len(rles))


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != ".")
