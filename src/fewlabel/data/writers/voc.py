"""Pascal VOC: boxes in XML files, and maps of objects and classes where the labels are masks.

::

    out/JPEGImages/ID.ENDING          the images
    out/Annotations/ID.xml            one <object> per object; the n-th has number n in the map of objects
    out/SegmentationObject/ID.png     1, 2, ... = objects, 0 = background, 255 = ignored; VOC's palette
    out/SegmentationClass/ID.png      likewise, with the classes' indexes
    out/ImageSets/Main/               train.txt, test.txt: ids of the parts; with maps also in ImageSets/Segmentation/
    out/labelmap.txt                  names and colours of the class indexes, as CVAT reads and writes them

A pixel has one owner: where objects cover each other the smaller one gets it, and `Writer.lost` counts the others.
Without maps ignored boxes become difficult objects; ignored regions that are no boxes are lost. VOC counts pixels from
1, and a box includes its last pixel: 0 to 3 in pixel edges is written as xmin 1, xmax 3; fractions are kept to four
decimals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_text
from fewlabel.core.types import Instances, Labelled, Unlabelled
from fewlabel.data.polygons import fill_box
from fewlabel.data.readers.maps import BACKGROUNDS, IGNORED
from fewlabel.data.readers.voc import BOXES, IMAGES, INDEXES, NUMBERS
from fewlabel.data.writers.base import Part, Writer, save_image
from fewlabel.data.writers.masks import refuse_many
from fewlabel.data.writers.painted import class_map, paint
from fewlabel.data.writers.xml import number, text


class VocWriter(Writer):
    """Writes what `fewlabel.data.readers.voc` reads."""

    format = "voc"

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        super().__init__(folder, classes, boxes_only=boxes_only)
        refuse_many(self.classes)
        for name in self.classes:
            if ":" in name or name.startswith("#") or name != " ".join(name.split()):
                raise DataError(
                    f"class {name!r} cannot stand in Pascal VOC's labelmap.txt: rename it without colon, number sign or"
                    " double blanks."
                )
        self._ids: dict[Part, list[str]] = {"train": [], "test": []}
        for name in (BOXES,) if boxes_only else (BOXES, NUMBERS, INDEXES):
            (folder / name).mkdir()

    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """See `Writer.add`; an image with more than 254 objects is refused if they are masks."""
        image = sample.image
        self._ids[part].append(image.id)
        path = save_image(image, self.folder / IMAGES)
        if isinstance(sample, Unlabelled):
            return
        if self.boxes_only:
            items = [self._object(sample.instances, index) for index in range(len(sample.instances))]
            items += self._difficult(sample.ignored)
        else:
            instances = self._save_maps(sample)
            items = [self._object(instances, index) for index in range(len(instances))]
        head = (
            f"  <folder>{IMAGES}</folder>\n  <filename>{text(path.name)}</filename>\n"
            f"  <size><width>{image.width}</width><height>{image.height}</height>"
            f"<depth>{image.channels}</depth></size>\n"
            f"  <segmented>{int(not self.boxes_only)}</segmented>\n"
        )
        write_text(self.folder / BOXES / f"{image.id}.xml", f"<annotation>\n{head}{''.join(items)}</annotation>\n")

    def finish(self) -> None:
        """See `Writer.finish`."""
        colours = [",".join(map(str, colour)) for colour in palette()[: len(self.classes) + 1].tolist()]
        names = zip((BACKGROUNDS[0], *self.classes), colours, strict=True)
        rows = ["# label:color_rgb:parts:actions", *(f"{name}:{colour}::" for name, colour in names)]
        write_text(self.folder / "labelmap.txt", "".join(f"{row}\n" for row in rows))
        for name in ("Main",) if self.boxes_only else ("Main", "Segmentation"):
            for part, ids in self._ids.items():
                if ids:
                    write_text(self.folder / "ImageSets" / name / f"{part}.txt", "".join(f"{id}\n" for id in ids))

    def _difficult(self, ignored: Instances | None) -> list[str]:
        """Ignored regions that are boxes; counts the others as lost."""
        if ignored is None:
            return []
        boxes = [fill_box(box.tolist(), ignored.size)[0] for box in ignored.boxes]
        fitting = [index for index, box in enumerate(boxes) if box == ignored.rles[index]]
        if len(fitting) < len(ignored):
            self.lost["ignored regions"] += len(ignored) - len(fitting)
        return [self._object(ignored, index, difficult=True) for index in fitting]

    def _object(self, instances: Instances, index: int, difficult: bool = False) -> str:
        x0, y0, x1, y1 = instances.boxes[index].tolist()
        edges = (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1))
        box = "".join(f"<{name}>{number(value)}</{name}>" for name, value in edges)
        return (
            f"  <object>\n    <name>{text(self.classes[int(instances.classes[index])])}</name>\n"
            "    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n"
            f"    <difficult>{int(difficult)}</difficult>\n    <bndbox>{box}</bndbox>\n  </object>\n"
        )

    def _save_maps(self, sample: Labelled) -> Instances:
        """Write the maps of an image; returns the objects that can be seen in them, in the order of their numbers."""
        numbers, seen = paint(sample.instances, self.lost)
        if len(seen) >= IGNORED:
            raise DataError(
                f"image '{sample.image.id}' has {len(seen)} objects, but Pascal VOC's maps number {IGNORED - 1}: choose"
                " the format masks or coco."
            )
        instances = sample.instances.select(seen)
        indexes = class_map(numbers, instances.classes, sample.ignored, IGNORED)
        for name, values in ((NUMBERS, np.where(indexes == IGNORED, IGNORED, numbers)), (INDEXES, indexes)):
            picture = Pillow.fromarray(values.astype(np.uint8))
            picture.putpalette(palette().tobytes())
            picture.save(self.folder / name / f"{sample.image.id}.png")
        return instances


def palette() -> np.ndarray:
    """VOC's colours, uint8 (256, 3): bit 3 k + c of an index becomes bit 7 - k of channel c (VOC development kit)."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)
