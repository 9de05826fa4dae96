"""Losses of nano-SAM's pre-training, after SAM's recipe (Kirillov et al., ICCV 2023, section 3 and appendix A)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewlabel.sam.pretrain_batches import Batch
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.sam.prompts import correction_clicks

# Weights of the cross entropy over the target and over the rest. The rest weighs more so that a network that knows
# nothing yet answers "background", not 0 everywhere: logits are a product of two learnt vectors, and where both vanish
# so do their gradients.
ON_TARGET, ON_REST = 0.5, 2.0
FOCAL, SMALL = 1.0, 32.0  # weight of the focal loss, and pixels added to the area that it is divided by
LOGIT_LIMIT = 32.0  # of the mask prompt that is fed back


def mask_loss(logits: Tensor, targets: Tensor, late: float) -> Tensor:
    """Loss of each mask: dice plus a pixel loss that changes in the course of the training.

    Early, the pixel loss is the cross entropy averaged over the target and over the rest separately, so that a target
    of nine pixels in an image of 65536 weighs as much as its background: with one common average a network that starts
    from random weights settles on empty masks. Such a balance draws masks too large, because a missed pixel of a small
    target costs more than a false one. Late, it is the focal loss (Lin et al., 2017; gamma 2), in which both cost the
    same, summed and divided by the target's area. The dice loss is that of Milletari et al., 2016.

    Args:
        logits: float `(..., H, W)`.
        targets: float `(..., H, W)` in [0, 1], broadcastable.
        late: Share of the late pixel loss, in [0, 1].

    Returns:
        float `(...)`.
    """
    probability = logits.sigmoid()
    area = targets.sum((-2, -1))
    rest = targets.shape[-1] * targets.shape[-2] - area
    share = ON_TARGET * targets / area.clamp_min(1.0)[..., None, None]
    share = (1 - late) * (share + ON_REST * (1 - targets) / rest.clamp_min(1.0)[..., None, None])
    if late > 0:
        share = share + late * FOCAL * (probability - targets).square() / (area + SMALL)[..., None, None]
    cross = ((F.softplus(logits) - logits * targets) * share).sum((-2, -1))
    overlap = (probability * targets).sum((-2, -1))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum((-2, -1)) + area + 1.0)
    return cross + dice


def hard_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the masks `logits > 0` `(..., H, W)` with bool targets `(..., H, W)`; 1 where both are empty."""
    masks = logits > 0
    union = (masks | targets).sum((-2, -1))
    return torch.where(union > 0, (masks & targets).sum((-2, -1)) / union.clamp_min(1), 1.0)


@dataclass(frozen=True)
class Scores:
    """How good one decode is.

    Attributes:
        mask: Mean loss of the best masks.
        quality: Mean squared error of the predicted IoU of all masks.
        best: Index `(B, P)` of the mask with the least loss.
        iou: Mean IoU of the best masks, without gradient.
        chosen: Mean IoU of the masks with the highest predicted IoU, without gradient.
    """

    mask: Tensor
    quality: Tensor
    best: Tensor
    iou: Tensor
    chosen: Tensor


def score(segmenter: PromptableSegmenter, low: Tensor, quality: Tensor, targets: Tensor, late: float) -> Scores:
    """Losses of one decode: that of the best mask, and the error of the predicted IoU of all.

    The best of several masks is found at the decoder's resolution; its loss, and every IoU, at the image's. All is
    computed in single precision.

    Args:
        segmenter: The model, for its geometry.
        low: Logits `(B, P, M, h, w)`.
        quality: Predicted IoU `(B, P, M)`.
        targets: bool `(B, P, H, W)`.
        late: As in `mask_loss`.
    """
    size = (int(targets.shape[-2]), int(targets.shape[-1]))
    low, quality, truth = low.float(), quality.float(), targets.float()
    with torch.no_grad():
        actual = hard_iou(segmenter.to_image(low, size), targets[:, :, None])
        coarse = F.adaptive_avg_pool2d(truth, low.shape[-1])
        best = mask_loss(low, coarse[:, :, None], late).argmin(-1)
    index = best[:, :, None, None, None].expand(-1, -1, 1, *low.shape[-2:])
    full = segmenter.to_image(low.gather(2, index)[:, :, 0], size)
    return Scores(
        mask=mask_loss(full, truth, late).mean(),
        quality=(quality - actual).square().mean(),
        best=best,
        iou=actual.gather(-1, best[..., None]).mean(),
        chosen=actual.gather(-1, quality.detach().argmax(-1, keepdim=True)).mean(),
    )


def step_loss(
    segmenter: PromptableSegmenter,
    batch: Batch,
    late: float,
    quality_weight: float,
    embedding: Embedding | None = None,
) -> dict[str, Tensor]:
    """Loss terms of one step; nothing in it is random, and nothing waits for the device.

    The first prompts ask for three masks or one; then correction clicks, one at a time, go on from the best mask.

    Args:
        segmenter: The model, on the batch's device.
        batch: Images, targets and prompts.
        late: As in `mask_loss`.
        quality_weight: Weight of the predicted IoU's squared error.
        embedding: Of the batch's images, where the encoder is frozen; encoded here when None.

    Returns:
        The total "loss", and of the first prompts the mask loss "first", "iou_error", the best mask's "iou" and the
        IoU "chosen" by the predicted quality.
    """
    if embedding is None:
        embedding = segmenter.encode(batch.images.float())
    points, labels = batch.points, None
    if points is not None:
        labels = torch.ones(points.shape[:3], dtype=torch.long, device=points.device)
    low, quality = segmenter.decode_low(embedding, points, labels, batch.boxes, multimask=batch.multimask)
    first = score(segmenter, low, quality, batch.masks, late)
    total = first.mask + quality_weight * first.quality
    best = first.best
    for shares in batch.corrections:
        index = best[:, :, None, None, None].expand(-1, -1, 1, *low.shape[-2:])
        previous = low.detach().float().gather(2, index)[:, :, 0]
        size = (int(batch.masks.shape[-2]), int(batch.masks.shape[-1]))
        click, kind = correction_clicks(segmenter.to_image(previous, size) > 0, batch.masks, shares)
        points, labels = _append(points, click[:, :, None]), _append(labels, kind[:, :, None])
        previous = previous.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        low, quality = segmenter.decode_low(embedding, points, labels, batch.boxes, previous, multimask=False)
        later = score(segmenter, low, quality, batch.masks, late)
        total, best = total + later.mask + quality_weight * later.quality, later.best
    return {
        "loss": total,
        "first": first.mask.detach(),
        "iou_error": first.quality.detach(),
        "iou": first.iou,
        "chosen": first.chosen,
    }


def _append(before: Tensor | None, more: Tensor) -> Tensor:
    """Further clicks `(B, P, K, ...)` after those there are."""
    return more if before is None else torch.cat([before, more], 2)
