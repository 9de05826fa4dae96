"""CVAT's own format for images ("CVAT for images 1.1"), for CVAT's "Upload annotations".

::

    out/annotations.xml     labels in <meta>, one <image> per labelled image
    out/images/ID.ENDING    the images, also those without labels

Masks become <mask> elements, which keep every pixel, hole and piece, and objects may cover each other. If the labels
are boxes they become <box> elements, with four decimals. The part becomes the subset "Train" or "Test".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewlabel.core.masks import decode
from fewlabel.core.types import Instances, Labelled, Unlabelled
from fewlabel.data.readers.cvat import FILE, IMAGES
from fewlabel.data.writers.base import Part, Writer, save_image
from fewlabel.data.writers.painted import EMPTY
from fewlabel.data.writers.xml import attribute, number, text


class CvatWriter(Writer):
    """Writes what `fewlabel.data.readers.cvat` reads; the file grows by one image at a time."""

    format = "cvat"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        self._count = 0
        labels = "".join(
            f"        <label><name>{text(name)}</name><attributes></attributes></label>\n" for name in self.classes
        )
        self._write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
            f"      <mode>annotation</mode>\n      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
        )

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`."""
        image = sample.image
        path = save_image(image, self.folder / IMAGES)
        if isinstance(sample, Unlabelled):
            if part == "test":  # listing the image would say that it has no object
                self.lost["parts of test images without labels"] += 1
            return
        if sample.ignored is not None:
            self.lost["ignored regions"] += len(sample.ignored)
        shapes = [self._shape(sample.instances, index) for index in range(len(sample.instances))]
        self._write(
            f'  <image id="{self._count}" name={attribute(path.name)} subset="{part.capitalize()}"'
            f' width="{image.width}" height="{image.height}">\n{"".join(shapes)}  </image>\n'
        )
        self._count += 1

    def finish(self) -> None:
        """See `Writer.finish`."""
        self._write("</annotations>\n")

    def _write(self, part: str) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8", newline="\n") as file:
            file.write(part)

    def _shape(self, instances: Instances, index: int) -> str:
        label = f'label={attribute(self.classes[int(instances.classes[index])])} source="manual" occluded="0"'
        if self.boxes_only:
            edges = zip(("xtl", "ytl", "xbr", "ybr"), instances.boxes[index].tolist(), strict=True)
            box = " ".join(f'{name}="{number(value)}"' for name, value in edges)
            return f'    <box {label} {box} z_order="0"></box>\n'
        mask = decode(instances.rles[index])
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(ys):
            self.lost[EMPTY] += 1
            return ""
        inside = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        runs = ", ".join(map(str, row_runs(inside)))
        place = f'left="{xs[0]}" top="{ys[0]}" width="{inside.shape[1]}" height="{inside.shape[0]}"'
        return f'    <mask {label} rle="{runs}" {place} z_order="0"></mask>\n'


def row_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of background and object in turn, along the rows of a mask bool (H, W), H and W above 0.

    The first is background and 0 if the mask begins with object.
    """
    flat = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    runs = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs
