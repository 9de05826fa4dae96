"""What speaks for each proposed target: its stability, its contrast, and the operators' support for it."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from fewlabel.core.masks import EIGHT_CONNECTED, components

GAP, RING = 2, 6  # pixels around a target: its blurred border, then the surroundings that it is compared with
RIVALS = 0.9  # quantile of the surroundings' responses that a target's must exceed


def stabilities(probability: np.ndarray, labels: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    """How little each component changes when the threshold moves.

    Args:
        probability: float32 `(H, W)`.
        labels: int32 `(H, W)`, components 1..count of `probability` above a threshold between `low` and `high`.
        count: Number of components.
        low: Lower threshold.
        high: Higher threshold.

    Returns:
        float64 `(count,)`, 0..1: per component the area above `high` divided by the area above `low`. A pixel above
        `low` belongs to the nearest component of its connected region, so that two targets whose feet touch do not
        spoil each other. Source: stability score of Segment Anything (Kirillov et al., ICCV 2023), per component.
    """
    if count == 0:
        return np.zeros(0)
    loose, _ = components(probability > low)
    rows, columns = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    nearest = labels[rows, columns]
    belongs = (loose > 0) & (loose[rows, columns] == loose)
    wide = np.bincount(nearest[belongs], minlength=count + 1)[1:]
    tight = np.bincount(labels[probability > high], minlength=count + 1)[1:]
    return tight / np.maximum(wide, 1)


def contrasts(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Brightness of each component against its surroundings.

    Args:
        image: float32 `(H, W)`, standardised.
        labels: int32 `(H, W)`, components 1..count.
        count: Number of components.

    Returns:
        float64 `(count,)`: mean inside minus median of the pixels at 3 to 6 pixels distance that are no component
        (of the whole image where there are none), in standard deviations of the image.
    """
    return _against_surroundings(image, labels, count, lambda inside, around: inside.mean() - np.median(around))


@torch.inference_mode()
def prior_map(image: np.ndarray, bank: nn.Module) -> np.ndarray:
    """What the operators say of each pixel, whatever the teacher thinks.

    Args:
        image: float32 `(H, W)`, standardised.
        bank: An `OperatorBank` with its initial scalars, on the CPU: (1, 1, H, W) to (1, E, H, W).

    Returns:
        float32 `(H, W)` >= 0: the mean over the operators of their positive responses, in the bank's unit log(1 +
        contrast). They are on one scale, so the mean neither needs weights nor changes its meaning with their number.
    """
    responses = bank(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None])[0]
    return np.asarray(responses.clamp_min(0).mean(0).numpy())


def supports(prior: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """How far the operators' response to each component stands out from that to its surroundings.

    It is a separate limit of the gate and no factor of the quality, for two reasons. Operators alone find targets well
    but outline them badly (LESPS, CVPR 2023, table 3: Pd 73 to 93 %, IoU of the students 13 to 32 %), so they can say
    whether something is there, not how well it was segmented, which is what the quality estimates. And a target that
    stands out twice as far is not twice as likely to be one: beyond the level of clutter more support says no more.

    Args:
        prior: float32 `(H, W)` >= 0, from `prior_map`.
        labels: int32 `(H, W)`, components 1..count.
        count: Number of components.

    Returns:
        float64 `(count,)` >= 0: the largest response inside minus the 0.9 quantile of those at 3 to 6 pixels distance
        that are no component (of the whole image where there are none), at least 0; the unit is that of `prior`. Inside
        the largest counts, because a component's border and a teacher's error of a pixel would spoil a mean; outside a
        quantile, because clutter has peaks of its own there, which an edge or a lone noisy pixel has not.
    """
    raw = _against_surroundings(prior, labels, count, lambda inside, around: inside.max() - np.quantile(around, RIVALS))
    return np.maximum(raw, 0.0)


def _against_surroundings(
    plane: np.ndarray, labels: np.ndarray, count: int, compare: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """One figure per component, float64 `(count,)`, from its values and those around it, both 1-D."""
    result, margin = np.zeros(count), RING + GAP  # wide enough to hold the neighbours whose border is left out
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        near = (
            slice(max(rows.start - margin, 0), rows.stop + margin),
            slice(max(columns.start - margin, 0), columns.stop + margin),
        )
        inside = labels[near] == number
        close = ndimage.binary_dilation(labels[near] > 0, EIGHT_CONNECTED, iterations=GAP)
        around = ndimage.binary_dilation(inside, EIGHT_CONNECTED, iterations=RING) & ~close
        result[number - 1] = compare(plane[near][inside], plane[near][around] if around.any() else plane.ravel())
    return result
