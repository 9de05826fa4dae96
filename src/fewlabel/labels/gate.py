"""The gate: which pseudo-labels a student learns from, which it is told to ignore, and which it is told are background.

A proposal that the teacher is unsure of is *ignored*, never called background: a false negative in the training target
teaches the student to miss. So is one that the teacher is sure of but the untrained operators do not see: they know
neither the labels nor the teacher's errors. Only a proposal that cannot be a target by its size or its contrast is
*rejected*.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["accepted", "ignored", "rejected"]


class GateConfig(BaseModel):
    """Limits of the gate.

    All 270 true targets of the training images of NUAA-SIRST pass the default of ``min_support``, and 99.6 % of the 918
    of NUDT-SIRST; of equal shapes laid on the brightest local maxima of the background it stops 59 % and 50 %.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_quality: float = Field(
        default=0.5, ge=0, le=1, description="Least quality (mean probability × stability) to accept."
    )
    max_spread: float = Field(
        default=0.3,
        ge=0,
        le=0.5,
        description="Most disagreement to accept: mean standard deviation over the teacher's views.",
    )
    min_area: int = Field(default=1, ge=1, description="Least area of a target in pixels.")
    max_area_share: float = Field(
        default=0.01, gt=0, le=1, description="Most area of a target as a share of its image."
    )
    min_contrast: float = Field(
        default=0.0,
        description="How much brighter than its surroundings a target is, in standard deviations of its image.",
    )
    min_support: float = Field(
        default=0.1,
        ge=0,
        description="How far the untrained operators' response to a target exceeds that around it; 0 asks for nothing.",
    )


@dataclass(frozen=True)
class Candidate:
    """What the gate knows of one proposed target.

    Attributes:
        quality: Mean probability × stability, 0..1.
        spread: Mean standard deviation of the probability over the teacher's views, 0..0.5.
        area: Pixels.
        contrast: Mean inside minus median of the surroundings, in standard deviations of the image.
        support: How far the untrained operators' response to it exceeds that to its surroundings, >= 0, in the unit of
            the operator bank, log(1 + contrast).
    """

    quality: float
    spread: float
    area: int
    contrast: float
    support: float


def decide(candidate: Candidate, image_area: int, config: GateConfig) -> tuple[Verdict, str]:
    """Judge one proposed target.

    Args:
        candidate: What is known of it.
        image_area: Pixels of the whole image.
        config: The limits.

    Returns:
        The verdict and its reason, one word: `small`, `large` or `dark` (rejected), `unsure`, `disputed` or
        `unsupported` (ignored), `confident` (accepted). The first rule that applies, in this order, decides.
    """
    if candidate.area < config.min_area:
        return "rejected", "small"
    if candidate.area > config.max_area_share * image_area:
        return "rejected", "large"
    if candidate.contrast <= config.min_contrast:
        return "rejected", "dark"
    if candidate.quality < config.min_quality:
        return "ignored", "unsure"
    if candidate.spread > config.max_spread:
        return "ignored", "disputed"
    if candidate.support < config.min_support:
        return "ignored", "unsupported"
    return "accepted", "confident"
