"""Label maps: 16-bit PNG with a number for each object, and class maps beside them.

::

    out/images/ID.ENDING     the images
    out/instances/ID.png     1, 2, ... = objects, 0 = background
    out/labels/ID.png        class maps: 1, 2, ... = classes, 0 = background, 255 = ignored; only where there is more
                             than one class or something ignored
    out/classes.json         names of the indexes 0 (background), 1, 2, ...
    out/train.txt test.txt   ids of the parts

A pixel has one owner: where objects cover each other the smaller one gets it, and `Writer.lost` counts the others.
Boxes become the rectangles of pixels that they fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_json, write_text
from fewlabel.core.types import Labelled, Unlabelled
from fewlabel.data.readers.maps import BACKGROUNDS, IGNORED
from fewlabel.data.writers.base import Part, Writer, save_image
from fewlabel.data.writers.painted import class_map, paint

MOST = 2**16 - 1
"""Largest number of objects of one image."""


class MasksWriter(Writer):
    """Writes what `fewlabel.data.readers.masks` reads."""

    format = "masks"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        refuse_many(self.classes)
        self._ids: dict[Part, list[str]] = {"train": [], "test": []}

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`; an image with more than 65535 objects is refused."""
        self._ids[part].append(sample.image.id)
        save_image(sample.image, self.folder / "images")
        if isinstance(sample, Unlabelled):
            return
        numbers, seen = paint(sample.instances, self.lost)
        if len(seen) > MOST:
            raise DataError(f"image '{sample.image.id}' has {len(seen)} objects, but a 16-bit map numbers {MOST}.")
        if self.boxes_only:
            self.lost["boxes, which become rectangles of pixels"] += len(seen)
        self._save("instances", sample.image.id, numbers.astype(np.uint16))
        if len(self.classes) > 1 or sample.ignored is not None:
            indexes = class_map(numbers, sample.instances.classes[seen], sample.ignored, IGNORED)
            self._save("labels", sample.image.id, indexes)

    def finish(self) -> None:
        """See `Writer.finish`."""
        write_json(self.folder / "classes.json", [BACKGROUNDS[0], *self.classes])
        for part, ids in self._ids.items():
            if ids:
                write_text(self.folder / f"{part}.txt", "".join(f"{id}\n" for id in ids))

    def _save(self, folder: str, id: str, values: np.ndarray) -> None:
        (self.folder / folder).mkdir(exist_ok=True)
        Pillow.fromarray(values).save(self.folder / folder / f"{id}.png")


def refuse_many(classes: Sequence[str]) -> None:
    """Raise a DataError if class maps of 8 bits have too few indexes for the classes."""
    if len(classes) >= IGNORED:
        raise DataError(
            f"the data set has {len(classes)} classes, but class maps hold {IGNORED - 1}: choose the format coco."
        )
