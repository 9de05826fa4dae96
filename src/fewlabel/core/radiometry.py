"""From recorded units to what networks are given.

Both maps are free of settings, so a model needs to record only their names: `standardise` removes the gain and offset
of the sensor, and `to_unit` squeezes the result into SAM's range without a dependence on the crop.
"""

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

FLAT = 1e-6  # of the largest |x|: eight steps of float32 there, more than the rounding of a constant image can spread
KNEE = 4.0  # standard deviations at which the unit map has used half of its head-room


def standardise(pixels: Array) -> Array:
    """Subtract each image's mean and divide by its standard deviation.

    Args:
        pixels: float `(H, W)`, `(C, H, W)` or `(B, C, H, W)` in any units; statistics are taken over the last two axes
            for arrays, and over all axes but the first for batches `(B, C, H, W)`.

    Returns:
        The same shape, float32, mean 0 and standard deviation 1; zeros for an image of one value, which is one whose
        standard deviation is at most `FLAT` times its largest magnitude. Unchanged (up to rounding) when the input is
        multiplied by a positive gain of any size, and when it is shifted by an offset that leaves it above that bound.
    """
    axes = (-3, -2, -1) if pixels.ndim == 4 else (-2, -1)
    if isinstance(pixels, torch.Tensor):
        values = pixels.double()
        centred = values - values.mean(dim=axes, keepdim=True)
        deviation = centred.square().mean(dim=axes, keepdim=True).sqrt()
        flat = deviation <= FLAT * values.abs().amax(dim=axes, keepdim=True)
        return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, deviation)).float()
    array = pixels.astype(np.float64)
    difference = array - array.mean(axis=axes, keepdims=True)
    spread = np.sqrt(np.square(difference).mean(axis=axes, keepdims=True))
    constant = spread <= FLAT * np.abs(array).max(axis=axes, keepdims=True)
    return np.where(constant, 0.0, difference / np.where(constant, 1.0, spread)).astype(np.float32)


def to_unit(standardised: Array) -> Array:
    """Map standardised values to the open interval (0, 1), point by point: `0.5 + 0.5 z / (4 + |z|)`.

    Being pointwise it does not depend on the crop, and unlike a clip it keeps bright targets apart from bright clouds.

    Args:
        standardised: float32 of any shape, as `standardise` returns it.

    Returns:
        float32 of the same shape, in (0, 1).
    """
    return 0.5 + 0.5 * standardised / (KNEE + abs(standardised))
