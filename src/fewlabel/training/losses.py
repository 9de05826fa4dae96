"""Losses of binary segmentation on logits, with a weight per pixel.

All take ``logits``, ``targets`` in [0, 1] and ``weights`` >= 0 of one shape (B, 1, H, W) and return a float32 scalar.
A pixel of weight 0 has no influence and receives no gradient, whatever its logit and target; where all weights are 0
the loss is 0. Everything is computed in float32, also under autocast.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1.0  # pixels added above and below a ratio of areas


def _parts(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check that the shapes agree; float32 versions, with pixels of weight 0 set to a logit and target of 0."""
    if not logits.shape == targets.shape == weights.shape or logits.ndim != 4:
        raise ValueError(
            f"a loss needs logits, targets and weights of one shape (B, 1, H, W), got {tuple(logits.shape)}, "
            f"{tuple(targets.shape)}, {tuple(weights.shape)}"
        )
    counts = weights > 0
    # 0 * inf is not a number, so that a weight alone would not silence an ignored pixel.
    return torch.where(counts, logits.float(), 0.0), torch.where(counts, targets.float(), 0.0), weights.float()


def bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, the weighted mean over the pixels of the batch.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W) in [0, 1]; soft targets are allowed.
        weights: (B, 1, H, W) >= 0.

    Returns:
        ``sum w * (-t log p - (1 - t) log(1 - p)) / sum w`` in nats, >= 0.

    Raises:
        ValueError: the shapes differ.
    """
    logits, targets, weights = _parts(logits, targets, weights)
    cross = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    total = weights.sum()
    return (cross * weights).sum() / torch.where(total > 0, total, 1.0)


def soft_iou(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """One minus the soft intersection over union of each image, averaged over the images that have any weight.

    Averaging over images, not over the batch's pooled pixels, lets a target of 4 pixels count as much as one of 400 in
    another image. `SMOOTH` gives an image without targets a loss of ``a / (a + 1)`` with ``a`` its area of predicted
    probability: 0 when nothing is predicted, with a gradient that asks for silence, and never 0/0.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W) in [0, 1].
        weights: (B, 1, H, W) >= 0; they weigh the pixels of intersection and union.

    Returns:
        ``mean over images of 1 - (sum w p t + 1) / (sum w (p + t - p t) + 1)``, in [0, 1).

    Raises:
        ValueError: the shapes differ.
    """
    logits, targets, weights = _parts(logits, targets, weights)
    p = torch.sigmoid(logits)
    overlap = (weights * p * targets).flatten(1).sum(1)
    union = (weights * (p + targets - p * targets)).flatten(1).sum(1)
    present = (weights.flatten(1).sum(1) > 0).float()  # an image that is ignored as a whole has no say in the mean
    loss = 1 - (overlap + SMOOTH) / (union + SMOOTH)
    return (loss * present).sum() / present.sum().clamp(min=1)


def sls(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Scale- and location-sensitive loss of each image, averaged over the images that have any weight.

    Scale: ``1 - w * IoU`` with the soft IoU of `soft_iou` and ``w = (min(a, b) + v) / (max(a, b) + v)``, where a and b
    are the predicted and the true area and ``v = ((a - b) / 2)^2``. Location: ``1 - min(d, e) / max(d, e) + 4 / pi^2 *
    (phi - psi)^2``, where (d, phi) and (e, psi) are the polar coordinates of the two centroids, seen from the upper
    left corner, with the picture's sides as units. `SMOOTH` is added to all areas of ratios, as in `soft_iou`, so that
    an image without targets asks for silence; it has no location term.

    The published code takes sums where the paper has centroids, so that its distances are those of areas; here they are
    centroids.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W) in [0, 1].
        weights: (B, 1, H, W) >= 0; they weigh the pixels of areas and centroids.

    Returns:
        The mean, in [0, 3).

    Raises:
        ValueError: the shapes differ.

    Source: Liu et al., "Infrared Small Target Detection with Scale and Location Sensitivity", CVPR 2024.
    """
    logits, targets, weights = _parts(logits, targets, weights)
    p = torch.sigmoid(logits)
    overlap = (weights * p * targets).flatten(1).sum(1)
    area, true_area = (weights * p).flatten(1).sum(1), (weights * targets).flatten(1).sum(1)
    variance = ((area - true_area) / 2).square()
    least, most = torch.minimum(area, true_area), torch.maximum(area, true_area)
    scale = (least + variance + SMOOTH) / (most + variance + SMOOTH)
    loss = 1 - scale * (overlap + SMOOTH) / (area + true_area - overlap + SMOOTH)

    distance, angle = _polar_centroids(weights * p)
    true_distance, true_angle = _polar_centroids(weights * targets)
    ratio = torch.minimum(distance, true_distance) / torch.maximum(distance, true_distance)
    location = 1 - ratio + 4 / math.pi**2 * (angle - true_angle).square()
    loss = loss + torch.where(true_area > 0, location, 0.0)

    present = (weights.flatten(1).sum(1) > 0).float()
    return (loss * present).sum() / present.sum().clamp(min=1)


def _polar_centroids(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and angle (B,) of the centroids of (B, 1, H, W) >= 0, sides of 1; those of the middle without mass."""
    height, width = mass.shape[-2:]
    rows = (torch.arange(height, device=mass.device) + 0.5) / height
    columns = (torch.arange(width, device=mass.device) + 0.5) / width
    total = mass.sum((1, 2, 3))
    some = total > 0
    safe = torch.where(some, total, 1.0)
    row = torch.where(some, (mass.sum((1, 3)) * rows).sum(1) / safe, 0.5)
    column = torch.where(some, (mass.sum((1, 2)) * columns).sum(1) / safe, 0.5)
    return torch.hypot(row, column), torch.atan2(row, column)
