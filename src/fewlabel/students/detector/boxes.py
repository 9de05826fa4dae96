"""From the masks of a crop to the boxes that a detector is trained on, and the regions where it is not judged."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fewlabel.core.masks import EIGHT_CONNECTED, component_boxes, components


@dataclass(frozen=True)
class CropBoxes:
    """What is known of one crop.

    Attributes:
        boxes: float32 (N, 4), xyxy in pixel edges of the crop, one per target.
        ignored: bool (H, W), pixels where a detection's centre is neither right nor wrong.
    """

    boxes: np.ndarray
    ignored: np.ndarray


def crop_boxes(target: np.ndarray, weight: np.ndarray) -> CropBoxes:
    """Boxes of the targets of one crop, and its ignored regions.

    A target is an 8-connected component with a pixel that counts. Uncertain pixels, of weight 0, are joined to the
    targets that they touch: the doubtful rim of a target is part of it, where a second detection is one too many. What
    is left are regions that hold no counted target; they grow by one pixel, the precision of a detection's centre, and
    are ignored.

    Args:
        target: bool (H, W).
        weight: (H, W), 0 = ignored, above 0 = counts.

    Returns:
        Boxes in raster order of the targets, and the ignored pixels.
    """
    labels, count = components(target)
    counted = target & (weight > 0)
    known = np.zeros(count + 1, bool)
    known[labels[counted]] = True
    regions, number = components(target | (weight <= 0))
    doubtful = np.ones(number + 1, bool)
    doubtful[0] = False
    doubtful[regions[counted]] = False
    ignored = doubtful[regions]
    if ignored.any():
        ignored = ndimage.binary_dilation(ignored, EIGHT_CONNECTED)
    return CropBoxes(component_boxes(labels, count)[known[1:]], ignored)
