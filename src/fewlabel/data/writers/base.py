"""What all writers have in common: samples come one at a time, and the folder appears when the last one is written."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import tifffile
from PIL import Image as Pillow
from PIL import JpegImagePlugin, PngImagePlugin

from fewlabel.core.errors import DataError
from fewlabel.core.files import replace_folder
from fewlabel.core.masks import Rle
from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.pixels import FileError, read_image

Part = Literal["train", "test"]
"""Part of a data set that a sample belongs to."""

COMMON = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings of image files that tools other than fewlabel read."""

ORIENTATION = 274  # TIFF's and EXIF's tag: how a viewer has to turn the picture; 1 = as it is stored


class Summary(NamedTuple):
    """What was written.

    Attributes:
        images: Number of images.
        labelled: How many of them have labels, be they none.
        objects: Number of objects over all images.
        lost: What the format cannot hold and how often that occurred, such as ``{"ignored regions": 3}``.
    """

    images: int
    labelled: int
    objects: int
    lost: dict[str, int]

    def sentence(self) -> str:
        """What was written and what was lost, for a report."""
        lost = "; ".join(f"{count} x {what}" for what, count in self.lost.items())
        text = f"wrote {self.images} images, {self.labelled} of them labelled, with {self.objects} objects"
        return f"{text}; the format cannot hold: {lost}" if lost else text


class Writer(ABC):
    """Base of the writers: `write` makes one for a folder, adds all samples and finishes it.

    Args:
        folder: An empty folder to fill; it is renamed to the wanted one at the end, so no file may name it.
        classes: Names of the classes; `Instances.classes` are indexes into them.
        boxes_only: Whether the labels are boxes, so that the masks are nothing but the boxes filled.

    Attributes:
        format: The format's name, a key of `fewlabel.data.writers.WRITERS`.
        folder: As given.
        classes: As given.
        boxes_only: As given.
        lost: What the format cannot hold, counted by `add`.
    """

    format: ClassVar[str]

    def __init__(self, folder: Path, classes: Sequence[str], *, boxes_only: bool = False) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        self.boxes_only = boxes_only
        self.lost: Counter[str] = Counter()

    @abstractmethod
    def add(self, part: Part, sample: Labelled | Unlabelled) -> None:
        """Write one sample; ids are unique, class indexes are within the classes.

        Raises:
            DataError: The format cannot hold the sample at all.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what describes the whole data set; called once, after the last sample."""

    def objects(self, labels: Instances) -> Iterator[tuple[Rle, int, np.ndarray]]:
        """Mask, class and box (float `(4,)`, xyxy) of each object; one without a pixel is counted as lost."""
        for rle, area, index, box in zip(labels.rles, labels.areas(), labels.classes, labels.boxes, strict=True):
            if area:
                yield rle, int(index), box.astype(np.float64)
            else:
                self.lost["objects without a pixel"] += 1


def write(
    writer: type[Writer],
    out: Path | str,
    classes: Sequence[str],
    samples: Iterable[tuple[Part, Labelled | Unlabelled]],
    *,
    boxes_only: bool = False,
) -> Summary:
    """Write a data set; samples are taken one at a time and not kept.

    Args:
        writer: The format.
        out: Folder to make; a folder that holds something is refused.
        classes: Names of the classes.
        samples: The part and the sample, in any order.
        boxes_only: As `Writer`.

    Returns:
        What was written. If anything is raised, by the samples too, there is no folder ``out``.

    Raises:
        DataError: ``out`` is there already, or is a file; two classes have one name, or one has none; an id occurs
            twice or cannot name a file; an object's class is none of the classes; there is no sample; or as
            `Writer.add`.
    """
    out = Path(out)
    names = tuple(classes)
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError(f"the classes are called {', '.join(map(repr, names))}: give each a name of its own.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already: name a new folder, because nothing is overwritten.")
    seen: set[str] = set()
    labelled = objects = 0
    with replace_folder(out) as folder:
        job = writer(folder, names, boxes_only=boxes_only)
        for part, sample in samples:
            _refuse_id(sample.image.id, seen)
            seen.add(sample.image.id)
            if isinstance(sample, Labelled):
                labelled, objects = labelled + 1, objects + len(sample.instances)
                _refuse_classes(sample, len(job.classes))
            job.add(part, sample)
        if not seen:
            raise DataError(f"nothing was written to {out}, because the data set lists no image: add images to it.")
        job.finish()
    return Summary(len(seen), labelled, objects, dict(job.lost))


