"""Refinement of pseudo-masks by SAM: a few points of each mask are shown to SAM, whose answer replaces the mask.

After S⁴M (arXiv 2504.05301). The class and its score stay the teacher's. Beyond the paper: a choice among SAM's three
masks that listens to the teacher, a gate (`refine_gate`), box and background prompts, a vote over several draws, and
suppression of duplicates. With `choose="quality"` and `gate=None` it is the paper's refinement, and with
`points="softmax"` that of the published code.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewlabel.core.masks import encode_many
from fewlabel.core.suppress import suppress_masks
from fewlabel.data.views import View
from fewlabel.s4m.pseudo import PIXELS, Pseudo, image_masks
from fewlabel.s4m.refine_gate import RefineGate, RefineStats, accepted, mask_iou
from fewlabel.s4m.refine_points import Points, prompt_points, tight_boxes
from fewlabel.sam.promptable import Embedding

BATCH = 64  # most prompts decoded at once, as in SAM's automatic procedure


class RefineConfig(BaseModel):
    """How pseudo-masks are refined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(default=3, ge=1, description="Points shown to SAM on each pseudo-mask.")
    points: Points = Field(
        default="mask",
        description="`mask` draws by the probability inside the mask (the paper), `softmax` by the softmax of the"
        " logits over the whole map (the published code).",
    )
    choose: Literal["agreement", "quality"] = Field(
        default="agreement",
        description="Which of SAM's three masks: the highest IoU with the teacher's times predicted IoU, or the highest"
        " predicted IoU alone (published).",
    )
    box: bool = Field(default=False, description="Show SAM the box of the teacher's mask as well.")
    negatives: int = Field(
        default=0, ge=0, description="Background points shown to SAM, one on each of so many neighbouring pseudo-masks."
    )
    draws: int = Field(
        default=1, ge=1, description="Times SAM is asked with new points; a pixel stays with more than half of them."
    )
    duplicate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="IoU of two refined masks above which the one with the lower score is dropped; null drops none.",
    )
    gate: RefineGate | None = Field(
        default=RefineGate(), description="When SAM's mask replaces the teacher's; null: always (published)."
    )


