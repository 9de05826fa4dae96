"""Predict a folder of images with an exported student: masks, overlays and COCO annotations.

What is written:

* `masks/NAME.png` 0 / 255 at the size of the image; `overlays/NAME.png` the image with a line around each target;
* `predictions.json` COCO: `images`, `categories`, and `annotations` with a `score`, one per 8-connected component. It
  loads as a COCO data set, and its annotations as COCO results. A detector's have boxes and no masks, and there are no
  `masks/`;
* `rejected.csv` names and files that could not be read and why, when the caller chose to go on without them. Files
  whose name is not UTF-8, which JSON cannot hold, are among them.

Images pass through one at a time, and the output folder appears at the end, whole.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image as Picture

from fewlabel.core.errors import DataError
from fewlabel.core.files import replace_folder, write_rejected
from fewlabel.core.masks import components
from fewlabel.core.progress import track
from fewlabel.core.types import Image, Instances
from fewlabel.data.pixels import MAX_PIXELS, read_image
from fewlabel.data.readers.base import ENDINGS
from fewlabel.data.windows import WindowReader
from fewlabel.deploy.large import is_large, open_image, predict_large
from fewlabel.deploy.overlay import box_lines, outline, overlay
from fewlabel.deploy.runtime import ModelInfo, OnnxStudent, sigmoid

SUFFIXES = ENDINGS
MASKS, OVERLAYS, PREDICTIONS, REJECTED = "masks", "overlays", "predictions.json", "rejected.csv"
CATEGORY = 1  # COCO counts categories from 1


@dataclass(frozen=True)
class PredictSummary:
    """What `predict_folder` did.

    Attributes:
        images: Images predicted.
        targets: Components or boxes found in them.
        rejected: Files that could not be read, with the reason.
    """

    images: int
    targets: int
    rejected: tuple[tuple[Path, str], ...]


def predict_image(student: OnnxStudent, image: Image) -> tuple[np.ndarray, Instances]:
    """Find the targets of one image.

    Args:
        student: The exported student.
        image: Any size, depth and number of channels.

    Returns:
        The mask, bool `(H, W)`, and one instance per 8-connected component of it, in raster order; the score is the
        mean probability of its pixels. Class 0, source `student`.
    """
    logits = student.logits(seen(student, image)[None, None])[0, 0]
    mask = logits > student.info.cut
    labels, count = components(mask)
    index = labels.ravel()
    sums = np.bincount(index, weights=sigmoid(logits).ravel(), minlength=count + 1)[1:]
    scores = sums / np.bincount(index, minlength=count + 1)[1:]
    return mask, Instances.from_components(labels, np.arange(1, count + 1), scores=scores, source="student")


def seen(student: OnnxStudent, image: Image) -> np.ndarray:
    """An image as the student was trained to see it, float32 `(H, W)`: by the radiometry that its file records."""
    return replace(image, radiometry=student.info.radiometry).normalised()


def predict_boxes(student: OnnxStudent, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Find the boxes of one image.

    Args:
        student: The exported detector.
        image: Any size, depth and number of channels.

    Returns:
        Boxes float32 `(N, 4)`, xyxy in pixel edges, whose score is above the threshold, by falling score, and the
        scores float32 `(N,)`.

    Raises:
        ModelError: The student is no detector.
    """
    from fewlabel.students.detector.predict import detect_by  # torch comes with it

    found = detect_by(student.candidates, student.frame, seen(student, image))
    counted = found.scores > student.info.threshold
    return found.boxes[counted], found.scores[counted]


