"""Objects of images that are too large for one pass of a network: tile by tile, put together."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from fewlabel.core.types import Instances
from fewlabel.data.stitch import over_crops
from fewlabel.data.tiles import Crop
from fewlabel.s4m.network import InstanceSegmenter
from fewlabel.s4m.predict import find_objects

LARGE = 2**22
"""Pixels above which an image is shown to the network by tiles."""

TILE, OVERLAP = 1024, 256


def objects_of_any_size(network: InstanceSegmenter, image: Tensor, threshold: float, side: int | None) -> Instances:
    """The objects of an image, from a threshold on.

    A network that sees images as they are is shown those of more than `LARGE` pixels by tiles of `TILE` that overlap by
    `OVERLAP`; `fewlabel.data.stitch` says which of its masks are views of one object. One with a size of its own sees
    every image at that size, as a whole.

    Args:
        network: Trained, in eval mode.
        image: float32 `(3, H, W)` in [0, 1].
        threshold: Least score of an object.
        side: As `find_objects`.

    Returns:
        Objects by falling score, of size `(H, W)`.
    """

    def sure(found: Instances) -> Instances:
        return found.select(found.scores >= threshold)

    size = (int(image.shape[1]), int(image.shape[2]))
    if side is not None or size[0] * size[1] <= LARGE:
        return sure(find_objects(network, image, side=side))

    def find(crop: Crop) -> Instances:
        top, left, height, width = crop
        return sure(find_objects(network, image[:, top : top + height, left : left + width]))

    found = over_crops(size, find, TILE, OVERLAP)
    return replace(found.select(np.argsort(-found.scores, kind="stable")), source="student")
