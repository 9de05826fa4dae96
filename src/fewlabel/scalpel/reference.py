"""The frozen SAM that the teacher is held against: asked with prompts, it says what a mask of a target looks like.

The teacher adapts SAM's encoder and trains its mask decoder; this one keeps both as they were published. Where it is
asked decides what it is worth, so it is asked at the targets of labelled images and at the prior peaks of others.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewlabel.core.masks import component_boxes, components
from fewlabel.core.radiometry import to_unit
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.sam.prompters import Proposals, peaks, with_boxes
from fewlabel.sam.prompts import central_point
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank

MOST = 16  # prompts of one image
SCALES = (1, 2)  # factors by which the priors see an image reduced, and
FLOOR = 0.1  # the least peak, both as in `propose.prior_peaks`
FULL = math.log1p(2.0)  # prior of a point target of two standard deviations; most false peaks have a third of it
REACH = 2  # pixels; the operators answer in a target's middle, this is how far the target goes on around it
BACKED = 0.5  # share of a mask that the priors have to support


class Answer(NamedTuple):
    """What SAM says about a batch of images.

    Attributes:
        masks: float (B, 1, h, w) in [0, 1] at SAM's mask size: probability of target, the highest over an image's
            prompts; 0 in an image without prompts.
        quality: float (B, 1, h, w) in [0, 1]: SAM's own predicted IoU of the mask that is highest there.
        disputed: float (B, 1, h, w) in [0, 1]: the highest probability in masks that were set aside.
    """

    masks: Tensor
    quality: Tensor
    disputed: Tensor


def support(prior: Tensor, size: tuple[int, int]) -> Tensor:
    """How far the priors speak for a target in each cell of a grid.

    Args:
        prior: float (B, 1, H, W) >= 0, from `FrozenSam.prior`.
        size: Rows and columns (h, w) of the grid.

    Returns:
        float (B, 1, h, w) in [0, 1]: the highest prior in the cell and up to `REACH` pixels around it, as a share of
        `FULL`.
    """
    wide = F.max_pool2d(prior, 2 * REACH + 1, stride=1, padding=REACH)
    return (F.adaptive_max_pool2d(wide, size) / FULL).clamp(0, 1)


class FrozenSam:
    """SAM as it was before adaptation, and the untrained operators as priors; nothing of it learns.

    The encoder, which no training changes, is shared with the given segmenter; the rest is a copy. No module, so that
    it never becomes part of a model that refers to it.
    """

    def __init__(self, segmenter: PromptableSegmenter, operators: Sequence[str] = OPERATOR_NAMES) -> None:
        """Copy what a teacher would train.

        Args:
            segmenter: SAM, with its published weights still in it, on the device where it is to be asked.
            operators: Names of the operators that are the priors.
        """
        encoder = segmenter.model.vision_encoder
        # What a deep copy's memo holds is not copied again.
        self.segmenter = copy.deepcopy(segmenter, {id(encoder): encoder}).requires_grad_(False)
        device = next(encoder.parameters()).device
        self.bank = OperatorBank(operators).requires_grad_(False).to(device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Embedding:
        """Encode standardised images, float (B, 1, S, S), without any adapter; must not be called while one is on."""
        return self.segmenter.encode(to_unit(images))

    @torch.no_grad()
    def prior(self, images: Tensor) -> Tensor:
        """How strongly all operators agree that a pixel is target: the map whose maxima are `propose.prior_peaks`.

        Args:
            images: float (B, 1, H, W), standardised.

        Returns:
            float (B, 1, H, W) >= 0, in the unit of the bank: the least of the operators' answers, so that one that
            mistakes an edge for a target is overruled by the others, and the largest over the scales 1 and 2.
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        looks = []
        for scale in SCALES:
            reduced = F.interpolate(images, size=[-(-side // scale) for side in size], mode="area")
            answers = F.interpolate(self.bank(reduced), size=size, mode="bilinear")
            looks.append(answers.amin(1, keepdim=True).clamp_min(0))
        return torch.stack(looks).amax(0)

    def from_truth(self, embedding: Embedding, targets: Tensor) -> Answer:
        """Ask at the true targets.

        Args:
            embedding: What `embed` returned for B images.
            targets: float (B, 1, S, S), 0 or 1.

        Returns:
            The answer to a click in the middle of each target and its tight box; the largest ones where an image has
            more than `MOST`.
        """
        return self._answer(embedding, [truth_prompts(plane > 0) for plane in targets[:, 0].cpu().numpy()])

    def from_peaks(self, embedding: Embedding, images: Tensor, prior: Tensor) -> Answer:
        """Ask where the priors answer.

        Args:
            embedding: What `embed` returned for the images.
            images: float (B, 1, S, S), standardised.
            prior: float (B, 1, S, S), what `prior` returned for them.

        Returns:
            The answer to a click on each of the highest peaks of the prior and a box around what stands out there. A
            mask of which the priors support less than half is not the mask of what they answered to, such as a cloud
            with one bright spot: it is set aside as disputed.
        """
        greys, maps = (planes[:, 0].float().cpu().numpy() for planes in (images, prior))
        found = [peaks(map, deviations=0.0, floor=FLOOR, most=MOST) for map in maps]
        prompts = [with_boxes(grey, some) for grey, some in zip(greys, found, strict=True)]
        side = self.segmenter.mask_size
        return self._answer(embedding, prompts, support(prior, (side, side)))

    @torch.no_grad()
    def _answer(self, embedding: Embedding, prompts: Sequence[Proposals], supported: Tensor | None = None) -> Answer:
        """SAM's masks for each image's own points and boxes, joined per image by the maximum.

        Where `supported` (B, 1, h, w) is given, masks that it does not back are disputed.
        """
        like, side = embedding.features[-1], self.segmenter.mask_size
        most = max(len(some) for some in prompts)
        if most == 0:
            blank = like.new_zeros((len(prompts), 1, side, side), dtype=torch.float32)
            return Answer(blank, blank, blank)
        points, boxes = (torch.from_numpy(part).to(like.device) for part in padded(prompts, most, embedding.size))
        low, quality = self.segmenter.decode_low(embedding, points=points[:, :, None], boxes=boxes)
        chosen = quality.argmax(2)  # (B, P), of three masks for each prompt
        low = low.gather(2, chosen[..., None, None, None].expand(-1, -1, 1, side, side))[:, :, 0]
        masks = low.float().sigmoid()
        quality = quality.float().gather(2, chosen[..., None]).clamp(0, 1)
        asked = torch.tensor([len(some) > 0 for some in prompts], device=like.device)[:, None]
        backed = asked.expand(-1, most)
        if supported is not None:
            inside = (masks > 0.5).float()
            share = (inside * supported).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
            backed = asked & (share >= BACKED)
        kept, winner = torch.where(backed[..., None, None], masks, 0.0).max(1, keepdim=True)
        disputed = torch.where((asked & ~backed)[..., None, None], masks, 0.0).amax(1, keepdim=True)
        believed = torch.where(backed, quality[..., 0], 0.0)[..., None, None].expand_as(masks).gather(1, winner)
        return Answer(kept, believed, disputed)


def truth_prompts(mask: np.ndarray) -> Proposals:
    """Click and box for each of the largest 8-connected targets of a mask, bool `(H, W)`; its area is its strength."""
    labels, count = components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    chosen = np.argsort(-areas, kind="stable")[:MOST]
    points = [central_point(labels == number + 1) for number in chosen]
    return Proposals(
        areas[chosen].astype(np.float32),
        np.array(points, np.float32).reshape(-1, 2),
        component_boxes(labels, count)[chosen],
    )


def padded(prompts: Sequence[Proposals], count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of images that have different numbers of them, as arrays.

    Args:
        prompts: For each of B images its points and boxes.
        count: P, at least 1 and no less than any image has.
        size: (H, W) of the images.

    Returns:
        Points float32 (B, P, 2) and boxes float32 (B, P, 4). An image's first prompt is repeated, which does not change
        the maximum over its masks; one without any is asked for the whole image, which its caller ignores.
    """
    height, width = size
    points, boxes = np.empty((len(prompts), count, 2), np.float32), np.empty((len(prompts), count, 4), np.float32)
    points[:], boxes[:] = (width / 2, height / 2), (0, 0, width, height)
    for row, some in enumerate(prompts):
        if len(some):
            assert some.points is not None  # both are given by `truth_prompts` and `with_boxes`
            assert some.boxes is not None
            order = [*range(len(some)), *[0] * (count - len(some))]
            points[row], boxes[row] = some.points[order], some.boxes[order]
    return points, boxes
