"""One file per data set format that can be written, and turning a data set into one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.core.progress import track
from fewlabel.core.types import Labelled, Unlabelled
from fewlabel.data.readers.base import FolderDataset
from fewlabel.data.writers.base import Part, Summary, Writer, write
from fewlabel.data.writers.coco import CocoWriter
from fewlabel.data.writers.cvat import CvatWriter
from fewlabel.data.writers.labelstudio import LabelStudioWriter
from fewlabel.data.writers.masks import MasksWriter
from fewlabel.data.writers.voc import VocWriter
from fewlabel.data.writers.yolo import YoloBoxWriter, YoloWriter

__all__ = ["WRITERS", "Summary", "Writer", "convert", "write"]

WRITERS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "yolo-boxes": YoloBoxWriter,
    "voc": VocWriter,
    "cvat": CvatWriter,
    "masks": MasksWriter,
    "labelstudio": LabelStudioWriter,
}
"""Writers by format."""


def convert(dataset: FolderDataset, out: Path | str, format: str) -> Summary:
    """Write a data set in another format; one image at a time is held.

    Images with labels are written with them (be they none), all others without.

    Args:
        dataset: The data set.
        out: Folder to make, outside the data set's own; one that holds something is refused.
        format: A key of WRITERS.

    Returns:
        What was written, and what the format cannot hold.

    Raises:
        DataError: There is no such format; ``out`` lies within the data set; a file cannot be read; or as
            `fewlabel.data.writers.base.write`.
    """
    if format not in WRITERS:
        raise DataError(f"There is no data format {format!r} to write; choose one of {', '.join(WRITERS)}.")
    source = dataset.root.resolve()
    if Path(out).resolve().is_relative_to(source.parent if source.is_file() else source):
        raise DataError(f"{out} lies within the data set {dataset.root}, which it would change: name a folder outside.")
    boxes_only = dataset.boxes_only
    return write(WRITERS[format], out, dataset.classes, _samples(dataset), boxes_only=boxes_only)


def _samples(dataset: FolderDataset) -> Iterator[tuple[Part, Labelled | Unlabelled]]:
    """All images of both parts, read when they are asked for."""
    parts: list[tuple[Part, str]] = [("train", id) for id in dataset.train_ids]
    parts += [("test", id) for id in dataset.test_ids]
    for part, id in track(parts, f"writing {dataset.name}", total=len(parts)):
        yield part, dataset.labelled(id) if dataset.has_mask(id) else dataset.unlabelled(id)
