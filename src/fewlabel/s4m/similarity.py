"""Structural distillation: the teacher's pixels shall be as alike to each other as SAM finds them.

After S⁴M (arXiv 2504.05301), stage 1. For a prompted pixel i, SAM's decoder says how alike every part of the image is
to it; the teacher's per-pixel embedding says the same in one row of its own self-similarity. The loss is the Huber
distance of the two rows. Similarities are compared rather than features, so the teacher learns where objects end
without learning what SAM calls an object.

SAM is shown the content of a view without its padding: its tokens then cover image only, at SAM's full resolution, and
what it says about an image does not depend on the images it was put into a batch with, so that it can be kept. Content
lies in the upper left corner, so a point has the same coordinates in both. The teacher's features are brought to the
cells of SAM's tokens, wherever these lie in the image, and one cell is the anchor of both rows: the one that holds the
prompted pixel, by SAM's own frame and never by the size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewlabel.core.errors import ModelError
from fewlabel.data.views import View
from fewlabel.sam.frames import Frame
from fewlabel.sam.tokens import LEAST_NORM, anchors


@dataclass(frozen=True)
class SimilarityTarget:
    """What SAM says about one image.

    Attributes:
        points: float32 `(P, 2)` xy of the prompts in pixels of the view, each a pixel's centre.
        rows: float32 `(P, side * side)` similarity of every cell to the one that holds the point, under its prompt.
        frame: Where the view's content lies in SAM's input.
    """

    points: Tensor
    rows: Tensor
    frame: Frame

    @property
    def side(self) -> int:
        """Cells of SAM's tokens along each side of its frame."""
        return round(self.rows.shape[1] ** 0.5)


def query_points(view: View, count: int, generator: torch.Generator) -> Tensor:
    """Draw the pixels that SAM is prompted with: half of them on objects, none in the padding.

    Args:
        view: The image.
        count: Number P of points.
        generator: Where the random numbers come from; on its device they are drawn, so that the points of a seed do not
            depend on where the view is.

    Returns:
        float32 `(P, 2)` xy of pixel centres on the view's device. The first P // 2 (fewer where the objects have fewer
        pixels) are different pixels of the union of the masks, the others uniform over the content.
    """
    rows, columns = view.content
    content = view.masks[:, :rows, :columns].any(0)
    inside = content.flatten().nonzero()[:, 0].to(generator.device)
    order = torch.randperm(len(inside), generator=generator, device=generator.device)
    on_objects = inside[order[: count // 2]]
    anywhere = torch.randint(
        rows * columns, (count - len(on_objects),), generator=generator, device=generator.device, dtype=torch.int64
    )
    pixels = torch.cat((on_objects, anywhere))
    return (torch.stack((pixels % columns, pixels // columns), -1) + 0.5).to(content.device)


def teacher_rows(
    features: Tensor, size: tuple[int, int], frame: Frame, points: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """Rows of the teacher's self-similarity on the cells of SAM's tokens; differentiable.

    Args:
        features: float `(C, h, w)` per-pixel embedding of one view, of a quarter of its size or any other.
        size: `(H, W)` of the view, padding included.
        frame: Where the view's content lies in SAM's input.
        points: `(P, 2)` xy in pixels of the view.
        side: Cells of SAM's tokens along each side of its frame.

    Returns:
        float32 `(P, n)` cosines, and which cells they belong to, int64 `(n,)`: those that the content touches, in the
        order of their indices row by row over the frame. SAM's padding and the view's have no cell among them, and no
        feature beyond the content is read.
    """
    height, width = frame.touched(side, side)
    across = torch.arange(width, device=features.device)
    cells = (torch.arange(height, device=features.device)[:, None] * side + across).flatten()
    place = torch.full((side * side,), -1, dtype=torch.int64, device=features.device)
    place[cells] = torch.arange(len(cells), device=features.device)
    # The sums are the loss's own, not the network's: in half precision they would be off by more than rows differ.
    with torch.autocast(features.device.type, enabled=False):
        down, right = (
            _reading(frame, axis, side, int(features.shape[1 + axis]), size[axis]).to(features.device)
            for axis in (0, 1)
        )
        at_cells = down @ features.float() @ right.T
        unit = functional.normalize(at_cells.flatten(1), dim=0, eps=LEAST_NORM)
        return unit[:, place[anchors(frame, points, side)]].T @ unit, cells


def similarity_loss(features: Tensor, size: tuple[int, int], targets: Sequence[SimilarityTarget]) -> Tensor:
    """Structural distillation of one batch.

    Args:
        features: float `(B, C, h, w)` the teacher's per-pixel embedding of padded views of one size.
        size: `(H, W)` of the views, padding included.
        targets: SAM's word on each view.

    Returns:
        Scalar float32: mean over images, prompts and the cells that the content touches of the smooth L1 distance
        (beta 1) between the teacher's row and SAM's; 0 where there is no prompt at all.

    Raises:
        ModelError: There is not one target for each image, or the content of one is larger than the views.
    """
    if len(targets) != len(features):
        raise ModelError(
            f"Structural distillation got {len(features)} images and {len(targets)} targets; give one for each image."
        )
    total, count = features.new_zeros((), dtype=torch.float32), 0
    for image, target in zip(features, targets, strict=True):
        if target.frame.size[0] > size[0] or target.frame.size[1] > size[1]:
            raise ModelError(
                f"A target of structural distillation is of {target.frame.size} pixels (rows, columns), but the views"
                f" have {size}; give the size of the padded batch."
            )
        points, rows = target.points.to(image.device), target.rows.to(image.device)
        found, cells = teacher_rows(image, size, target.frame, points, target.side)
        total = total + functional.smooth_l1_loss(found, rows[:, cells], reduction="sum")
        count += found.numel()
    return total / max(1, count)


def _reading(frame: Frame, axis: int, side: int, length: int, padded: int) -> Tensor:
    """Weights float32 `(n, length)` that read one axis of features at the centres of the n touched cells, bilinearly.

    The axis has `length` features over `padded` pixels. With a frame that the content fills, and no padding, this is
    `interpolate(..., mode="bilinear", align_corners=False)`. Between the outermost features of the content and its
    edges the value goes on, as there.
    """
    count = frame.touched(side, side)[axis]
    centres = torch.arange(count, dtype=torch.float64) + 0.5
    pixels = centres * frame.side * frame.size[axis] / (side * frame.content[axis])
    within = -(-frame.size[axis] * length // padded)  # features that the content touches
    places = (pixels * length / padded - 0.5).clamp(0, within - 1)
    weights = (1.0 - (places[:, None] - torch.arange(length, dtype=torch.float64)).abs()).clamp_min(0.0)
    return weights.float()
