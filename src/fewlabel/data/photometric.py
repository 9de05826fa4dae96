"""Changes of colour and sharpness for batches of views: geometry and masks stay as they are.

kornia does the work. It draws from torch's global generator, so each function seeds that for its own duration and puts
it back: what comes out depends on the seed given alone.
"""

from __future__ import annotations

from typing import Literal

import kornia.augmentation as K
import torch
from torch import Tensor

Strength = Literal["weak", "strong"]

BLUR = 9  # kernel of a blur of up to 2 pixels, in pixels


def _weak() -> K.AugmentationSequential:
    """The colour distortion of SSD (Liu et al., ECCV 2016): half a contrast, half a saturation, a tenth of a hue."""
    return K.AugmentationSequential(K.ColorJitter(0.125, 0.5, 0.5, 0.05, p=0.5))


def _strong() -> K.AugmentationSequential:
    """The student's view in Guided Distillation (Berrada et al., WACV 2024), without its cut-outs."""
    return K.AugmentationSequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((BLUR, BLUR), (0.1, 2.0), p=0.5),
    )


def vary(images: Tensor, strength: Strength, seed: int) -> Tensor:
    """Vary the colours of images, each in its own way.

    Args:
        images: float `(B, 3, H, W)` in [0, 1].
        strength: `weak` for what a teacher may see, `strong` for a student.
        seed: Seed of all choices.

    Returns:
        The same shape, in [0, 1]; the arguments stay as they are.
    """
    if not len(images):
        return images.clone()
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(seed)
        varied: Tensor = (_weak() if strength == "weak" else _strong())(images)
    return varied.clamp(0, 1)
