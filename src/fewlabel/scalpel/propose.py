"""Prior peaks: where the white-box operators, untrained, say that a small target may be.

The operators of `OperatorBank` answer on one scale, "heights of the reference target". A place is as strong as the
least of the answers that are asked for, so with all of them a single operator that mistakes an edge or a bad pixel for
a target is overruled by the others. This is our own design; the default level and number of peaks were chosen on
rendered scenes (`fewlabel.data.synth.infrared`), not on real ones.

Bright targets on a darker background are the assumption of the field and of every operator here. Dark ones are found by
asking about the negative image, which is left to the caller because it doubles the false peaks.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import standardise
from fewlabel.sam.prompters import Proposals, peaks
from fewlabel.scalpel.bank import OperatorBank

Polarity = Literal["bright", "dark", "both"]


@dataclass(frozen=True)
class PriorPeaks:
    """P places where a target may be, strongest first.

    Attributes:
        proposals: Points with their strengths, which are in the unit of the bank: log(1 + contrast), where contrast is
            the height of a point target over its background in standard deviations of the image.
        responses: float32 `(P, E)`, what each operator says there, in the order of the bank's names and the same unit.
        support: bool `(P, E)`, which operators reach the least strength that was asked for.
        scales: int64 `(P,)`, factor by which the image was reduced where the place is strongest.
        bright: bool `(P,)`, whether it is brighter than its surroundings rather than darker.
    """

    proposals: Proposals
    responses: NDArray[np.float32]
    support: NDArray[np.bool_]
    scales: NDArray[np.int64]
    bright: NDArray[np.bool_]


@torch.inference_mode()
def prior_peaks(
    grey: np.ndarray,
    *,
    bank: OperatorBank | None = None,
    scales: tuple[int, ...] = (1, 2),
    polarity: Polarity = "bright",
    agree: int | None = None,
    floor: float = 0.1,
    distance: float = 4.0,
    most: int = 10,
) -> PriorPeaks:
    """Propose points for small targets.

    Args:
        grey: float `(H, W)` in any unit; it is standardised here, so gain and offset do not matter.
        bank: The operators; all four, untrained, with their default scalars when left out.
        scales: Whole factors by which the image is reduced (by averaging) before the operators look at it. The
            operators' own reach suits targets up to some 9 pixels across at scale 1, and s times that at scale s.
        polarity: Whether targets are brighter than their surroundings, darker, or either.
        agree: Number of the bank's operators, at least 1, that must reach a place's strength; all when left out.
        floor: Least strength, in the unit of the bank.
        distance: Least distance of two peaks in pixels.
        most: Largest number of peaks.

    Returns:
        The peaks; none for a flat image.

    Raises:
        DataError: `grey` is not one finite image `(H, W)`, or an option lies outside its range.
    """
    if grey.ndim != 2 or grey.size == 0 or not np.isfinite(grey).all():
        raise DataError(
            f"An image to propose targets in has shape {grey.shape} and {int((~np.isfinite(grey)).sum())} values that "
            "are not finite; give one finite grey image (H, W)."
        )
    bank = OperatorBank() if bank is None else bank
    agree = bank.channels if agree is None else agree
    if not 1 <= agree <= bank.channels or polarity not in get_args(Polarity) or min(scales, default=0) < 1:
        raise DataError(
            f"Targets cannot be proposed with agree {agree}, polarity {polarity!r} and scales {scales}; use 1 to "
            f"{bank.channels} operators, one of {', '.join(get_args(Polarity))}, and factors of at least 1."
        )
    image = torch.from_numpy(standardise(grey))[None, None]
    signs = {"bright": (1,), "dark": (-1,), "both": (1, -1)}[polarity]
    looks = [(sign, scale) for sign in signs for scale in scales]
    responses = np.stack([_respond(bank, sign * image, scale) for sign, scale in looks])
    strengths = np.sort(responses, axis=1)[:, -agree]
    proposals = peaks(strengths.max(axis=0), deviations=0.0, floor=floor, distance=distance, most=most)
    assert proposals.points is not None  # peaks are points
    columns, rows = proposals.points.astype(np.int64).T
    best = strengths[:, rows, columns].argmax(axis=0)
    there = responses[best, :, rows, columns]
    return PriorPeaks(
        proposals,
        responses=there,
        support=there >= floor,
        scales=np.array([scale for _, scale in looks], np.int64)[best],
        bright=np.array([sign > 0 for sign, _ in looks])[best],
    )


def _respond(bank: OperatorBank, image: Tensor, scale: int) -> np.ndarray:
    """Responses `(E, H, W)` of the bank to an image `(1, 1, H, W)` reduced by a whole factor; negative ones are 0."""
    height, width = image.shape[-2:]
    if scale == 1:
        return bank(image)[0].clamp_min(0).numpy()
    reduced = F.interpolate(image, size=(-(-height // scale), -(-width // scale)), mode="area")
    answer = F.interpolate(bank(reduced), size=(height, width), mode="bilinear")
    return answer[0].clamp_min(0).numpy()
