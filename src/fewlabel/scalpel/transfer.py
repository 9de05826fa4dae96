"""Stage 2 of the scalpel recipe: the teacher's probabilities become pseudo-labels for small students.

After Scalpel-SAM (arXiv 2512.22483), which passes knowledge on through pseudo-labels; how it filters them is not
public, so the filter is our own: views that agree, stable components, and a band of pixels that count as unknown.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor, nn

from fewlabel.core.errors import RunError
from fewlabel.core.masks import components, encode
from fewlabel.core.progress import progress
from fewlabel.core.types import Image, Instances
from fewlabel.data.tiles import OVERLAP, TILE, over_tiles
from fewlabel.labels.gate import Candidate, GateConfig, decide
from fewlabel.labels.soft import write_soft
from fewlabel.labels.store import LabelStore, PseudoLabel
from fewlabel.scalpel.bank import OperatorBank
from fewlabel.scalpel.evidence import contrasts, prior_map, stabilities, supports
from fewlabel.scalpel.views import Views, views_of

FLUSH_SECONDS = 10.0  # most work that a kill can cost
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
        default="flips",
        description="`flips` averages four mirrored views, `flips-scales` two scaled ones as well; `one` is fastest.",
    )
    rounds: Literal[1, 2] = Field(
        default=1,
        description="2: the teacher is taught on for half its steps, with what it was sure of, and labels once more.",
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


@torch.inference_mode()
def predict(
    teacher: nn.Module, image: np.ndarray, views: Views = "flips", batch: int = 4, tile: int = TILE
) -> TeacherView:
    """Probability of target for each pixel, from overlapping tiles and several views.

    Args:
        teacher: Maps standardised images float32 `(B, 1, tile, tile)` to logits of that shape; put into eval mode.
        image: float32 `(H, W)`, standardised over the whole image.
        views: `one` for the image as it is, `flips` for the mean of four mirrored views, `flips-scales` for that of
            these and two scaled ones; see `fewlabel.scalpel.views`.
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

    overlap = OVERLAP * tile // TILE
    looks = [look.back(over_tiles(look.images, probabilities, tile, overlap, batch)) for look in views_of(image, views)]
    seen = np.concatenate(looks)
    return TeacherView(seen.mean(axis=0), seen.std(axis=0))


@cache
def _all_operators() -> OperatorBank:
    """The bank with its initial scalars."""
    return OperatorBank().eval()


def pseudo_label(
    id: str,
    image: np.ndarray,
    view: TeacherView,
    threshold: float,
    config: PseudoConfig,
    round: int = 1,
    bank: nn.Module | None = None,
) -> PseudoLabel:
    """Turn a teacher's view of one image into targets to learn from and pixels to leave out.

    Args:
        id: Image id.
        image: float32 `(H, W)`, standardised.
        view: What the teacher sees in it.
        threshold: Probability above which a pixel is target, from `calibrate` or the configuration.
        config: Band, margin and gate.
        round: Self-training round, kept with the instances.
        bank: Untrained operators that judge the proposals besides the teacher; all of them by default.

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
    prior = prior_map(image, bank or _all_operators()) if count else np.zeros(size)
    figures = zip(quality, spread, area, contrast, supports(prior, labels, count), strict=True)
    verdicts = [
        decide(Candidate(float(q), float(s), int(a), float(c), float(p)), size[0] * size[1], config.gate)
        for q, s, a, c, p in figures
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
    bank: nn.Module | None = None,
    soft: Path | None = None,
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
        bank: See `pseudo_label`.
        soft: Folder for the teacher's probabilities, one `ID.png` per image, see `fewlabel.labels.soft`; without one
            they are not kept. A map is on disk before its label is, so a label in the store always has its map.

    Raises:
        RunError: The teacher returned a value that is not a number.
    """
    todo = [id for id in ids if id not in store]
    written = time.monotonic()
    try:
        with progress("label", len(ids), start=len(ids) - len(todo)) as advance:
            for done, id in enumerate(todo, start=len(ids) - len(todo) + 1):
                image = read(id).normalised()
                view = predict(teacher, image, config.views, config.batch)
                if not np.isfinite(view.probability).all():
                    raise RunError(
                        f"The teacher's output for image {id!r} is not finite; train it again at a lower rate."
                    )
                if soft is not None:
                    write_soft(soft / f"{id}.png", view.probability)
                store.add(pseudo_label(id, image, view, threshold, config, round, bank))
                if time.monotonic() - written > FLUSH_SECONDS:
                    store.flush()
                    written = time.monotonic()
                advance(done, "")
    finally:
        store.flush()
