"""What a prediction writes: masks, overlays and COCO annotations, whatever found the objects.

* `masks/NAME.png`: a picture of the masks at the size of the image; `overlays/NAME.png` the image with lines around
  what was found;
* `predictions.json` COCO: `images`, `categories`, and `annotations` with a `score`. It loads as a COCO data set, its
  annotations as COCO results;
* `rejected.csv` names and files that could not be read and why, when the caller chose to go on without them. Files
  whose name is not UTF-8, which JSON cannot hold, are among them.

Images pass through one at a time, and the output folder appears at the end, whole.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image as Picture

from fewlabel.core.errors import DataError
from fewlabel.core.files import replace_folder, write_rejected
from fewlabel.core.progress import track
from fewlabel.core.rle import Rle
from fewlabel.core.types import Instances
from fewlabel.data.readers.base import ENDINGS

SUFFIXES = ENDINGS
MASKS, OVERLAYS, PREDICTIONS, REJECTED = "masks", "overlays", "predictions.json", "rejected.csv"
CATEGORY = 1  # COCO counts categories from 1


@dataclass(frozen=True)
class Head:
    """What `predictions.json` says of the model.

    Attributes:
        name: Name of the model.
        version: Version of fewlabel that wrote it.
        weights_sha256: Hash of its weights.
        threshold: Score or probability from which something counts.
        classes: Class names.
    """

    name: str
    version: str
    weights_sha256: str
    threshold: float
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What was found in one image.

    Attributes:
        size: Rows and columns of the image.
        boxes: float `(N, 4)` xyxy in pixel edges.
        scores: float `(N,)`.
        classes: int64 `(N,)`, class ids from 0.
        rles: Masks as run-length codes; None of a model that gives boxes.
        areas: `(N,)` in pixels, of the masks or the boxes.
        mask: Picture of the masks, uint8 or uint16 `(H, W)`; None of a model that gives boxes.
        overlay: The image with lines, uint8 `(H, W, 3)`; None of an image too large to draw on.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rles: tuple[Rle, ...] | None
    areas: np.ndarray
    mask: np.ndarray | None
    overlay: np.ndarray | None

    @classmethod
    def of_masks(cls, instances: Instances, mask: np.ndarray | None, overlay: np.ndarray | None) -> "Found":
        """What a model that gives masks found."""
        return cls(
            (int(instances.size[0]), int(instances.size[1])),
            instances.boxes,
            instances.scores,
            instances.classes,
            instances.rles,
            instances.areas(),
            mask,
            overlay,
        )

    @classmethod
    def of_boxes(
        cls, size: tuple[int, int], boxes: np.ndarray, scores: np.ndarray, overlay: np.ndarray | None
    ) -> "Found":
        """What a model that gives boxes of one class found; an area is that of the box."""
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return cls(size, boxes, scores, np.zeros(len(boxes), np.int64), None, areas, None, overlay)


@dataclass(frozen=True)
class PredictSummary:
    """What a prediction did.

    Attributes:
        images: Images predicted.
        targets: Components, objects or boxes found in them.
        rejected: Files that could not be read, with the reason.
    """

    images: int
    targets: int
    rejected: tuple[tuple[Path, str], ...]


def write_predictions(
    head: Head,
    find: Callable[[Path, str], Found],
    images: Path | Sequence[Path],
    out: Path,
    *,
    keep_going: bool = False,
) -> PredictSummary:
    """Predict all images of a folder, or the given files.

    Args:
        head: What is said of the model.
        find: `(file, name) -> what was found`; DataError where the file cannot be read.
        images: A folder, searched with its subfolders for PNG, TIFF, JPEG, BMP and NumPy files; or a file, or files.
        out: Output folder. It may be absent, empty, or hold an earlier prediction, which is then replaced.
        keep_going: List files that cannot be read in `rejected.csv` and go on, instead of stopping at the first.

    Returns:
        The counts, and the files that were left out.

    Raises:
        DataError: There is no image, one cannot be read or has a name that is not UTF-8 (without `keep_going`), none
            can be read, or `out` holds other things.
    """
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
            writer = _CocoWriter(stream, head)
            for path, name in track(named.items(), "predict", len(named)):
                try:
                    found = find(path, name)
                except DataError as error:
                    if not keep_going:
                        raise
                    rejected.append((path, str(error)))
                    continue
                writer.add(name, path, found)
                for part, picture in ((MASKS, found.mask), (OVERLAYS, found.overlay)):
                    if picture is not None:
                        _save(folder / part / f"{name}.png", picture)
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

    def __init__(self, stream: TextIO, head: Head) -> None:
        self.images: list[dict[str, Any]] = []
        self.targets = 0
        self._stream = stream
        content = {
            "info": {
                "description": f"Predictions of {head.name}",
                "version": head.version,
                "weights_sha256": head.weights_sha256,
                "threshold": head.threshold,
            },
            "licenses": [],
            "categories": [{"id": CATEGORY + index, "name": name} for index, name in enumerate(head.classes)],
        }
        stream.write(json.dumps(content, ensure_ascii=False)[:-1] + ', "annotations": [')

    def add(self, name: str, path: Path, found: Found) -> None:
        """Write what was found in one image."""
        record = {"id": len(self.images) + 1, "file_name": path.name, "name": name}
        self.images.append({**record, "height": found.size[0], "width": found.size[1]})
        for number, (box, score, kind, area) in enumerate(
            zip(found.boxes, found.scores, found.classes, found.areas, strict=True)
        ):
            rle = None if found.rles is None else found.rles[number]
            mask = {} if rle is None else {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            left, top, right, bottom = (float(edge) for edge in box)
            annotation = {
                "id": self.targets + 1,
                "image_id": len(self.images),
                "category_id": CATEGORY + int(kind),
                **({"segmentation": mask} if mask else {}),
                "area": int(area) if mask else round(float(area), 3),
                "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
                "iscrowd": 0,
                "score": round(float(score), 6),
            }
            self._stream.write(("," if self.targets else "") + "\n" + json.dumps(annotation))
            self.targets += 1

    def close(self) -> None:
        """Write the list of images and the end."""
        self._stream.write('\n], "images": ' + json.dumps(self.images, ensure_ascii=False) + "}\n")


def _save(path: Path, picture: np.ndarray) -> None:
    """Write uint8 or uint16 `(H, W)`, or uint8 `(H, W, 3)`, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(picture).save(path, format="PNG")
