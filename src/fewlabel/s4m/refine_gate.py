"""The gate of the refinement: when SAM's mask replaces the teacher's, and what that did.

S⁴M (arXiv 2504.05301) accepts every answer of SAM, also an empty one or one of the whole background; with good
pseudo-labels (COCO, 10 % of the labels) that costs more than it gives. A mask that fails here leaves the teacher's.
"""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class RefineGate(BaseModel):
    """What SAM's mask must be like to replace the teacher's.

    No paper gives these limits; they are our choice. An IoU of at least t alone bounds the ratio of areas by t and
    1 / t, so the default range of areas binds only where `min_iou` is lowered, as for a teacher whose masks are poor in
    shape but right in size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_iou: float = Field(default=0.5, ge=0, le=1, description="Least IoU of SAM's mask with the teacher's.")
    min_quality: float = Field(default=0.5, ge=0, le=1, description="Least IoU that SAM predicts for its mask.")
    min_growth: float = Field(default=0.5, ge=0, le=1, description="Least area of SAM's mask over the teacher's.")
    max_growth: float = Field(default=2.0, ge=1, description="Most area of SAM's mask over the teacher's.")


@dataclass(frozen=True)
class RefineStats:
    """What refinement did to pseudo-labels; those of several images add up.

    Attributes:
        count: Pseudo-labels that went in.
        accepted: Those whose mask is now SAM's.
        empty: Those that were dropped because SAM's mask was empty; none where there is a gate.
        duplicates: Those that were dropped because they cover what a better one covers.
        total_iou: Sum over all that went in of the IoU of SAM's mask with the teacher's, whether accepted or not.
    """

    count: int = 0
    accepted: int = 0
    empty: int = 0
    duplicates: int = 0
    total_iou: float = 0.0

    def __add__(self, other: "RefineStats") -> "RefineStats":
        return RefineStats(
            self.count + other.count,
            self.accepted + other.accepted,
            self.empty + other.empty,
            self.duplicates + other.duplicates,
            self.total_iou + other.total_iou,
        )

    @property
    def acceptance(self) -> float:
        """Share that was accepted, 0..1; 0 of nothing."""
        return self.accepted / max(self.count, 1)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of SAM's masks with the teacher's, 0..1; 0 of nothing."""
        return self.total_iou / max(self.count, 1)


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of masks that belong together; leading axes broadcast.

    Args:
        first: bool `(..., H, W)`.
        second: bool `(..., H, W)`.

    Returns:
        float32 `(...)`, 0 where both are empty.
    """
    shared = (first & second).sum((-2, -1))
    return shared / (first.sum((-2, -1)) + second.sum((-2, -1)) - shared).clamp_min(1)


def accepted(iou: Tensor, quality: Tensor, area: Tensor, teacher_area: Tensor, gate: RefineGate) -> Tensor:
    """Which of SAM's masks replace the teacher's.

    Args:
        iou: float `(N,)`, IoU of SAM's mask with the teacher's.
        quality: float `(N,)`, IoU that SAM predicts for its mask.
        area: int `(N,)`, pixels of SAM's mask.
        teacher_area: int `(N,)`, pixels of the teacher's.
        gate: The limits, which count as passed.

    Returns:
        bool `(N,)`; never True for an empty mask, whatever the limits.
    """
    growth = area / teacher_area.clamp_min(1)
    good: Tensor = (iou >= gate.min_iou) & (quality >= gate.min_quality) & (area > 0)
    return good & (growth >= gate.min_growth) & (growth <= gate.max_growth)


def iou_change(before: Tensor, after: Tensor, truth: Tensor) -> Tensor:
    """What refinement did to pseudo-masks, where the true objects are known.

    Each pseudo-mask is compared with one true object before and after: the one it overlapped most before. So a mask
    that wandered to another object counts as a loss.

    Args:
        before: bool `(N, H, W)`, the teacher's masks.
        after: bool `(N, H, W)`, the same ones refined.
        truth: bool `(M, H, W)`, the true objects.

    Returns:
        float32 `(N, 2)`: IoU with the true object before and after; zeros where there is no true object.
    """
    pairs = torch.zeros((len(before), 2), device=before.device)
    if len(truth) == 0:
        return pairs
    for row, old, new in zip(pairs, before, after, strict=True):  # one by one: N x M masks would not fit
        partners = mask_iou(truth, old)
        row[0], row[1] = partners.max(), mask_iou(truth[partners.argmax()], new)
    return pairs