class Segmenter(Protocol):
    """What refinement asks of SAM; `fewlabel.sam.promptable.PromptableSegmenter` is one."""

    def encode(self, images: Tensor) -> Embedding:
        """Encode images float `(B, 3, H, W)` in [0, 1]."""
        ...

    def decode(
        self,
        embedding: Embedding,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits `(B, P, M, H, W)` of M masks for P prompts, and predicted IoU `(B, P, M)`."""
        ...


@dataclass(frozen=True)
class Refined:
    """Pseudo-labels of one image after refinement.

    Attributes:
        masks: bool `(M, H, W)` at the resolution of the view, none empty, nothing in the padding.
        classes: int64 `(M,)`, the teacher's.
        scores: float `(M,)`, the teacher's.
        kept: int64 `(M,)`, which of the pseudo-labels each one was, increasing.
        by_sam: bool `(M,)`, whether the mask is SAM's; else it is the teacher's.
        stats: What happened.
    """

    masks: Tensor
    classes: Tensor
    scores: Tensor
    kept: Tensor
    by_sam: Tensor
    stats: RefineStats

    def __len__(self) -> int:
        return int(self.masks.shape[0])


def best_masks(masks: Tensor, quality: Tensor, teacher: Tensor, choose: Literal["agreement", "quality"]) -> Tensor:
    """Choose one of the masks that answer each prompt.

    Args:
        masks: bool `(P, M, H, W)`.
        quality: float `(P, M)`, predicted IoU in [0, 1].
        teacher: bool `(P, H, W)`, the mask that each prompt was drawn from.
        choose: See `RefineConfig`.

    Returns:
        int64 `(P,)`, which of the M; the first of equal ones.
    """
    if choose == "quality":
        return quality.argmax(1)
    agreement = mask_iou(masks, teacher[:, None])
    # Where the product is 0 for all, as when SAM gives itself no quality, agreement alone decides.
    return (agreement * quality + 1e-6 * agreement).argmax(1)


@torch.no_grad()
def sam_masks(
    segmenter: Segmenter,
    view: View,
    pseudo: Pseudo,
    teacher: Tensor,
    generator: torch.Generator,
    config: RefineConfig,
) -> tuple[Tensor, Tensor]:
    """SAM's mask for each pseudo-mask, before any gate.

    SAM sees the content of the view without its padding and encodes it once. Prompts are decoded a few at a time, so
    that no more than `PIXELS` logits at image resolution are held.

    Args:
        segmenter: SAM, frozen, on the view's device.
        view: What the teacher saw; its own masks are not read.
        pseudo: N pseudo-labels, at least one.
        teacher: bool `(N, H, W)`, their masks at the resolution of the view, none empty.
        generator: The only randomness.
        config: What to show SAM, and which mask to take.

    Returns:
        bool `(N, H, W)`, nothing in the padding, perhaps empty; and predicted IoU float32 `(N,)` in [0, 1], the mean
        over the draws.
    """
    rows, columns = view.content
    seen = teacher[:, :rows, :columns]
    points, labels = prompt_points(
        pseudo, view.size, view.content, generator, config.count, config.draws, config.points, config.negatives
    )
    points, labels = points.flatten(0, 1), labels.flatten(0, 1)
    boxes = tight_boxes(seen) if config.box else None
    owner = torch.arange(len(pseudo), device=seen.device).repeat_interleave(config.draws)
    votes = torch.zeros(seen.shape, dtype=torch.int16, device=seen.device)
    predicted = []
    embedding = segmenter.encode(view.image[None, :, :rows, :columns])
    step = max(1, min(BATCH, PIXELS // (3 * rows * columns)))
    for first in range(0, len(owner), step):
        part = slice(first, first + step)
        mine = owner[part]
        shown = None if boxes is None else boxes[None, mine]
        logits, answer = segmenter.decode(embedding, points[None, part], labels[None, part], boxes=shown)
        masks, quality = logits[0] > 0, answer[0].float().clamp(0, 1)  # some families predict beyond [0, 1]
        best = best_masks(masks, quality, seen[mine], config.choose)
        at = torch.arange(len(best), device=best.device)
        votes.index_add_(0, mine, masks[at, best].to(votes.dtype))
        predicted.append(quality[at, best])
    refined = torch.zeros_like(teacher)
    refined[:, :rows, :columns] = 2 * votes > config.draws
    return refined, torch.cat(predicted).unflatten(0, (-1, config.draws)).mean(1)


@torch.no_grad()
def refine(
    segmenter: Segmenter,
    view: View,
    pseudo: Pseudo,
    generator: torch.Generator,
    config: RefineConfig,
) -> Refined:
    """Refine the pseudo-labels of one image.

    Args:
        segmenter: SAM, frozen, on the view's device.
        view: What the teacher saw; its own masks are not read.
        pseudo: N pseudo-labels, also none.
        generator: The only randomness; not touched where N is 0.
        config: The options.

    Returns:
        The refined pseudo-labels in the order given. With a gate all N are there, SAM's mask or the teacher's; without
        one, those whose mask came out empty are gone. Duplicates are gone if the options say so.
    """
    teacher = image_masks(pseudo, view.size, view.content)
    if len(pseudo) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=teacher.device)
        return Refined(teacher, pseudo.classes, pseudo.scores, nothing, nothing.bool(), RefineStats())
    masks, quality = sam_masks(segmenter, view, pseudo, teacher, generator, config)
    iou, area = mask_iou(masks, teacher), masks.sum((1, 2))
    if config.gate is None:
        good = kept = area > 0
    else:
        good = accepted(iou, quality, area, teacher.sum((1, 2)), config.gate)
        masks[~good] = teacher[~good]
        kept = torch.ones_like(good)
    index = kept.nonzero()[:, 0]
    left = len(index)
    if config.duplicate is not None:
        index = index[_distinct(masks[index], pseudo.scores[index], config.duplicate)]
    stats = RefineStats(
        count=len(pseudo),
        accepted=int(good.sum()),
        empty=len(pseudo) - left,
        duplicates=left - len(index),
        total_iou=float(iou.sum()),
    )
    return Refined(masks[index], pseudo.classes[index], pseudo.scores[index], index, good[index], stats)


def _distinct(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices, increasing, of the masks `(N, H, W)`, none empty, that no mask of a higher score covers."""
    codes = encode_many(masks.cpu().numpy())
    stay = suppress_masks(codes, tight_boxes(masks).cpu().numpy(), scores.cpu().numpy(), threshold)
    return torch.from_numpy(np.sort(stay)).to(masks.device)
