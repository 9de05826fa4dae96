"""The values that travel between rooms: images, instances, and samples with and without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewlabel.core import masks as mask_ops
from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle
from fewlabel.core.radiometry import Radiometry, apply

Source = Literal["human", "teacher", "sam", "student", "synthetic"]

STANDARD = Radiometry()
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Image:
    """One image as it was recorded.

    Attributes:
        id: Name that is unique in its data set.
        pixels: float32 `(C, H, W)`, in the file's own units: an 8-bit file holds 0..255, a 16-bit one 0..65535.
        dtype: What the file held, such as `"uint8"`, `"uint16"` or `"float32"`.
        bit_depth: Bits per channel in the file.
        path: The file, or None for an image that never was one.
        radiometry: How its data set's values become the input of networks.
    """

    id: str
    pixels: np.ndarray
    dtype: str = "float32"
    bit_depth: int = 32
    path: Path | None = None
    radiometry: Radiometry = STANDARD

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.dtype != np.float32:
            raise DataError(
                f"Image {self.id!r} has shape {self.pixels.shape} and type {self.pixels.dtype}, expected float32"
                " (C, H, W); convert it before making an Image."
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.pixels.shape[0])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[2])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    def grey(self) -> np.ndarray:
        """One channel, float32 `(H, W)`, in the file's units: BT.601 luma of three channels, else the channel mean."""
        if self.channels == 1:
            return self.pixels[0]
        if self.channels == 3:
            return np.tensordot(LUMA, self.pixels, axes=1)
        return self.pixels.mean(axis=0)

    def normalised(self) -> np.ndarray:
        """What networks are given: `grey` by the data set's `radiometry`, float32 `(H, W)`, mean about 0, spread 1."""
        return apply(self.radiometry, self.grey())


