"""Training of a detector on the boxes of masks: labelled, pseudo-labelled or synthetic."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fewlabel.core.errors import DataError
from fewlabel.data.augment import AugmentConfig, Batch, crop_batch
from fewlabel.data.pool import Draw
from fewlabel.students.detector.boxes import crop_boxes
from fewlabel.students.detector.network import FRAME, STRIDE, Detector
from fewlabel.training.loop import FitResult, LoopConfig, StepLoss, fit


class DetectorConfig(LoopConfig):
    """Options of a detector's training."""

    steps: int = Field(default=3000, ge=1, description="Optimiser steps.")
    crop: int = Field(
        default=FRAME,
        ge=4 * STRIDE,
        multiple_of=4 * STRIDE,
        description="Side of the training crops, in pixels at native resolution, and of the detector's frames.",
    )
    lr: float = Field(default=2e-3, gt=0, description="Highest learning rate of AdamW.")
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig.model_validate({}), description="How the crops are placed and varied."
    )


def batch_of(draw: Draw, config: DetectorConfig, seed: int, step: int) -> Batch:
    """The crops of one step, a pure function of its arguments; `seed` and `step` seed draws and crops."""
    rng = np.random.default_rng([seed, step])
    return crop_batch(draw(config.batch, rng), config.crop, rng, config.augment, objects=True)


def step_loss_on(draw: Draw, config: DetectorConfig, seed: int) -> StepLoss:
    """The loss of one step as a function of the model, the step and torch's global generator.

    Boxes are those of the objects' masks as they are after the crop: an object that the crop's edge cuts, or another
    object covers, has the box of what is left, and a scaled or turned one that of its scaled or turned mask.

    Args:
        draw: `(n, generator) -> n patches`, with no randomness but the generator's.
        config: gives batch, crop and augmentation.
        seed: with the step it seeds the generator of draws and crops.

    Returns:
        Function for `fewlabel.training.loop.fit`, which seeds torch's generator (the noise of denoising) in each step;
        its terms are those of `Detector.loss`.
    """

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        if not isinstance(model, Detector):
            raise TypeError(f"this loss trains a Detector, not a {type(model).__name__}")
        batch = batch_of(draw, config, seed, step)
        assert batch.objects is not None  # asked for
        planes = zip(batch.objects.numpy(), batch.weights[:, 0].numpy(), strict=True)
        device = next(model.parameters()).device
        return model.loss(batch.images.to(device), [crop_boxes(objects, weight) for objects, weight in planes])

    return step_loss


def train_detector(
    model: Detector,
    draw: Draw,
    config: DetectorConfig,
    folder: Path,
    *,
    seed: int,
    label: str,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> FitResult:
    """Train a detector in place; see `fewlabel.training.loop.fit` for files, resuming and errors.

    Args:
        model: a detector, fresh or already trained on something else; its frame is as large as the crops.
        draw: `(n, generator) -> n patches`, such as `PatchPool.draw` or a function that renders scenes.
        config: options.
        folder: of this training alone.
        seed: seed of draws, crops and noise.
        label: a few words for the progress line.
        device: where to train.
        fingerprint: hash of what `draw` draws from and of the weights that the model starts with.
        validate: figures of the averaged weights for the log.
        validate_every: steps between validations; with 0 only the last step is validated.

    Returns:
        Steps, seconds and folder; `model` holds the averaged weights, in eval mode.

    Raises:
        DataError: the detector's frame is of another size than the crops.
    """
    if model.frame != config.crop:  # no weight's shape tells it
        raise DataError(
            f"{label}: the detector's frame is {model.frame} pixels wide and the crops are {config.crop}; make a"
            f" Detector({config.crop})"
        )
    return fit(
        model,
        step_loss_on(draw, config, seed),
        config,
        folder,
        seed=seed,
        label=label,
        device=device,
        fingerprint=fingerprint,
        validate=validate,
        validate_every=validate_every,
        describe=lambda step: f"crops of {', '.join(batch_of(draw, config, seed, step).ids)}",
    )
