"""An image with its objects as a training of instances sees it: RGB in [0, 1], one mask per object, maybe padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import to_unit
from fewlabel.core.types import Image, Labelled


@dataclass(frozen=True)
class View:
    """One image with its objects, on any device.

    Attributes:
        image: float32 `(3, H, W)` in [0, 1], RGB; zeros in the padding.
        masks: bool `(N, H, W)`, one per object, none empty; no pixel of them in the padding.
        classes: int64 `(N,)`, class ids 0..K-1.
        content: Rows and columns of the image itself, from the upper left corner; what is beyond is padding.
        id: What messages call the image.
    """

    image: Tensor
    masks: Tensor
    classes: Tensor
    content: tuple[int, int]
    id: str = "unnamed"

    def __post_init__(self) -> None:
        size = tuple(self.image.shape[1:])
        if self.image.shape[0] != 3 or self.masks.shape[1:] != size or self.classes.shape != self.masks.shape[:1]:
            raise DataError(
                f"View of {self.id!r} holds an image {tuple(self.image.shape)}, masks {tuple(self.masks.shape)} and"
                f" classes {tuple(self.classes.shape)}; expected (3, H, W), (N, H, W) and (N,)."
            )

    def __len__(self) -> int:
        return int(self.masks.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns, padding included."""
        return int(self.image.shape[1]), int(self.image.shape[2])

    def to(self, device: torch.device | str) -> View:
        """The same view on a device."""
        return View(
            self.image.to(device), self.masks.to(device), self.classes.to(device), content=self.content, id=self.id
        )


def colours(image: Image) -> Tensor:
    """An image as networks of natural images take it, float32 `(3, H, W)` in [0, 1].

    Three channels of 8 bits keep their colours, divided by 255. All else has no colours that an eye would know: it is
    made grey, normalised as its data set asks for (`Image.normalised`) and put into the range by `to_unit`, so that 16
    bits are worth as much as 8.
    """
    if image.channels == 3 and image.dtype == "uint8":
        return torch.from_numpy(image.pixels / np.float32(255))
    return torch.from_numpy(to_unit(image.normalised())).expand(3, -1, -1)


def view_of(labelled: Labelled) -> View:
    """The view of a whole labelled image; objects without a pixel are left out."""
    masks = torch.from_numpy(labelled.instances.masks())
    kept = masks.flatten(1).any(1)
    classes = torch.from_numpy(labelled.instances.classes.astype(np.int64))
    image = labelled.image
    return View(colours(image), masks[kept], classes[kept], content=image.size, id=image.id)


def view_without_labels(image: Image) -> View:
    """The view of a whole image of which nothing is known."""
    nothing = torch.zeros((0, *image.size), dtype=torch.bool)
    return View(colours(image), nothing, torch.zeros(0, dtype=torch.int64), content=image.size, id=image.id)