@dataclass(frozen=True)
class Instances:
    """N objects of one image.

    Attributes:
        size: Image rows and columns.
        rles: N masks as COCO run-length codes.
        classes: int64 `(N,)`, class ids.
        scores: float32 `(N,)`, 0..1; 1 for labels made by people.
        boxes: float32 `(N, 4)`, xyxy in pixel edges; derived from the masks.
        source: Who made them.
        round: Self-training round that made them; 0 for given labels.
    """

    size: tuple[int, int]
    rles: tuple[Rle, ...] = ()
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    source: Source = "human"
    round: int = 0

    def __post_init__(self) -> None:
        count = len(self.rles)
        if self.classes.shape != (count,) or self.scores.shape != (count,) or self.boxes.shape != (count, 4):
            raise DataError(
                f"Instances hold {count} masks but classes {self.classes.shape}, scores {self.scores.shape} and boxes"
                f" {self.boxes.shape}; give one of each per mask."
            )
        for rle in self.rles:
            if tuple(rle["size"]) != tuple(self.size):
                raise DataError(
                    f"A mask has size {rle['size']}, expected {list(self.size)}; every mask covers the image."
                )

    @classmethod
    def from_masks(
        cls,
        masks: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        classes: Sequence[int] | np.ndarray | None = None,
        scores: Sequence[float] | np.ndarray | None = None,
        source: Source = "human",
        round: int = 0,
    ) -> "Instances":
        """Make instances from a stack of masks.

        Args:
            masks: bool `(N, H, W)`.
            size: Rows and columns; taken from `masks` when absent.
            classes: `(N,)` class ids; zeros when absent.
            scores: `(N,)` in 0..1; ones when absent.
            source: Who made them.
            round: Self-training round.

        Returns:
            The instances, with boxes computed from the masks.

        Raises:
            DataError: Lengths or sizes do not agree.
        """
        count = len(masks)
        shape = size if size is not None else (int(masks.shape[1]), int(masks.shape[2]))
        return cls(
            size=shape,
            rles=tuple(mask_ops.encode_many(masks)),
            classes=np.zeros(count, np.int64) if classes is None else np.asarray(classes, np.int64),
            scores=np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32),
            boxes=mask_ops.boxes(masks),
            source=source,
            round=round,
        )

    @classmethod
    def from_semantic(cls, mask: np.ndarray, *, source: Source = "human", round: int = 0) -> "Instances":
        """Make one instance per 8-connected component of a bool mask `(H, W)`, in raster order, all of class 0."""
        labels, count = mask_ops.components(mask)
        return cls.from_components(labels, np.arange(1, count + 1), source=source, round=round)

    @classmethod
    def from_components(
        cls,
        labels: np.ndarray,
        numbers: np.ndarray,
        *,
        scores: np.ndarray | None = None,
        source: Source = "human",
        round: int = 0,
    ) -> "Instances":
        """Make one instance per chosen component, all of class 0; memory does not grow with their number.

        Args:
            labels: int32 `(H, W)`, 0 = background and 1..N, as `fewlabel.core.masks.components` gives them.
            numbers: int `(M,)`, labels of the wanted components.
            scores: `(M,)` in 0..1; ones when absent.
            source: Who made them.
            round: Self-training round.

        Returns:
            The instances, in the order of `numbers`.
        """
        boxes = mask_ops.component_boxes(labels, int(labels.max(initial=0)))
        return cls(
            size=(int(labels.shape[0]), int(labels.shape[1])),
            rles=tuple(mask_ops.encode_components(labels, numbers)),
            classes=np.zeros(len(numbers), np.int64),
            scores=np.ones(len(numbers), np.float32) if scores is None else np.asarray(scores, np.float32),
            boxes=boxes[numbers - 1],
            source=source,
            round=round,
        )

    def __len__(self) -> int:
        return len(self.rles)

    def masks(self) -> np.ndarray:
        """All masks, bool `(N, H, W)`."""
        if not self.rles:
            return np.zeros((0, *self.size), dtype=bool)
        return np.stack([mask_ops.decode(rle) for rle in self.rles])

    def semantic(self) -> np.ndarray:
        """The union of all masks, bool `(H, W)`."""
        union = np.zeros(self.size, dtype=bool)
        for rle in self.rles:
            union |= mask_ops.decode(rle)
        return union

    def areas(self) -> np.ndarray:
        """Areas in pixels, int64 `(N,)`."""
        return mask_ops.areas(self.rles)

    def select(self, index: np.ndarray | Sequence[int]) -> "Instances":
        """The instances at `index`: integers, or a bool `(N,)` choice."""
        wanted = np.asarray(index)
        chosen = np.arange(len(self))[wanted] if wanted.size else np.zeros(0, dtype=np.int64)
        return replace(
            self,
            rles=tuple(self.rles[i] for i in chosen),
            classes=self.classes[chosen],
            scores=self.scores[chosen],
            boxes=self.boxes[chosen],
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` turns back into equal instances; RLE counts become ASCII text."""
        return {
            "size": list(self.size),
            "counts": [rle["counts"].decode("ascii") for rle in self.rles],
            "classes": self.classes.tolist(),
            "scores": [float(score) for score in self.scores],
            "boxes": self.boxes.tolist(),
            "source": self.source,
            "round": self.round,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Instances":
        """Read what `to_json` wrote.

        Raises:
            DataError: A key is missing, or lengths do not agree.
        """
        try:
            size = (int(value["size"][0]), int(value["size"][1]))
            return cls(
                size=size,
                rles=tuple({"size": list(size), "counts": text.encode("ascii")} for text in value["counts"]),
                classes=np.asarray(value["classes"], np.int64),
                scores=np.asarray(value["scores"], np.float32),
                boxes=np.asarray(value["boxes"], np.float32).reshape(-1, 4),
                source=value["source"],
                round=int(value["round"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, UnicodeEncodeError) as error:
            raise DataError(f"Stored instances cannot be read ({error!r}); make the file again.") from None


@dataclass(frozen=True)
class Labelled:
    """An image with its labels.

    Attributes:
        image: The image.
        instances: Its objects.
        ignored: Regions that are neither object nor background, such as COCO's crowds and the border of Pascal VOC's
            masks: nothing is learnt from them and nothing found in them is wrong. None where there are none.
    """

    image: Image
    instances: Instances
    ignored: Instances | None = None

    def __post_init__(self) -> None:
        for labels in (self.instances, self.ignored):
            if labels is not None and self.image.size != tuple(labels.size):
                raise DataError(
                    f"Image {self.image.id!r} is {self.image.height} × {self.image.width} pixels but its mask is"
                    f" {labels.size[0]} × {labels.size[1]}; give a mask of the image's size."
                )


@dataclass(frozen=True)
class Unlabelled:
    """An image without labels."""

    image: Image
