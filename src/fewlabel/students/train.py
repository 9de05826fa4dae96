"""Training of a student on patches: labelled, pseudo-labelled or synthetic, which the drawing function decides."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fewlabel.data.augment import AugmentConfig, crop_batch
from fewlabel.data.pool import Draw
from fewlabel.training.loop import FitResult, LoopConfig, StepLoss, fit
from fewlabel.training.losses import bce, soft_iou


class StudentConfig(LoopConfig):
    """Options of a student's training."""

    steps: int = Field(default=3000, ge=1, description="Optimiser steps.")
    crop: int = Field(default=256, ge=16, description="Side of the training crops, in pixels at native resolution.")
    bce_weight: float = Field(default=1.0, ge=0, description="Share of the binary cross-entropy in the loss.")
    iou_weight: float = Field(default=1.0, ge=0, description="Share of the soft-IoU loss.")
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig.model_validate({}), description="How the crops are placed and varied."
    )


def step_loss_on(draw: Draw, config: StudentConfig, seed: int) -> StepLoss:
    """The loss of one step as a pure function of the model and the step.

    Args:
        draw: ``(n, generator) -> n patches``, with no randomness but the generator's.
        config: gives batch, crop, augmentation and the weights of the losses.
        seed: with the step it seeds the generator of draws and crops.

    Returns:
        Function for `fewlabel.training.loop.fit`; its terms are ``loss``, ``bce`` and ``soft_iou``.
    """

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        batch = crop_batch(draw(config.batch, rng), config.crop, rng, config.augment)
        device = next(model.parameters()).device
        targets, weights = batch.targets.to(device), batch.weights.to(device)
        logits = model(batch.images.to(device))
        cross, overlap = bce(logits, targets, weights), soft_iou(logits, targets, weights)
        loss = config.bce_weight * cross + config.iou_weight * overlap
        return {"loss": loss, "bce": cross, "soft_iou": overlap}

    return step_loss


def train_student(
    model: nn.Module,
    draw: Draw,
    config: StudentConfig,
    folder: Path,
    *,
    seed: int,
    label: str,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> FitResult:
    """Train a student in place; see `fewlabel.training.loop.fit` for files, resuming and errors.

    Args:
        model: a student, fresh or already trained on something else.
        draw: ``(n, generator) -> n patches``, such as ``PatchPool.draw`` or a function that renders scenes.
        config: options.
        folder: of this training alone.
        seed: seed of draws, crops and the network's own randomness.
        label: a few words for the progress line.
        device: where to train.
        fingerprint: hash of what ``draw`` draws from and of the weights that the model starts with.
        validate: figures of the averaged weights for the log.
        validate_every: steps between validations; with 0 only the last step is validated.

    Returns:
        Steps, seconds and folder; ``model`` holds the averaged weights, in eval mode.
    """
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
    )
