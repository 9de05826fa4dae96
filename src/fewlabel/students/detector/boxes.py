"""From the objects of a crop to the boxes that a detector is trained on, and the regions where it is not judged."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fewlabel.core.masks import EIGHT_CONNECTED, components


@dataclass(frozen=True)
class CropBoxes:
    """What is known of one crop.

    Attributes:
        boxes: float32 (N, 4), xyxy in pixel edges of the crop, one per object.
        ignored: bool (H, W), pixels where a detection's centre is neither right nor wrong.
    """

    boxes: np.ndarray
    ignored: np.ndarray


def crop_boxes(objects: np.ndarray, weight: np.ndarray) -> CropBoxes:
    """Boxes of the objects of one crop, and its ignored regions.

    An object has a box if one of its pixels counts; the box is that of all its pixels in the crop, in however many
    pieces, and objects that touch have boxes of their own. Uncertain pixels, of weight 0, are joined to the objects
    that they touch: the doubtful rim of an object is part of it, where a second detection is one too many. What is left
    are regions that hold no counted object; they grow by one pixel, the precision of a detection's centre, and are
    ignored.

    Args:
        objects: int32 (H, W), numbers of the objects, 0 = background.
        weight: (H, W), 0 = ignored, above 0 = counts.

    Returns:
        Boxes in raster order of the objects' first pixels, and the ignored pixels.
    """
    counted = (objects > 0) & (weight > 0)
    flat = objects.ravel()
    found, first = np.unique(flat[at := np.flatnonzero(flat)], return_index=True)
    order = found[np.argsort(at[first])]
    known = order[np.isin(order, objects[counted])]
    regions, number = components((objects > 0) | (weight <= 0))
    doubtful = np.ones(number + 1, bool)
    doubtful[0] = False
    doubtful[regions[counted]] = False
    ignored = doubtful[regions]
    if ignored.any():
        ignored = ndimage.binary_dilation(ignored, EIGHT_CONNECTED)
    slices = ndimage.find_objects(objects)
    corners = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in (slices[n - 1] for n in known)]
    return CropBoxes(np.array(corners, np.float32).reshape(-1, 4), ignored)
