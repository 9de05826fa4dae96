"""Options of nano-SAM's pre-training, the two recipes that are used, and what changes in the course of a training."""

from dataclasses import dataclass
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from fewlabel.core.errors import RunError
from fewlabel.training.loop import LoopConfig


class PretrainConfig(LoopConfig):
    """Options of the pre-training. The defaults are the recipe for one CPU core."""

    steps: int = Field(default=2500, ge=1, description="Optimiser steps.")
    batch: int = Field(default=4, ge=1, description="Images in a step.")
    lr: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW.")
    warmup: int = Field(default=100, ge=0, description="Steps of linear warm-up, at most a fifth of all.")
    ema: float = Field(default=0.998, ge=0, lt=1, description="Decay of the weights' moving average; 0 turns it off.")
    targets: int = Field(default=4, ge=1, description="Targets that are prompted in each image.")
    infrared: float = Field(default=0.5, ge=0, le=1, description="Share of infrared scenes; the others show objects.")
    boxes: float = Field(default=0.3, ge=0, le=1, description="Share of steps that start from boxes, not clicks.")
    single: float = Field(default=0.25, ge=0, le=1, description="Share of click steps that train the single mask.")
    parts: float = Field(
        default=0.25, ge=0, le=1, description="Share of prompts that mean a part, where there are any."
    )
    central: float = Field(default=0.5, ge=0, le=1, description="Share of first clicks in the middle of the target.")
    tight: float = Field(default=0.5, ge=0, le=1, description="Share of boxes that are drawn exactly.")
    corrections: float = Field(default=0.5, ge=0, le=1, description="Share of steps that go on with correction clicks.")
    late_from: float = Field(
        default=0.58, ge=0, le=1, description="Share of the training after which the late pixel loss sets in."
    )
    quality: float = Field(default=1.0, gt=0, description="Weight of the predicted IoU's squared error.")
    pool: int = Field(
        default=0,
        ge=0,
        description="Scenes that are shown again and again to a frozen encoder; with 0 all scenes are new and the "
        "whole network trains.",
    )

    @model_serializer(mode="wrap")
    def _without_an_empty_pool(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `pool` out where it is 0: checkpoints and records from before it was an option stay what they are."""
        options: dict[str, Any] = dump(self)
        return {name: value for name, value in options.items() if name != "pool" or value}


# On a GPU a step costs a few times the launch of its kernels, so it takes many images: windows of four cells give
# 1024 attention problems for each image, and CUDA's grid holds 65535 of them. So many images leave the early loss
# behind sooner.
GPU = PretrainConfig(steps=6000, batch=48, lr=1e-3, warmup=300, ema=0.999, precision="bf16", late_from=0.15)
PRESETS = {"cpu": PretrainConfig(), "gpu": GPU}


def configure(preset: str, **changes: int | float | str | None) -> PretrainConfig:
    """A preset with some options changed.

    Args:
        preset: A name of PRESETS.
        **changes: Options of `PretrainConfig`; None leaves the preset's value.

    Raises:
        RunError: There is no such preset or option, or a value is out of range.
    """
    if preset not in PRESETS:
        raise RunError(f"There is no pre-training preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return PretrainConfig.model_validate(PRESETS[preset].model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"Pre-training option {name} = {first['input']!r} cannot be used ({first['msg']}); give another value."
        ) from None


@dataclass(frozen=True)
class Course:
    """What changes in the course of a training.

    Attributes:
        corrections: Factor of the share of correction steps, in [0, 1]: correcting masks that are still noise teaches
            nothing, so it grows over the first third.
        late: Share of the late pixel loss, in [0, 1]: grows over a tenth of the training from `late_from` on.
    """

    corrections: float
    late: float

    @classmethod
    def at(cls, step: int, config: PretrainConfig, warm: bool) -> "Course":
        """The course at a step, counted from 0; a warm start goes on where an earlier training ended: at its end."""
        if warm:
            return cls(1.0, 1.0)
        done = step / config.steps
        return cls(min(1.0, 3.0 * done), min(1.0, max(0.0, (done - config.late_from) / 0.1)))
