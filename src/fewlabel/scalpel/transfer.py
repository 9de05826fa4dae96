"""Stage 2 of the scalpel recipe: the teacher's probabilities become pseudo-labels for small students.

After Scalpel-SAM (arXiv 2512.22483), which passes knowledge on through pseudo-labels; how it filters them is not
public, so the filter is our own: views that agree, stable components, and a band of pixels that count as unknown.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor, nn

from fewlabel.core.errors import RunError
from fewlabel.core.masks import EIGHT_CONNECTED, components, encode
from fewlabel.core.progress import progress
from fewlabel.core.radiometry import standardise
from fewlabel.core.types import Image, Instances
from fewlabel.labels.gate import Candidate, GateConfig, decide
from fewlabel.labels.store import LabelStore, PseudoLabel
from fewlabel.scalpel.tiles import OVERLAP, TILE, over_tiles

Views = Literal["flips", "one"]

FLUSH_SECONDS = 10.0  # most work that a kill can cost
GAP, RING = 2, 6  # pixels around a target: its blurred border, then the surroundings that it is compared with
THRESHOLDS = np.round(np.arange(0.2, 0.801, 0.025), 3)
PRIOR_IMAGES = 4.0  # weight of the threshold 0.5 in `calibrate`, in images


class PseudoConfig(BaseModel):
    """Options of pseudo-labelling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Probability above which a pixel is target; none: calibrated on validation images.",
    )
    band: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="Pixels above this share of the threshold, up to it, are unsure and ignored.",
    )
    margin: float = Field(
        default=0.1, gt=0, lt=0.5, description="Change of the threshold under which a target must be stable."
    )
    views: Views = Field(
        default="flips", description="`flips` averages four mirrored views; `one` is four times faster."
    )
    batch: int = Field(default=4, ge=1, description="Tiles that go through the teacher at once.")
    gate: GateConfig = Field(default=GateConfig(), description="Which proposed targets to accept.")


@dataclass(frozen=True)
class TeacherView:
    """What a teacher sees in one image.

    Attributes:
        probability: float32 `(H, W)` in 0..1: mean over the views.
        spread: float32 `(H, W)` in 0..0.5: standard deviation over the views.
    """

    probability: np.ndarray
    spread: np.ndarray


def _flips(image: np.ndarray) -> np.ndarray:
    """The four mirrored views `(4, H, W)` of `(H, W)`; each mirror is its own inverse."""
    return np.stack([image, image[:, ::-1], image[::-1], image[::-1, ::-1]])