def printable(classes: Iterable[str]) -> None:
    """Refuse names of classes that text files cannot hold: with line ends, control letters, halves of a character.

    Raises:
        DataError: There is one; it is shown escaped.
    """
    for name in classes:
        if not name.isprintable():
            raise DataError(f"the class {name!r} has letters that cannot be printed: rename it.")


def save_image(image: Image, folder: Path, endings: Iterable[str] = COMMON) -> Path:
    """Write an image as ``folder/ID.ENDING``, at the depth that it has.

    The file that the image came from is copied when its ending is wanted and it still holds these pixels, one picture
    only, and no mark that a viewer has to turn it (some tools follow that mark, others do not, and labels fit one of
    them). Else it becomes PNG (8 bits of grey or colour, 16 bits of grey) or TIFF (everything else).

    Args:
        image: The image.
        folder: Where to write; made if it is not there.
        endings: Endings of files that the format's users can read, in lower case; PNG and TIFF always may be written.

    Returns:
        The file.

    Raises:
        DataError: The image has neither 1 nor 3 channels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if image.path is not None and image.path.suffix.lower() in frozenset(endings) and _is_plain_copy(image):
        target = folder / f"{image.id}{image.path.suffix.lower()}"
        shutil.copyfile(image.path, target)
        return target
    if image.channels not in (1, 3):
        raise DataError(
            f"image '{image.id}' has {image.channels} channels, but image files of data sets hold 1 or 3: split them."
        )
    values = _stored(image).transpose(1, 2, 0)
    values = values[..., 0] if image.channels == 1 else values
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 2):
        target = folder / f"{image.id}.png"
        Pillow.fromarray(values).save(target)
    else:
        target = folder / f"{image.id}.tif"
        tifffile.imwrite(target, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    return target


def _stored(image: Image) -> np.ndarray:
    """The pixels in the type that the image says its file had, or as float32 if they do not fit it."""
    if image.dtype in ("uint8", "uint16", "int16", "float16"):
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.ascontiguousarray(image.pixels).astype(image.dtype)
        if np.array_equal(values.astype(np.float32), image.pixels):
            return values
    return image.pixels


def _is_plain_copy(image: Image) -> bool:
    """Whether the image's file holds exactly the image and no mark that it has to be turned."""
    assert image.path is not None
    try:
        stored = read_image(image.path, max_pixels=image.height * image.width)
        if not np.array_equal(stored.pixels, image.pixels):
            return False
        with image.path.open("rb") as file:
            head = file.read(4)
        if head[:3] == b"\xff\xd8\xff":
            with JpegImagePlugin.JpegImageFile(image.path) as jpeg:
                return bool(jpeg.getexif().get(ORIENTATION, 1) == 1)
        if head == b"\x89PNG":
            with PngImagePlugin.PngImageFile(image.path) as png:
                return bool(png.getexif().get(ORIENTATION, 1) == 1)
        if head[:2] in (b"II", b"MM"):
            with tifffile.TiffFile(image.path) as tiff:
                tag = tiff.pages[0].tags.get(ORIENTATION)
                return bool(tag is None or tag.value == 1)
    except (FileError, OSError, SyntaxError, ValueError):
        return False  # several pages, gone, or grown since: the pixels in memory are what was read and checked
    return True


def _refuse_id(id: str, seen: set[str]) -> None:
    if id in seen:
        raise DataError(f"image '{id}' comes twice: every image of a data set needs an id of its own.")
    if not id or id in (".", "..") or any(letter in id for letter in "/\\\0\n\r"):
        raise DataError(f"image id {id!r} cannot name a file: rename the image without slashes and line ends.")


def _refuse_classes(sample: Labelled, count: int) -> None:
    for labels in (sample.instances, sample.ignored):
        if labels is not None and len(labels) and not 0 <= labels.classes.min() <= labels.classes.max() < count:
            raise DataError(
                f"image '{sample.image.id}' has an object of class {int(labels.classes.max())}, but the data set names"
                f" {count} classes: name all classes."
            )
