"""Images whose labels look wrong: where the given masks and a network's prediction disagree most.

A pure comparison of masks and probabilities; what predicts is up to the rooms above. A network that was trained on a
mask has learnt to agree with it, so predictions by one that has not seen the image say more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components

MATCHED = 0.5
"""IoU from which a target counts as drawn well, as in the field's matching of targets; below it doubt grows."""


@dataclass(frozen=True)
class Suspect:
    """How far the labels of one image agree with a prediction.

    Attributes:
        id: The image.
        doubt: Doubt about the target that agrees least, 0..1: the mean probability of a predicted target without label;
            1 minus the highest probability within a label without prediction; 0 to 1 for a label and its prediction
            whose IoU is 0.5 to 0.
        total: The same summed over all targets.
        iou: IoU of all given and all predicted pixels; 1 where there are neither.
        missed: Given targets that no predicted one touches: the label may be too much.
        invented: Predicted targets that no given one touches: a label may be missing.
        reasons: One sentence for each kind of disagreement, with the place of its worst target.
    """

    id: str
    doubt: float
    total: float
    iou: float
    missed: int
    invented: int
    reasons: tuple[str, ...]


def compare_labels(id: str, mask: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> Suspect:
    """Compare the given mask of one image with a prediction. Targets are 8-connected components.

    Args:
        id: The image.
        mask: bool (H, W), the given targets.
        probability: float (H, W) in 0..1.
        threshold: A pixel is predicted as target above this probability.

    Returns:
        What they disagree in.

    Raises:
        DataError: The sizes differ, or a probability is not in 0..1.
    """
    if mask.shape != probability.shape or mask.ndim != 2:
        raise DataError(
            f"The mask of image {id!r} has shape {mask.shape} and its prediction {probability.shape}, expected one size"
            " (H, W): predict at the size of the image."
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise DataError(f"The prediction of image {id!r} holds values beyond 0 to 1: pass probabilities, not logits.")
    predicted = probability > threshold
    given, count = components(mask)
    found, others = components(predicted)
    numbers, other_numbers = np.arange(1, count + 1), np.arange(1, others + 1)
    seen = np.unique(given[predicted & mask])
    backed = np.unique(found[predicted & mask])
    missed, invented = np.setdiff1d(numbers, seen), np.setdiff1d(other_numbers, backed)
    too_much = 1 - np.asarray(ndimage.maximum(probability, given, missed), np.float64)
    lacking = np.asarray(ndimage.mean(probability, found, invented), np.float64)
    drawn_badly = np.clip(1 - _overlaps(given, found)[seen] / MATCHED, 0, 1)
    doubts = np.concatenate([too_much, lacking, drawn_badly])
    union = np.count_nonzero(mask | predicted)
    return Suspect(
        id=id,
        doubt=float(doubts.max(initial=0.0)),
        total=float(doubts.sum()),
        iou=float(np.count_nonzero(mask & predicted) / union) if union else 1.0,
        missed=len(missed),
        invented=len(invented),
        reasons=tuple(
            text
            for doubt, labels, chosen, text in (
                (lacking, found, invented, "{n} without a label, mean probability {p:.2f} {place}"),
                (too_much, given, missed, "{n} labelled but not predicted, highest probability {q:.2f} {place}"),
                (drawn_badly, given, seen, "{n} labelled with another outline, IoU {iou:.2f} {place}"),
            )
            for text in _reason(doubt, labels, chosen, text)
        ),
    )


def rank_suspects(suspects: Iterable[Suspect]) -> list[Suspect]:
    """The images with any doubt, the most doubtful first, by ``doubt``, then ``total``, then id."""
    doubtful = [suspect for suspect in suspects if suspect.doubt > 0]
    return sorted(doubtful, key=lambda suspect: (-suspect.doubt, -suspect.total, suspect.id))


def _overlaps(given: np.ndarray, found: np.ndarray) -> np.ndarray:
    """IoU of each given target with all predicted ones together that touch it.

    Args:
        given: int32 (H, W), given targets 1..N.
        found: int32 (H, W), predicted targets 1..M.

    Returns:
        float64 (N + 1,), in the place of each target's number; that of the background has no meaning.
    """
    both = (given > 0) & (found > 0)
    areas, found_areas = np.bincount(given.ravel()), np.bincount(found.ravel())
    shared = np.bincount(given[both], minlength=len(areas))
    touching = np.unique(np.stack([given[both], found[both]]), axis=1)
    reach = np.bincount(touching[0], weights=found_areas[touching[1]], minlength=len(areas))
    return np.asarray(shared / (areas + reach - shared).clip(1))


def _reason(doubts: np.ndarray, labels: np.ndarray, numbers: np.ndarray, text: str) -> list[str]:
    """The sentence on targets of one kind of which any is doubtful; none otherwise."""
    count = int(np.count_nonzero(doubts))
    if not count:
        return []
    worst = int(np.argmax(doubts))
    row, column = (round(place) for place in ndimage.center_of_mass(labels == numbers[worst]))
    doubt = float(doubts[worst])
    return [
        text.format(
            n="1 target" if count == 1 else f"{count} targets",
            p=doubt,
            q=1 - doubt,
            iou=MATCHED * (1 - doubt),
            place=f"at row {row}, column {column}",
        )
    ]