def predict_folder(
    model_path: Path,
    images: Path | Sequence[Path],
    out: Path,
    *,
    keep_going: bool = False,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> PredictSummary:
    """Predict all images of a folder, or the given files.

    Args:
        model_path: The exported `.onnx` student.
        images: A folder, searched with its subfolders for PNG, TIFF, JPEG, BMP and NumPy files; or a file, or files.
            Masks of more than `fewlabel.deploy.large.LARGE` pixels are predicted by tiles; TIFF and NumPy files of
            more than `fewlabel.deploy.large.HELD` are not read as a whole then, and get no overlay.
        out: Output folder. It may be absent, empty, or hold an earlier prediction, which is then replaced.
        keep_going: List files that cannot be read in `rejected.csv` and go on, instead of stopping at the first.
        threads: Threads that one image may use.
        max_pixels: Largest height x width of an image that is decoded as a whole; a larger one cannot be read.

    Returns:
        The counts, and the files that were left out.

    Raises:
        DataError: There is no image, one cannot be read or has a name that is not UTF-8 (without `keep_going`), none
            can be read, or `out` holds other things.
        ModelError: The model cannot be loaded.
    """
    student = OnnxStudent(Path(model_path), threads)
    out = Path(out).resolve()
    files = find_images(images)
    _check_out(out, files)
    rejected = [
        (path, f"{str(path)!r} has a name that is not UTF-8: rename the file or its folder.")
        for path, name in files.items()
        if not _is_text(name + path.name)
    ]
    if rejected and not keep_going:
        raise DataError(rejected[0][1])
    unnamed = {path for path, _ in rejected}
    named = {path: name for path, name in files.items() if path not in unnamed}
    with replace_folder(out) as folder:
        with (folder / PREDICTIONS).open("w", encoding="utf-8") as stream:
            writer = _CocoWriter(stream, student.info)
            for path, name in track(named.items(), "predict", len(named)):
                image: Image | WindowReader
                try:
                    if student.info.frame is not None:
                        image = read_image(path, name, max_pixels=max_pixels)
                        boxes, scores = predict_boxes(student, image)
                    else:
                        image = open_image(path, name, max_pixels=max_pixels)
                        if isinstance(image, Image) and not is_large(image):
                            mask, instances = predict_image(student, image)
                        else:
                            mask, instances = predict_large(student, image)
                except DataError as error:
                    if not keep_going:
                        raise
                    rejected.append((path, str(error)))
                    continue
                if student.info.frame is not None:
                    writer.add_boxes(name, image.size, path, boxes, scores)
                else:
                    _save(folder / MASKS / f"{name}.png", mask * np.uint8(255))
                    writer.add(name, image.size, path, instances)
                if isinstance(image, Image):
                    lines = outline(mask) if student.info.frame is None else box_lines(boxes, image.size)
                    _save(folder / OVERLAYS / f"{name}.png", overlay(image.grey(), lines))
            writer.close()
        if not writer.images:
            raise DataError(f"None of {len(files)} images can be read; the first: {rejected[0][1]}")
        if rejected:
            rejected.sort()
            write_rejected(folder / REJECTED, [(files[path], path, reason) for path, reason in rejected])
    return PredictSummary(len(writer.images), writer.targets, tuple(rejected))


def find_images(images: Path | Sequence[Path]) -> dict[Path, str]:
    """List the images to predict, each with the name of its results.

    Args:
        images: A folder (searched with its subfolders, hidden ones left out), a file, or files.

    Returns:
        Name by path, in sorted order. The name is the path below the folder without suffix, with the suffix where two
        files would share a name otherwise.

    Raises:
        DataError: A path does not exist, nothing is found, or two files of the same name were given.
    """
    if isinstance(images, (str, Path)) and Path(images).is_dir():
        root = Path(images)
        relative = {path: path.relative_to(root) for path in _walk(root)}
    else:
        given = [Path(images)] if isinstance(images, (str, Path)) else [Path(path) for path in images]
        for path in given:
            if not path.is_file():
                raise DataError(f"{path} is neither a folder nor a file, expected images to predict; check the path.")
        relative = {path: Path(path.name) for path in sorted(given)}
    if not relative:
        raise DataError(f"{images} holds no image, expected files that end in {', '.join(SUFFIXES)}; check the folder.")
    stems = Counter(path.with_suffix("").as_posix() for path in relative.values())
    names = {
        path: (short if stems[short] == 1 else below.as_posix())
        for path, below in relative.items()
        for short in [below.with_suffix("").as_posix()]
    }
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise DataError(f"Two of the given files are named {twice[0]!r}; give their common folder instead.")
    return names


def _walk(root: Path) -> Iterator[Path]:
    """Image files below a folder in sorted order; hidden files and folders are left out."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; bytes that are not stand in a path as lone surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _check_out(out: Path, files: dict[Path, str]) -> None:
    """Refuse an output folder whose replacement would delete what this function did not write."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected an output folder; choose another name.")
    inside = next((path for path in files if path.resolve().is_relative_to(out)), None)
    if inside is not None:
        raise DataError(
            f"The image {inside} lies in the output folder {out}; choose an output folder beside the images."
        )
    if not out.is_dir():
        return
    present = {path.name for path in out.iterdir()}
    foreign = sorted(present - {MASKS, OVERLAYS, PREDICTIONS, REJECTED})
    if foreign or (present and PREDICTIONS not in present):
        found = foreign[0] if foreign else sorted(present)[0]
        raise DataError(
            f"The output folder {out} holds {found!r}, which no prediction wrote; choose a new or an empty folder."
        )


