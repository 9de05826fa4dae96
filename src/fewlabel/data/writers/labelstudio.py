"""Label Studio: a file of tasks to import, with polygons or rectangles in percent of the image.

::

    out/tasks.json          one task per image, to import
    out/config.xml          the labelling interface, to paste into the project's settings
    out/images/ID.ENDING    the images

Tasks name their images as ``/data/local-files/?d=images/NAME``: Label Studio shows them if LOCAL_FILES_SERVING_ENABLED
is set and LOCAL_FILES_DOCUMENT_ROOT is the folder ``out``. Labels made by people become annotations, all others
predictions with their scores, to be reviewed. The fields ``id`` and ``part`` of a task help to filter.

A mask becomes one polygon along the edges of its pixels, whatever holes and pieces it has (see
`fewlabel.data.polygons.outline`), so that filling it by the even-odd rule gives exactly the mask back. Label Studio
itself shows holes as filled. Percent are not rounded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from scipy import ndimage

from fewlabel.core.files import write_text
from fewlabel.core.masks import decode
from fewlabel.core.types import Instances, Labelled, Unlabelled
from fewlabel.data.polygons import outline
from fewlabel.data.writers.base import Part, Writer, save_image
from fewlabel.data.writers.painted import EMPTY
from fewlabel.data.writers.xml import attribute

FILE, CONFIG, IMAGES = "tasks.json", "config.xml", "images"
KINDS = {False: "polygonlabels", True: "rectanglelabels"}
"""Types of results, by whether the labels are boxes."""


class LabelStudioWriter(Writer):
    """Writes tasks to import; the file grows by one task at a time."""

    format = "labelstudio"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        self._count = 0
        tag = "RectangleLabels" if boxes_only else "PolygonLabels"
        labels = "".join(f"    <Label value={attribute(name)}/>\n" for name in self.classes)
        view = f'  <Image name="image" value="$image"/>\n  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n'
        write_text(folder / CONFIG, f"<View>\n{view}</View>\n")

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`."""
        path = save_image(sample.image, self.folder / IMAGES)
        place = f"/data/local-files/?d={IMAGES}/{quote(path.name)}"
        task: dict[str, Any] = {"data": {"image": place, "id": sample.image.id, "part": part}}
        if isinstance(sample, Labelled):
            if sample.ignored is not None:
                self.lost["ignored regions"] += len(sample.ignored)
            task |= self._labels(sample.instances, sample.image.id)
        self._write(("[\n" if not self._count else ",\n") + json.dumps(task, ensure_ascii=False, allow_nan=False))
        self._count += 1

    def finish(self) -> None:
        """See `Writer.finish`."""
        self._write("\n]\n")

    def _write(self, part: str) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8", newline="\n") as file:
            file.write(part)

    def _labels(self, instances: Instances, id: str) -> dict[str, Any]:
        """Annotations or predictions of a task."""
        results = [self._result(instances, index, id) for index in range(len(instances))]
        result = [item for item in results if item is not None]
        if instances.source == "human":
            return {"annotations": [{"result": result}]}
        for item, score in zip(results, instances.scores, strict=True):
            if item is not None:
                item["score"] = float(score)
        score = float(instances.scores.mean()) if len(instances) else 0.0
        name = f"{instances.source}, round {instances.round}"
        return {"predictions": [{"model_version": name, "score": score, "result": result}]}

    def _result(self, instances: Instances, index: int, id: str) -> dict[str, Any] | None:
        """One object; None if there is nothing to draw."""
        kind = KINDS[self.boxes_only]
        height, width = instances.size
        percent = np.array([100 / width, 100 / height])
        value: dict[str, Any]
        if self.boxes_only:
            box = instances.boxes[index].astype(np.float64)
            (x, y), (across, down) = (box[:2] * percent).tolist(), ((box[2:] - box[:2]) * percent).tolist()
            value = {"x": x, "y": y, "width": across, "height": down, "rotation": 0}
        else:
            mask = decode(instances.rles[index])
            ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if not len(ys):
                self.lost[EMPTY] += 1
                return None
            mask = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]  # following edges takes time by the area looked at
            if ndimage.binary_fill_holes(mask).sum() > mask.sum():
                self.lost["holes of objects, which Label Studio shows as filled"] += 1
            value = {"points": ((outline(mask) + (xs[0], ys[0])) * percent).tolist(), "closed": True}
        return {
            "id": f"{id}-{index + 1}",
            "type": kind,
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value | {kind: [self.classes[int(instances.classes[index])]]},
        }
