"""Training crops of images with many objects: cut, scaled, turned and padded, one mask per object throughout.

A crop is a window of the image at a random scale, as "large-scale jitter" does it (Ghiasi et al., CVPR 2021): small
scales show the whole image with padding, large ones a part of it. Masks stay run-length codes until the window is
known, so that an image of a thousand cells costs no more than the cells in the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch.nn import functional as F

from fewlabel.core.errors import DataError
from fewlabel.core.masks import decode
from fewlabel.core.rle import crop as crop_rle
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.dataset import Dataset
from fewlabel.data.held import Held
from fewlabel.data.views import View, colours

CACHE = 2**30  # bytes of decoded images that a pool keeps


class CropConfig(BaseModel):
    """Geometry of training crops."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: int = Field(default=256, ge=32, multiple_of=32, description="Side of the training crops, in pixels.")
    scale_low: float = Field(default=0.5, gt=0, le=1, description="Smallest scale at which an image is shown.")
    scale_high: float = Field(default=2.0, ge=1, description="Largest scale.")
    flips: bool = Field(default=True, description="Flip left and right.")
    turns: bool = Field(
        default=False, description="Quarter turns as well, for images without an up: microscopes, drones."
    )

    @property
    def varies(self) -> bool:
        """Whether an image looks different each time, even one that is no larger than a crop."""
        return self.scale_low < 1 or self.scale_high > 1 or self.flips or self.turns

    @model_validator(mode="after")
    def _sensible(self) -> CropConfig:
        if self.scale_high / self.scale_low > 100:
            raise ValueError("scale_low and scale_high are more than a factor of 100 apart")
        return self


@dataclass(frozen=True)
class Record:
    """A whole image with its objects, ready for cropping.

    Attributes:
        pixels: `(3, H, W)` uint8, or float32 in [0, 1], of an image in grey `(1, H, W)`.
        instances: Its objects; none of an image without labels.
        id: What messages call the image.
    """

    pixels: np.ndarray
    instances: Instances
    id: str

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @property
    def nbytes(self) -> int:
        """Memory of pixels and codes."""
        return self.pixels.nbytes + sum(len(rle["counts"]) for rle in self.instances.rles)


def record_of(labelled: Labelled) -> Record:
    """The record of a labelled image; objects without a pixel are left out."""
    kept = np.flatnonzero(labelled.instances.areas() > 0)
    return Record(_compact(labelled.image), labelled.instances.select(kept), labelled.image.id)


def record_without_labels(image: Image) -> Record:
    """The record of an image of which nothing is known."""
    return Record(_compact(image), Instances(image.size), image.id)


def _compact(image: Image) -> np.ndarray:
    """The colours of `fewlabel.data.views.colours` in as little memory as holds them."""
    if image.channels == 3 and image.dtype == "uint8":
        return image.pixels.astype(np.uint8)
    return colours(image)[:1].numpy().copy()


def crop_view(record: Record, config: CropConfig, rng: np.random.Generator) -> View:
    """Cut one crop.

    Args:
        record: The image.
        config: Geometry.
        rng: The only source of randomness.

    Returns:
        A view of `(crop, crop)` pixels. Every object with a pixel in the window is in it, with at least one pixel.
    """
    height, width = record.size
    low, high = np.log(config.scale_low), np.log(config.scale_high)
    scale = float(np.exp(rng.uniform(low, high)))
    window = max(1, round(config.crop / scale))
    rows, columns = min(window, height), min(window, width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    flip, turn = bool(rng.integers(2)) and config.flips, int(rng.integers(4)) if config.turns else 0
    content = tuple(min(config.crop, max(1, round(side * scale))) for side in (rows, columns))
    image = _resized(record.pixels[:, top : top + rows, left : left + columns], (content[0], content[1]))
    masks, classes = window_masks(record.instances, top, left, rows, columns)
    masks = resize_masks(masks, (content[0], content[1]))
    image, masks = (np.rot90(planes, turn, (1, 2)) for planes in (image, masks))
    if flip:
        image, masks = image[:, :, ::-1], masks[:, :, ::-1]
    return padded(image, masks, classes, config.crop, record.id)


def window_masks(instances: Instances, top: int, left: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The objects in a window: bool `(n, rows, columns)`, none empty, and their classes int64 `(n,)`."""
    x0, y0, x1, y1 = instances.boxes.T
    near = np.flatnonzero((x0 < left + columns) & (x1 > left) & (y0 < top + rows) & (y1 > top))
    masks = [decode(crop_rle(instances.rles[i], top, left, rows, columns)) for i in near]
    kept = [number for number, mask in enumerate(masks) if mask.any()]
    stack = np.stack([masks[number] for number in kept]) if kept else np.zeros((0, rows, columns), bool)
    return stack, instances.classes[near[kept]].astype(np.int64)


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize masks to the nearest pixel; one that would vanish keeps the pixel that its centroid is nearest to.

    Args:
        masks: bool `(N, H, W)`, none empty.
        size: New rows and columns.

    Returns:
        bool `(N, *size)`, none empty.
    """
    old = masks.shape[1:]
    if old == size:
        return masks
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * before / new).astype(np.int64), before - 1)
        for new, before in zip(size, old, strict=True)
    )
    resized = masks[:, rows][:, :, columns]
    for number in np.flatnonzero(~resized.any((1, 2))):
        ys, xs = np.nonzero(masks[number])
        near = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
        resized[number, int((ys[near] + 0.5) * size[0] / old[0]), int((xs[near] + 0.5) * size[1] / old[1])] = True
    return resized


