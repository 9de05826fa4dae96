"""All objects of an image at once: from given proposals without a grid, and by SAM's automatic procedure.

Both ask the same decoder through the same batches, so they differ only in where they ask and in what they keep. Neither
holds more at a time than one batch of prompts: masks become run-length codes before the next batch is decoded.

An image may be looked at through several `views`: boxes that are encoded on their own, as for an image larger than the
model's frame whose objects would vanish if it were squeezed in. Each prompt is asked in the view where it lies deepest,
and a mask that reaches a border which is not the image's is dropped as cut. Without views the whole image is one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewlabel.core import masks as mask_ops
from fewlabel.core.errors import ModelError
from fewlabel.core.masks import Rle
from fewlabel.core.suppress import suppress_boxes, suppress_masks
from fewlabel.core.types import Instances
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.prompters import Proposals, grid_points

BATCH = 64  # prompts decoded at once, as in SAM's automatic procedure
PIXELS = 2**23  # most logits at image resolution that are held at once: 32 MiB
INSIDE = 10.0  # mask-prompt logit within a coarse mask; its negative outside

View = tuple[int, int, int, int]
"""Box (x0, y0, x1, y1) of whole pixels that is encoded on its own."""


class _Mask(NamedTuple):
    """A decoded mask that passed all tests but that for duplicates."""

    rle: Rle
    box: np.ndarray
    quality: float


class _Tests(NamedTuple):
    """What a mask must pass."""

    quality: float
    stability: float
    offset: float
    share: float


@torch.inference_mode()
def segment_everything(
    segmenter: PromptableSegmenter,
    image: Tensor,
    proposals: Proposals,
    *,
    min_quality: float = 0.5,
    min_stability: float = 0.5,
    offset: float = 1.0,
    max_share: float = 0.5,
    duplicate: float = 0.5,
    batch: int = BATCH,
    views: Sequence[View] | None = None,
    dropped: Counter[str] | None = None,
) -> Instances:
    """One mask per proposal, as far as it is worth keeping.

    Of the three masks that answer a prompt the one with the highest predicted IoU is taken. Only that one is brought to
    the image's size.

    Args:
        segmenter: The model, in evaluation mode.
        image: float `(C, H, W)` in [0, 1], C 1 or 3.
        proposals: Where to ask; the order decides between masks of equal predicted IoU.
        min_quality: Predicted IoU that a mask must exceed.
        min_stability: Least stability: pixels with a logit above `offset` over those above `-offset`.
        offset: See `min_stability`.
        max_share: Largest share of the image that a mask may cover.
        duplicate: IoU of two masks above which the one with the lower predicted IoU is dropped.
        batch: Most prompts decoded at once.
        views: Parts of the image to encode on their own, see the module's text.
        dropped: Counts are added here by reason: "predicted IoU", "stability", "empty", "huge", "cut", "duplicate".

    Returns:
        Instances of class 0 and source "sam" by falling score, which is the predicted IoU cut to [0, 1].

    Raises:
        ModelError: `image` is not `(C, H, W)`, a prompt lies outside it or in no view, or `batch` is below 1.
    """
    reasons: Counter[str] = Counter()
    tests = _Tests(min_quality, min_stability, offset, max_share)
    found = list(_masks(segmenter, image, proposals, tests, batch, views, reasons, all_three=False))
    scores = np.array([mask.quality for mask in found])
    kept = suppress_masks([mask.rle for mask in found], _boxes(found), scores, duplicate)
    return _instances(image, found, kept, reasons, dropped)


@torch.inference_mode()
def automatic_masks(
    segmenter: PromptableSegmenter,
    image: Tensor,
    *,
    side: int = 32,
    min_quality: float = 0.88,
    min_stability: float = 0.95,
    offset: float = 1.0,
    duplicate: float = 0.7,
    batch: int = BATCH,
    views: Sequence[View] | None = None,
    dropped: Counter[str] | None = None,
) -> Instances:
    """SAM's automatic procedure over a grid of points, with the settings published beside it.

    Each of `side` x `side` points gives three masks, which are judged one by one: predicted IoU above `min_quality`,
    then stability of at least `min_stability`, then suppression by the IoU of their boxes in the order of predicted IoU
    (Kirillov et al., "Segment Anything", ICCV 2023, appendix B, and the defaults of its `SamAutomaticMaskGenerator`).
    As there by default, no zoomed-in crops are added and no small parts or holes are removed. Differences: empty
    masks are dropped whatever the thresholds, and boxes end at pixel edges, not at the last pixel's index, so the box
    of a single pixel has an area and takes part in the suppression.

    Args:
        segmenter: The model, in evaluation mode.
        image: float `(C, H, W)` in [0, 1], C 1 or 3.
        side: Points along each axis of the image.
        min_quality: Predicted IoU that a mask must exceed.
        min_stability: Least stability: pixels with a logit above `offset` over those above `-offset`.
        offset: See `min_stability`.
        duplicate: IoU of two boxes above which the mask with the lower predicted IoU is dropped.
        batch: Most prompts decoded at once.
        views: Parts of the image to encode on their own, see the module's text; the grid stays that of the image.
        dropped: Counts are added here by reason, as in `segment_everything`, "huge" never.

    Returns:
        Instances of class 0 and source "sam" by falling score, which is the predicted IoU cut to [0, 1].

    Raises:
        ModelError: `image` is not `(C, H, W)`, a point lies in no view, or `batch` is below 1.
    """
    reasons: Counter[str] = Counter()
    points = grid_points(side, (int(image.shape[-2]), int(image.shape[-1])))
    proposals = Proposals(np.ones(len(points), np.float32), points)
    tests = _Tests(min_quality, min_stability, offset, share=1.0)
    found = list(_masks(segmenter, image, proposals, tests, batch, views, reasons, all_three=True))
    kept = suppress_boxes(_boxes(found), np.array([mask.quality for mask in found]), duplicate)
    return _instances(image, found, kept, reasons, dropped)


def deepest_view(centres: np.ndarray, views: Sequence[View], size: tuple[int, int]) -> NDArray[np.int64]:
    """The view of each centre: where it is farthest from borders that are not the image's, the first of equals.

    Args:
        centres: float `(P, 2)` xy.
        views: V boxes (x0, y0, x1, y1) of whole pixels in the image.
        size: (H, W) of the image.

    Returns:
        int64 `(P,)` indices into `views`.

    Raises:
        ModelError: A view is not a box in the image, or a centre lies in none.
    """
    height, width = size
    depth = np.full((len(views), len(centres)), -np.inf)
    x, y = centres[:, 0].astype(np.float64), centres[:, 1].astype(np.float64)
    for row, (x0, y0, x1, y1) in zip(depth, views, strict=True):
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ModelError(
                f"The view ({x0}, {y0}, {x1}, {y1}) is not a box (x0, y0, x1, y1) in an image of {width} columns and "
                f"{height} rows; cut it to the image."
            )
        gaps = [(x - x0, x0 == 0), (y - y0, y0 == 0), (x1 - x, x1 == width), (y1 - y, y1 == height)]
        row[:] = np.min([np.where(border & (gap >= 0), np.inf, gap) for gap, border in gaps], axis=0)
    outside = np.flatnonzero(~(depth.max(axis=0, initial=-np.inf) >= 0))  # also what is not a number
    if len(outside):
        index = int(outside[0])
        raise ModelError(
            f"Proposal {index} at ({x[index]:g}, {y[index]:g}) lies in no view of an image of {width} columns and "
            f"{height} rows; give proposals inside the image and views that cover them."
        )
    return depth.argmax(axis=0).astype(np.int64)


def _masks(
    segmenter: PromptableSegmenter,
    image: Tensor,
    proposals: Proposals,
    tests: _Tests,
    batch: int,
    views: Sequence[View] | None,
    reasons: Counter[str],
    *,
    all_three: bool,
) -> Iterator[_Mask]:
    """Masks of all proposals that pass the tests; the others are counted in `reasons`."""
    if image.ndim != 3 or batch < 1:
        raise ModelError(
            f"An image of shape {tuple(image.shape)} was to be segmented {batch} prompts at a time; give one image "
            "(C, H, W) and a batch of at least 1."
        )
    size = (int(image.shape[1]), int(image.shape[2]))
    views = [(0, 0, size[1], size[0])] if views is None else views
    if len(proposals) == 0:
        return
    _check_proposals(proposals, size)
    belongs = deepest_view(proposals.centres, views, size)
    for number in np.unique(belongs):
        x0, y0, x1, y1 = view = views[int(number)]
        embedding = segmenter.encode(image[None, :, y0:y1, x0:x1].to(segmenter.pixel_mean.device))
        asked = np.flatnonzero(belongs == number)
        step = batch if proposals.regions is None else max(1, min(batch, PIXELS // ((y1 - y0) * (x1 - x0))))
        for first in range(0, len(asked), step):
            points, boxes, masks = _prompts(proposals, asked[first : first + step], view, segmenter.pixel_mean.device)
            answer = segmenter.decode_low(embedding, points, boxes=boxes, masks=masks)
            low, quality = answer[0][0], answer[1][0]
            if all_three:
                low, quality = low.flatten(0, 1), quality.flatten()
            else:
                quality, best = quality.max(dim=1)
                low = low[torch.arange(len(low), device=low.device), best]
            good = quality > tests.quality
            reasons["predicted IoU"] += int((~good).sum())
            yield from _judged(segmenter, low[good], quality[good], view, size, tests, reasons)


def _check_proposals(proposals: Proposals, size: tuple[int, int]) -> None:
    """Refuse boxes and coarse masks that are not of an image of this size; points are checked with the views."""
    if proposals.regions is not None and proposals.regions.shape != size:
        raise ModelError(
            f"The coarse masks are of an image of {proposals.regions.shape} pixels but the image has {size} (rows, "
            "columns); make them from the same image."
        )
    if proposals.boxes is None:
        return
    limits = np.array([size[1], size[0]] * 2)
    for index in np.flatnonzero(~((proposals.boxes >= 0) & (proposals.boxes <= limits)).all(1))[:1]:
        raise ModelError(
            f"The box {proposals.boxes[index].tolist()} of proposal {index} does not lie in an image of {size[1]} "
            f"columns and {size[0]} rows; cut it to the image."
        )


def _prompts(
    proposals: Proposals, index: np.ndarray, view: View, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Points, boxes and masks of the chosen proposals as `decode_low` takes them, in pixels of the view."""
    x0, y0, x1, y1 = view
    corner, limit = np.array([x0, y0], np.float32), np.array([x1 - x0, y1 - y0], np.float32)
    points = boxes = masks = None
    if proposals.points is not None:
        points = torch.from_numpy((proposals.points[index] - corner)[None, :, None]).to(device)
    if proposals.boxes is not None:
        clipped = np.clip(proposals.boxes[index] - np.tile(corner, 2), 0, np.tile(limit, 2))
        boxes = torch.from_numpy(clipped[None]).to(device)
    if proposals.regions is not None:
        inside = proposals.regions[y0:y1, x0:x1] == index[:, None, None] + 1
        masks = torch.from_numpy(np.where(inside, np.float32(INSIDE), np.float32(-INSIDE))[None]).to(device)
    return points, boxes, masks


