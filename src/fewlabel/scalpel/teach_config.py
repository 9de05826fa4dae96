"""Options of stage 1."""

from pydantic import Field, model_validator

from fewlabel.data.augment import AugmentConfig
from fewlabel.data.synth.infrared import InfraredConfig
from fewlabel.data.tiles import TILE
from fewlabel.training.loop import LoopConfig


class TeachConfig(LoopConfig):
    """Options of teaching the teacher."""

    steps: int = Field(default=1200, ge=1, description="Optimiser steps.")
    batch: int = Field(default=4, ge=1, description="Crops in a step.")
    crop: int = Field(default=TILE, ge=16, multiple_of=4, description="Side of the crops in pixels.")
    synthetic: float = Field(default=0.5, ge=0, le=1, description="Share of rendered scenes in a batch.")
    scenes: InfraredConfig = Field(default=InfraredConfig(), description="What the scenes are rendered from.")
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig.model_validate({}), description="How crops vary."
    )
    bce_weight: float = Field(default=1.0, ge=0, description="Weight of the cross-entropy.")
    iou_weight: float = Field(default=1.0, ge=0, description="Weight of the soft IoU loss.")
    sls_weight: float = Field(default=0.0, ge=0, description="Weight of the scale- and location-sensitive loss (SLS).")
    coarse_weight: float = Field(default=0.3, ge=0, description="Weight of the same losses on SAM's own mask logits.")
    # Off by default: they make a step up to twice as long, and no trial has shown yet that they are worth it.
    distil_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of agreement with the frozen SAM, asked at true targets and at prior peaks, where the"
        " priors say that it can be trusted.",
    )
    preserve_weight: float = Field(
        default=0.0, ge=0, description="Weight of keeping the frozen SAM's image embedding on background."
    )
    unlabelled: int = Field(
        default=2, ge=0, description="Crops of unlabelled images in a step, for these last two terms alone."
    )

    @model_validator(mode="after")
    def _supervised(self) -> "TeachConfig":
        if not self.bce_weight + self.iou_weight + self.sls_weight:
            raise ValueError("bce_weight, iou_weight and sls_weight are all 0: one of them has to teach from labels")
        return self