def padded(image: np.ndarray, masks: np.ndarray, classes: np.ndarray, side: int, id: str) -> View:
    """A view of `(side, side)` pixels with an image `(3, h, w)` and its masks `(N, h, w)` in the upper left corner."""
    rows, columns = image.shape[1:]
    room = ((0, 0), (0, side - rows), (0, side - columns))
    return View(
        torch.from_numpy(np.pad(image, room)),
        torch.from_numpy(np.pad(masks, room)),
        torch.from_numpy(np.ascontiguousarray(classes)),
        content=(rows, columns),
        id=id,
    )


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a record as float32 `(3, *size)` in [0, 1], bilinear, antialiased when shrinking."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    values = values / 255 if pixels.dtype == np.uint8 else values
    if tuple(values.shape[1:]) != size:
        values = F.interpolate(values[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return values.expand(3, -1, -1).numpy()


class RecordPool:
    """Records drawn with set probabilities, loaded when needed and kept within bounds.

    Args:
        loaders: One function per image that loads its record.
        weights: float `(N,)` >= 0, how often each is drawn relative to the others; all alike by default.
        cache: Most bytes kept.

    Raises:
        DataError: There is no image.
    """

    def __init__(
        self, loaders: Sequence[Callable[[], Record]], weights: np.ndarray | None = None, cache: int = CACHE
    ) -> None:
        if not loaders:
            raise DataError("There is no image to draw training crops from; add some to the data set.")
        self._loaders = list(loaders)
        shares = np.ones(len(loaders)) if weights is None else weights.astype(np.float64)
        self._probabilities = shares / shares.sum()
        self._held: Held[Record] = Held(cache, lambda record: record.nbytes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._loaders)

    def draw(self, n: int, rng: np.random.Generator) -> list[Record]:
        """Draw `n` records with replacement; what is drawn depends on the generator alone."""
        chosen = rng.choice(len(self._loaders), size=n, p=self._probabilities)
        return [self._held.get(int(i), self._loaders[i]) for i in chosen]


def record_loaders(dataset: Dataset, ids: Iterable[str]) -> list[Callable[[], Record]]:
    """One loader of labelled records per id; a file is opened only when its loader is called."""
    return [partial(lambda id: record_of(dataset.labelled(id)), id) for id in ids]


def bare_loaders(dataset: Dataset, ids: Iterable[str]) -> list[Callable[[], Record]]:
    """One loader per id of records without labels, even where there are some: they are not opened."""
    return [partial(lambda id: record_without_labels(dataset.image(id)), id) for id in ids]


def repeat_factors(classes: Sequence[Sequence[int]], threshold: float) -> np.ndarray:
    """How often images are to be shown so that rare classes are not forgotten (Gupta et al., LVIS, CVPR 2019).

    Args:
        classes: The class ids that each of N images shows, in any order, repeats allowed.
        threshold: t, the share of images above which a class is not repeated.

    Returns:
        float64 `(N,)`: `max(1, max over the image's classes c of sqrt(t / f_c))`, f_c the share of images with c.
    """
    shown = [set(ids) for ids in classes]
    shares = {c: sum(c in ids for ids in shown) / len(shown) for c in set().union(*shown)} if shown else {}
    return np.array([max([1.0, *(float(np.sqrt(threshold / shares[c])) for c in ids)]) for ids in shown])