def _judged(
    segmenter: PromptableSegmenter,
    low: Tensor,
    quality: Tensor,
    view: View,
    size: tuple[int, int],
    tests: _Tests,
    reasons: Counter[str],
) -> Iterator[_Mask]:
    """Bring decoder logits `(N, h, w)` of a view to pixels, a few at a time, and yield the masks that pass."""
    x0, y0, x1, y1 = view
    # Sides on which the view ends within the image: first row, last row, first column, last column.
    cut = torch.tensor([y0 > 0, y1 < size[0], x0 > 0, x1 < size[1]], device=low.device)
    step = max(1, PIXELS // ((y1 - y0) * (x1 - x0)))
    for first in range(0, len(low), step):
        logits = segmenter.to_image(low[first : first + step], (y1 - y0, x1 - x0))
        masks = logits > 0
        area = masks.sum((1, 2))
        stability = (logits > tests.offset).sum((1, 2)) / (logits > -tests.offset).sum((1, 2)).clamp_min(1)
        edges = torch.stack([masks[:, 0].any(1), masks[:, -1].any(1), masks[..., 0].any(1), masks[..., -1].any(1)], 1)
        faults = {
            "empty": area == 0,
            "stability": stability < tests.stability,
            "huge": area > tests.share * size[0] * size[1],
            "cut": (edges & cut).any(1),
        }
        good = torch.ones_like(area, dtype=torch.bool)
        for reason, fault in faults.items():  # a mask with several faults is counted under the first
            reasons[reason] += int((good & fault).sum())
            good &= ~fault
        for mask, score in zip(masks[good].cpu().numpy(), quality[first : first + step][good].tolist(), strict=True):
            canvas = np.zeros(size, bool)
            canvas[y0:y1, x0:x1] = mask
            yield _Mask(mask_ops.encode(canvas), mask_ops.boxes(canvas[None])[0], score)


def _boxes(found: list[_Mask]) -> np.ndarray:
    """Boxes of masks, float32 `(N, 4)`."""
    return np.array([mask.box for mask in found], np.float32).reshape(-1, 4)


def _instances(
    image: Tensor, found: list[_Mask], kept: np.ndarray, reasons: Counter[str], dropped: Counter[str] | None
) -> Instances:
    """The masks that stay, as instances; what went is added to the caller's counts."""
    reasons["duplicate"] += len(found) - len(kept)
    if dropped is not None:
        dropped.update(reasons)
    chosen = [found[i] for i in kept]
    return Instances(
        size=(int(image.shape[-2]), int(image.shape[-1])),
        rles=tuple(mask.rle for mask in chosen),
        classes=np.zeros(len(chosen), np.int64),
        scores=np.clip(np.array([mask.quality for mask in chosen], np.float32), 0, 1),
        boxes=_boxes(chosen),
        source="sam",
    )
