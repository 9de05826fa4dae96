"""Pseudo-labels: which of a teacher's queries the student learns from, and what their masks are.

After GuidedDistillation (WACV 2024), whose filter S⁴M (arXiv 2504.05301) takes over unchanged: a class threshold and a
least size, no score of the mask, no suppression. Padding, which the published code lets count, is left out here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewlabel.core.errors import DataError

PIXELS = 2**25  # most logits at image resolution that are held at once: 128 MiB


class FilterConfig(BaseModel):
    """Which queries become pseudo-labels; the defaults are the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_threshold: float = Field(
        default=0.7, ge=0, le=1, description="Probability of its class that a query must exceed."
    )
    min_mass: float = Field(
        default=5.0, ge=0, description="Sum of mask probabilities over stride-4 pixels that a query must exceed."
    )
    mask_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Mean probability inside its mask that a query must exceed; null asks for nothing, as published.",
    )


@dataclass(frozen=True)
class Pseudo:
    """N pseudo-labels of one image, at the resolution of the mask logits.

    Attributes:
        masks: bool `(N, h, w)`, none empty; they may overlap, and none reaches into the padding.
        logits: float `(N, h, w)`, the mask logits that the masks were cut from, over the padding too.
        classes: int64 `(N,)`, class ids 0..K-1.
        scores: float `(N,)`, probability of the class, 0..1.
    """

    masks: Tensor
    logits: Tensor
    classes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        count = self.masks.shape[:1]
        if self.logits.shape != self.masks.shape or self.classes.shape != count or self.scores.shape != count:
            raise DataError(
                f"Pseudo-labels hold masks {tuple(self.masks.shape)}, logits {tuple(self.logits.shape)}, classes"
                f" {tuple(self.classes.shape)} and scores {tuple(self.scores.shape)}; give one of each per object."
            )

    def __len__(self) -> int:
        return int(self.masks.shape[0])


def content_cells(grid: tuple[int, int], size: tuple[int, int], content: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a coarse grid whose cells have their centre in an image's content.

    Args:
        grid: Rows and columns of the grid, which covers the padded image.
        size: Rows and columns of the image, padding included.
        content: Rows and columns of the image itself, from the upper left corner.

    Returns:
        Rows and columns, each up to that of the grid.
    """
    # The centre (r + 1/2) * side / cells lies below the limit for r < limit * cells / side - 1/2: in whole numbers.
    rows, columns = (
        -((side - 2 * limit * cells) // (2 * side)) for cells, side, limit in zip(grid, size, content, strict=True)
    )
    return max(rows, 0), max(columns, 0)


@torch.no_grad()
def pseudo_labels(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    content: tuple[int, int],
    config: FilterConfig,
) -> Pseudo:
    """Keep the queries of one image that the teacher is sure of.

    A query stays if its likeliest class is not "no object", that class has a probability above `class_threshold`, the
    mask's probabilities sum to more than `min_mass` over the content, and its mask (probability above 1/2) is not
    empty there. A higher class threshold never adds a query.

    Args:
        class_logits: float `(Q, K + 1)`, "no object" last.
        mask_logits: float `(Q, h, w)` over the padded image, in Mask2Former at stride 4.
        size: Rows and columns of the image, padding included.
        content: Rows and columns of the image itself.
        config: The thresholds.

    Returns:
        The pseudo-labels in the order of the queries, in float32.

    Raises:
        DataError: The two tensors do not belong together.
    """
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or len(class_logits) != len(mask_logits):
        raise DataError(
            f"Class logits {tuple(class_logits.shape)} and mask logits {tuple(mask_logits.shape)} are not (Q, K + 1)"
            " and (Q, h, w); give the queries of one image."
        )
    scores, classes = class_logits.float().softmax(-1).max(-1)
    sure = ((classes < class_logits.shape[1] - 1) & (scores > config.class_threshold)).nonzero()[:, 0]
    logits = mask_logits[sure].float()  # few queries pass, so the maps of the others are not touched
    rows, columns = content_cells((int(logits.shape[1]), int(logits.shape[2])), size, content)
    probability = torch.zeros_like(logits)
    probability[:, :rows, :columns] = logits[:, :rows, :columns].sigmoid()
    masks = probability > 0.5
    area = masks.sum((1, 2))
    good = (probability.sum((1, 2)) > config.min_mass) & (area > 0)
    if config.mask_threshold is not None:
        good &= (probability * masks).sum((1, 2)) / area.clamp_min(1) > config.mask_threshold
    return Pseudo(masks[good], logits[good], classes[sure][good], scores[sure][good])


@torch.no_grad()
def image_masks(pseudo: Pseudo, size: tuple[int, int], content: tuple[int, int]) -> Tensor:
    """The masks at image resolution: logits resampled bilinearly, then cut at probability 1/2.

    What the teacher says of the padding does not bleed into the image: the outermost cells of the content are repeated
    beyond it first. A mask so small that it vanishes between the cells keeps its cells as squares.

    Args:
        pseudo: N pseudo-labels.
        size: Rows and columns of the image, padding included.
        content: Rows and columns of the image itself.

    Returns:
        bool `(N, H, W)`, none empty, nothing in the padding.
    """
    found = torch.zeros((len(pseudo), *size), dtype=torch.bool, device=pseudo.masks.device)
    grid = (int(pseudo.masks.shape[1]), int(pseudo.masks.shape[2]))
    rows, columns = content_cells(grid, size, content)
    beyond = (0, grid[1] - columns, 0, grid[0] - rows)
    inside = (slice(None), slice(content[0]), slice(content[1]))
    step = max(1, PIXELS // (size[0] * size[1]))
    for first in range(0, len(pseudo), step):
        part = slice(first, first + step)
        logits = F.pad(pseudo.logits[None, part, :rows, :columns], beyond, mode="replicate")
        masks = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0] > 0
        squares = F.interpolate(pseudo.masks[None, part].to(logits.dtype), size, mode="nearest-exact")[0] > 0
        masks, squares = masks[inside], squares[inside]
        found[part][inside] = torch.where(masks.flatten(1).any(1)[:, None, None], masks, squares)
    return found
