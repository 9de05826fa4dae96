"""YOLO's text labels, as polygons or as boxes.

::

    out/data.yaml             names, train: images/train, val and test: images/test
    out/images/train/ID.png   and out/labels/train/ID.txt; likewise test/

A polygon runs along the edges of pixels. An object of several parts or with holes is one polygon still: the parts are
joined by cuts of no width, so that filling it by parity, as the COCO tools and fewlabel do, gives exactly the mask
back; tools that draw the outline too (OpenCV's fillPoly) add the pixels along it. Numbers have ten digits, so a corner
moves by less than a millionth of a pixel. There is no place for ignored regions, and boxes keep no masks: both are
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fewlabel.core.masks import decode
from fewlabel.core.types import Labelled, Unlabelled
from fewlabel.data.polygons import outline
from fewlabel.data.writers.base import Part, Writer, printable, save_image


class YoloWriter(Writer):
    """Writes polygons, or boxes where the data set has nothing else."""

    format = "yolo"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        printable(classes)
        self._parts: set[Part] = set()

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`."""
        self._parts.add(part)
        image = sample.image
        save_image(image, self.folder / "images" / part)
        if isinstance(sample, Unlabelled):
            return
        sides = np.array([image.width, image.height], dtype=np.float64)
        lines = []
        for rle, index, box in self.objects(sample.instances):
            if self.boxes_only:
                corners = box.reshape(2, 2) / sides
                shares = np.concatenate([corners.mean(axis=0), corners[1] - corners[0]])
            else:
                shares = (outline(decode(rle)) / sides).ravel()
            lines.append(f"{index} {' '.join(f'{share:.10g}' for share in shares)}\n")
        if sample.ignored is not None and len(sample.ignored):
            self.lost["ignored regions"] += len(sample.ignored)
        labels = self.folder / "labels" / part
        labels.mkdir(parents=True, exist_ok=True)
        (labels / f"{image.id}.txt").write_text("".join(lines), encoding="utf-8")

    def finish(self) -> None:
        """See `Writer.finish`."""
        value: dict[str, Any] = {"train": "images/train"} if "train" in self._parts else {}
        if "test" in self._parts:
            value |= {"val": "images/test", "test": "images/test"}
        value["names"] = dict(enumerate(self.classes))
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        (self.folder / "data.yaml").write_text(text, encoding="utf-8")


class YoloBoxWriter(YoloWriter):
    """Writes boxes whatever the data set has."""

    format = "yolo-boxes"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=True)
        self._masks = not boxes_only

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`."""
        super().add(part, sample)
        if self._masks and isinstance(sample, Labelled) and len(sample.instances):
            self.lost["masks of objects"] += len(sample.instances)
