"""Losses of binary segmentation on logits, with a weight per pixel.

All take ``logits``, ``targets`` in [0, 1] and ``weights`` >= 0 of one shape (B, 1, H, W) and return a float32 scalar.
A pixel of weight 0 has no influence and receives no gradient, whatever its logit and target; where all weights are 0
the loss is 0. Everything is computed in float32, also under autocast.
"""

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


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all pixels; 0 where all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1.0)


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
    return _mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), weights)


def focal(logits: Tensor, targets: Tensor, weights: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017, eq. 5), the weighted mean over the pixels of the batch.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W) in [0, 1]; soft targets mix the two classes' terms.
        weights: (B, 1, H, W) >= 0.
        alpha: share of the target class, in [0, 1].
        gamma: exponent that fades out well classified pixels, >= 0.

    Returns:
        ``mean of -alpha t (1 - p)^gamma log p - (1 - alpha) (1 - t) p^gamma log(1 - p)``, >= 0.

    Raises:
        ValueError: the shapes differ.
    """
    logits, targets, weights = _parts(logits, targets, weights)
    p = torch.sigmoid(logits)
    hit = -alpha * targets * (1 - p) ** gamma * F.logsigmoid(logits)
    miss = -(1 - alpha) * (1 - targets) * p**gamma * F.logsigmoid(-logits)
    return _mean(hit + miss, weights)


def _ratio_loss(overlap: Tensor, size: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``1 - (overlap + SMOOTH) / (size + SMOOTH)`` over the images that have any weight; inputs are (B,)."""
    present = (weights.flatten(1).sum(1) > 0).float()
    loss = 1 - (overlap + SMOOTH) / (size + SMOOTH)
    return (loss * present).sum() / present.sum().clamp(min=1)


def soft_iou(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """One minus the soft intersection over union of each image, averaged over the images.

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
    return _ratio_loss(overlap, union, weights)


def dice(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Dice loss with squared areas (Milletari et al., 3DV 2016), per image and averaged over the images.

    Images without targets are treated as in `soft_iou`.

    Args:
        logits: (B, 1, H, W).
        targets: (B, 1, H, W) in [0, 1].
        weights: (B, 1, H, W) >= 0.

    Returns:
        ``mean over images of 1 - (2 sum w p t + 1) / (sum w (p^2 + t^2) + 1)``, in [0, 1).

    Raises:
        ValueError: the shapes differ.
    """
    logits, targets, weights = _parts(logits, targets, weights)
    p = torch.sigmoid(logits)
    overlap = 2 * (weights * p * targets).flatten(1).sum(1)
    areas = (weights * (p * p + targets * targets)).flatten(1).sum(1)
    return _ratio_loss(overlap, areas, weights)