class _CocoWriter:
    """Writes a COCO file annotation by annotation; only one short record per image stays in memory."""

    def __init__(self, stream: TextIO, info: ModelInfo) -> None:
        self.images: list[dict[str, Any]] = []
        self.targets = 0
        self._stream = stream
        head = {
            "info": {
                "description": f"Predictions of {info.name}",
                "version": info.version,
                "weights_sha256": info.weights_sha256,
                "threshold": info.threshold,
            },
            "licenses": [],
            "categories": [{"id": CATEGORY + index, "name": name} for index, name in enumerate(info.classes)],
        }
        stream.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')

    def add(self, name: str, size: tuple[int, int], path: Path, instances: Instances) -> None:
        """Write the targets of one image."""
        self._image(name, size, path)
        for rle, score, box, area in zip(
            instances.rles, instances.scores, instances.boxes, instances.areas(), strict=True
        ):
            mask = {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")}}
            self._annotation(box, float(score), int(area), mask)

    def add_boxes(self, name: str, size: tuple[int, int], path: Path, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Write the boxes of one image; their area is that of the box."""
        self._image(name, size, path)
        for box, score in zip(boxes, scores, strict=True):
            self._annotation(box, float(score), float((box[2:] - box[:2]).prod()), {})

    def _image(self, name: str, size: tuple[int, int], path: Path) -> None:
        """Note an image, to which the annotations that follow belong."""
        record = {"id": len(self.images) + 1, "file_name": path.name, "name": name}
        self.images.append({**record, "height": size[0], "width": size[1]})

    def _annotation(self, box: np.ndarray, score: float, area: float, mask: dict[str, Any]) -> None:
        """Write one target of the last image."""
        left, top, right, bottom = (float(edge) for edge in box)
        corner_and_sides = (left, top, right - left, bottom - top)
        annotation = {
            "id": self.targets + 1,
            "image_id": len(self.images),
            "category_id": CATEGORY,
            **mask,
            "area": round(area, 3),
            "bbox": [round(value, 3) for value in corner_and_sides],
            "iscrowd": 0,
            "score": round(score, 6),
        }
        self._stream.write(("," if self.targets else "") + "\n" + json.dumps(annotation))
        self.targets += 1

    def close(self) -> None:
        """Write the list of images and the end."""
        self._stream.write('\n], "images": ' + json.dumps(self.images, ensure_ascii=False) + "}\n")


def _save(path: Path, picture: np.ndarray) -> None:
    """Write uint8 `(H, W)` or `(H, W, 3)` as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(picture).save(path, format="PNG")
