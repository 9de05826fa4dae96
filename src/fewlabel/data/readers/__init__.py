"""One file per data set format, and which of them a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.readers.base import FolderDataset
from fewlabel.data.readers.cityscapes import CityscapesDataset
from fewlabel.data.readers.coco import CocoDataset
from fewlabel.data.readers.cvat import CvatDataset
from fewlabel.data.readers.labelme import LabelmeDataset
from fewlabel.data.readers.masks import MasksDataset
from fewlabel.data.readers.plain import PlainDataset
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.readers.video import VideoDataset
from fewlabel.data.readers.voc import VocDataset
from fewlabel.data.readers.yolo import YoloDataset

__all__ = ["FORMATS", "READERS", "FolderDataset", "Layout", "find_layout", "open_folder"]

READERS: dict[str, type[FolderDataset]] = {
    "coco": CocoDataset,
    "cityscapes": CityscapesDataset,
    "voc": VocDataset,
    "yolo": YoloDataset,
    "labelme": LabelmeDataset,
    "cvat": CvatDataset,
    "sirst": SirstDataset,
    "masks": MasksDataset,
    "video": VideoDataset,
    "plain": PlainDataset,
}
"""Readers by format. Of several that recognise a folder the first is taken: those with the surest signs come first."""

FORMATS = ("auto", *READERS)
"""What a user may ask for."""


class Layout(NamedTuple):
    """What a folder seems to hold.

    Attributes:
        format: Key of READERS.
        reason: Why, as the end of a sentence: "it holds ...".
        others: Formats that it could be as well.
    """

    format: str
    reason: str
    others: tuple[str, ...] = ()

    def sentence(self) -> str:
        """What was found and why, for a report."""
        other = f"; could also be {', '.join(self.others)} (choose with the format option)" if self.others else ""
        return f"format: {self.format}, because {self.reason}{other}"


def find_layout(root: Path | str) -> Layout:
    """Recognise the layout of a data set.

    Args:
        root: Its folder, or its file where the layout is one.

    Returns:
        The layout and why.

    Raises:
        DataError: The root does not exist, or no reader recognises it.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"The data folder {root} does not exist; give the folder of the images.")
    found = {name: reason for name, reader in READERS.items() if (reason := reader.recognise(root)) is not None}
    if not found:
        raise DataError(f"{root} has none of the layouts {', '.join(READERS)}: it seems to hold no image or label.")
    first, *others = found
    return Layout(first, found[first], tuple(name for name in others if name != PlainDataset.format))


def open_folder(
    root: Path | str,
    format: str = "auto",
    exclude: frozenset[str] = frozenset(),
    *,
    strict: bool = True,
    max_pixels: int = MAX_PIXELS,
    radiometry: Radiometry = STANDARD,
    every: int = 1,
) -> FolderDataset:
    """Open a data set.

    Args:
        root: Its folder, or its file where the layout is one.
        format: A key of READERS, or "auto" to recognise it.
        exclude: As `FolderDataset`.
        strict: As `FolderDataset`.
        max_pixels: As `FolderDataset`.
        radiometry: As `FolderDataset`.
        every: As `FolderDataset`.

    Returns:
        The data set.

    Raises:
        DataError: As `find_layout` and `FolderDataset`; or there is no such format.
    """
    if format not in FORMATS:
        raise DataError(f"There is no data format {format!r}; choose one of {', '.join(FORMATS)}.")
    name = find_layout(root).format if format == "auto" else format
    return READERS[name](root, exclude, strict=strict, max_pixels=max_pixels, radiometry=radiometry, every=every)