@torch.inference_mode()
def predict(
    teacher: nn.Module, image: np.ndarray, views: Views = "flips", batch: int = 4, tile: int = TILE
) -> TeacherView:
    """Probability of target for each pixel, from overlapping tiles and mirrored views.

    Args:
        teacher: Maps standardised images float32 `(B, 1, tile, tile)` to logits of that shape; put into eval mode.
        image: float32 `(H, W)`, standardised over the whole image.
        views: `flips` for the mean of four mirrored views, `one` for the image as it is.
        batch: Tiles that go through the teacher at once.
        tile: Side of the tiles in pixels.

    Returns:
        Mean and standard deviation over the views; the latter is zero for one view.
    """
    teacher.eval()
    device = next(iter(teacher.parameters())).device

    def probabilities(crops: np.ndarray) -> np.ndarray:
        crops_on_device = torch.from_numpy(np.ascontiguousarray(crops[:, None], dtype=np.float32)).to(device)
        logits: Tensor = teacher(crops_on_device)
        return torch.sigmoid(logits[:, 0].float()).cpu().numpy()

    stack = _flips(image) if views == "flips" else image[None]
    seen = over_tiles(stack, probabilities, tile, OVERLAP * tile // TILE, batch)
    if views == "flips":
        seen = np.stack([seen[0], seen[1, :, ::-1], seen[2, ::-1], seen[3, ::-1, ::-1]])
    return TeacherView(seen.mean(axis=0), seen.std(axis=0))


def stabilities(probability: np.ndarray, labels: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    """How little each component changes when the threshold moves.

    Args:
        probability: float32 `(H, W)`.
        labels: int32 `(H, W)`, components 1..count of `probability` above a threshold between `low` and `high`.
        count: Number of components.
        low: Lower threshold.
        high: Higher threshold.

    Returns:
        float64 `(count,)`, 0..1: per component the area above `high` divided by the area above `low`. A pixel above
        `low` belongs to the nearest component of its connected region, so that two targets whose feet touch do not
        spoil each other. Source: stability score of Segment Anything (Kirillov et al., ICCV 2023), per component.
    """
    if count == 0:
        return np.zeros(0)
    loose, _ = components(probability > low)
    rows, columns = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    nearest = labels[rows, columns]
    belongs = (loose > 0) & (loose[rows, columns] == loose)
    wide = np.bincount(nearest[belongs], minlength=count + 1)[1:]
    tight = np.bincount(labels[probability > high], minlength=count + 1)[1:]
    return tight / np.maximum(wide, 1)


def contrasts(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Brightness of each component against its surroundings.

    Args:
        image: float32 `(H, W)`, standardised.
        labels: int32 `(H, W)`, components 1..count.
        count: Number of components.

    Returns:
        float64 `(count,)`: mean inside minus median of the pixels at 3 to 6 pixels distance that are no component
        (of the whole image where there are none), in standard deviations of the image.
    """
    result = np.zeros(count)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        near = (
            slice(max(rows.start - RING, 0), rows.stop + RING),
            slice(max(columns.start - RING, 0), columns.stop + RING),
        )
        inside = labels[near] == number
        close = ndimage.binary_dilation(labels[near] > 0, EIGHT_CONNECTED, iterations=GAP)
        around = ndimage.binary_dilation(inside, EIGHT_CONNECTED, iterations=RING) & ~close
        surroundings = image[near][around] if around.any() else image
        result[number - 1] = image[near][inside].mean() - np.median(surroundings)
    return result


def pseudo_label(
    id: str, image: np.ndarray, view: TeacherView, threshold: float, config: PseudoConfig, round: int = 1
) -> PseudoLabel:
    """Turn a teacher's view of one image into targets to learn from and pixels to leave out.

    Args:
        id: Image id.
        image: float32 `(H, W)`, standardised.
        view: What the teacher sees in it.
        threshold: Probability above which a pixel is target, from `calibrate` or the configuration.
        config: Band, margin and gate.
        round: Self-training round, kept with the instances.

    Returns:
        The 8-connected components above the threshold, each accepted, ignored or rejected by the gate with its reason
        and with its quality (mean probability × stability) as score; and the band of unsure pixels, wherever they are.
    """
    probability = view.probability
    size = (int(probability.shape[0]), int(probability.shape[1]))
    labels, count = components(probability > threshold)
    index = np.arange(1, count + 1)
    low = max(threshold - config.margin, threshold / 2)
    high = min(threshold + config.margin, (1 + threshold) / 2)
    stable = stabilities(probability, labels, count, low, high)
    quality = ndimage.mean(probability, labels, index) * stable if count else np.zeros(0)
    spread = ndimage.mean(view.spread, labels, index) if count else np.zeros(0)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    contrast = contrasts(image, labels, count)
    verdicts = [
        decide(
            Candidate(float(quality[i]), float(spread[i]), int(area[i]), float(contrast[i])),
            size[0] * size[1],
            config.gate,
        )
        for i in range(count)
    ]

    def chosen(verdict: str) -> Instances:
        numbers = np.array([i for i, (given, _) in enumerate(verdicts, start=1) if given == verdict], dtype=np.int64)
        scores = quality[numbers - 1]
        return Instances.from_components(labels, numbers, scores=scores, source="teacher", round=round)

    order = ("accepted", "ignored", "rejected")
    band = (probability > config.band * threshold) & (labels == 0)
    return PseudoLabel(
        id=id,
        size=size,
        accepted=chosen("accepted"),
        ignored=(*chosen("ignored").rles, encode(band)),
        rejected=chosen("rejected"),
        reasons=tuple(reason for verdict in order for given, reason in verdicts if given == verdict),
    )


def calibrate(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Choose the threshold of the teacher's probabilities.

    The threshold of the highest IoU (summed over the images) among 0.2, 0.225, ... 0.8 is drawn towards 0.5 as if four
    further images had voted for 0.5: a validation share of two to four images alone would be noise.

    Args:
        pairs: Probability float32 `(H, W)` and true mask bool `(H, W)` of VALIDATION images: on images that the
            teacher was trained on it is overconfident, and on test images this would be cheating.

    Returns:
        The threshold, 0.2..0.8; 0.5 without pairs or without a target.
    """
    overlap, union, images = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS)), 0
    for probability, target in pairs:
        images += 1
        masks = probability[None] > THRESHOLDS[:, None, None]
        overlap += (masks & target).sum(axis=(1, 2))
        union += (masks | target).sum(axis=(1, 2))
    if not overlap.any():
        return 0.5
    score = overlap / np.maximum(union, 1)
    best = THRESHOLDS[score >= score.max() - 1e-12]
    nearest = float(best[np.abs(best - 0.5).argmin()])
    return float((images * nearest + PRIOR_IMAGES * 0.5) / (images + PRIOR_IMAGES))


def label_images(
    teacher: nn.Module,
    ids: Sequence[str],
    read: Callable[[str], Image],
    store: LabelStore,
    threshold: float,
    config: PseudoConfig,
    round: int = 1,
) -> None:
    """Label images one after the other into a store; those that it holds already are not read again.

    Args:
        teacher: See `predict`.
        ids: Ids of the images, in the order in which they are to be stored.
        read: Reads the image of an id.
        store: Where labels go; written every ten seconds and at the end, also when the work is interrupted.
        threshold: See `pseudo_label`.
        config: Options.
        round: Self-training round.

    Raises:
        RunError: The teacher returned a value that is not a number.
    """
    todo = [id for id in ids if id not in store]
    written = time.monotonic()
    try:
        with progress("label", len(ids), start=len(ids) - len(todo)) as advance:
            for done, id in enumerate(todo, start=len(ids) - len(todo) + 1):
                image = standardise(read(id).grey())
                view = predict(teacher, image, config.views, config.batch)
                if not np.isfinite(view.probability).all():
                    raise RunError(
                        f"The teacher's output for image {id!r} is not finite; train it again at a lower rate."
                    )
                store.add(pseudo_label(id, image, view, threshold, config, round))
                if time.monotonic() - written > FLUSH_SECONDS:
                    store.flush()
                    written = time.monotonic()
                advance(done, "")
    finally:
        store.flush()
