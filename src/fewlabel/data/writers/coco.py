"""COCO's JSON.

::

    out/images/ID.png                        all images
    out/annotations/instances_train.json     labelled images and their objects; likewise instances_test.json
    out/annotations/image_info_train.json    unlabelled images; likewise image_info_test.json

An object is written as polygons along the edges of its pixels, one per part, which every tool reads; where it has a
hole, which COCO's polygons cannot say, as an uncompressed run-length code. Both give exactly the mask back. Ignored
regions are crowds. Objects of a data set of boxes have an empty "segmentation" and their exact "bbox".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.masks import Rle, areas, decode, encode
from fewlabel.core.types import Labelled, Unlabelled
from fewlabel.data.polygons import loops, rasterise
from fewlabel.data.writers.base import Part, Writer, printable, save_image


class CocoWriter(Writer):
    """Writes COCO files; annotations are put down at once and joined at the end."""

    format = "coco"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        printable(classes)
        self._annotations = folder / "annotations"
        self._annotations.mkdir()
        self._images = defaultdict[str, list[str]](list)  # entries by name of their file
        self._next_image = self._next_annotation = 1

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`."""
        image, id = sample.image, self._next_image
        file = save_image(image, self.folder / "images")
        name = f"{'instances' if isinstance(sample, Labelled) else 'image_info'}_{part}.json"
        entry = {"id": id, "file_name": file.name, "height": image.height, "width": image.width}
        self._images[name].append(json.dumps(entry))
        self._next_image += 1
        if isinstance(sample, Labelled):
            with self._lines(name).open("a", encoding="utf-8") as stream:
                for labels, crowd in ((sample.instances, 0), (sample.ignored, 1)):
                    for rle, index, box in self.objects(labels) if labels is not None else ():
                        shape = {"iscrowd": crowd, "segmentation": [] if self.boxes_only else _shape(rle, crowd)}
                        x0, y0, x1, y1 = box.tolist()
                        sides = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(areas([rle])[0])}
                        ids = {"id": self._next_annotation, "image_id": id, "category_id": index + 1}
                        stream.write(json.dumps({**ids, **shape, **sides}) + "\n")
                        self._next_annotation += 1

    def finish(self) -> None:
        """See `Writer.finish`."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, 1)]
        for name, images in self._images.items():
            with (self._annotations / name).open("w", encoding="utf-8") as stream:
                stream.write(f'{{"info": {{}}, "categories": {json.dumps(categories, ensure_ascii=False)},\n')
                stream.write('"images": [\n' + ",\n".join(images) + "]")
                if (lines := self._lines(name)).is_file():
                    stream.write(',\n"annotations": [\n')
                    with lines.open(encoding="utf-8") as found:
                        for number, line in enumerate(found):
                            stream.write(f"{',' if number else ''}{line}")
                    stream.write("]")
                    lines.unlink()
                stream.write("}\n")

    def _lines(self, name: str) -> Path:
        """Where the annotations of a file wait, one on each line."""
        return self._annotations / f"{name}.lines"


def _shape(rle: Rle, crowd: int) -> Any:
    """The value of "segmentation" for a mask that is not empty."""
    mask = decode(rle)
    if not crowd:
        found = loops(mask)
        if rasterise(found, mask.shape) == encode(mask):  # one part with a hole is not: polygons are joined
            return [loop.ravel().tolist() for loop in found]
    column = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(column)]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if column[0] else runs}
