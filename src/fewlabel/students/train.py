"""Training of a student on patches: labelled, pseudo-labelled or synthetic, which the drawing function decides."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fewlabel.data.augment import AugmentConfig, crop_batch
from fewlabel.data.pool import Draw
from fewlabel.students.layers import DeeplySupervised
from fewlabel.training.loop import FitResult, LoopConfig, StepLoss, fit
from fewlabel.training.losses import bce, sls, soft_iou


class StudentConfig(LoopConfig):
    """Options of a student's training."""

    steps: int = Field(default=3000, ge=1, description="Optimiser steps.")
    crop: int = Field(default=256, ge=16, description="Side of the training crops, in pixels at native resolution.")
    bce_weight: float = Field(default=1.0, ge=0, description="Share of the binary cross-entropy in the loss.")
    iou_weight: float = Field(default=1.0, ge=0, description="Share of the soft-IoU loss.")
    sls_weight: float = Field(default=0.0, ge=0, description="Share of the scale- and location-sensitive loss (SLS).")
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
        Function for `fewlabel.training.loop.fit`; its terms are ``loss``, ``bce``, ``soft_iou`` and, where it has a
        weight, ``sls``: means over the heads of a `DeeplySupervised` student.
    """
    weighted = {bce: config.bce_weight, soft_iou: config.iou_weight}
    if config.sls_weight > 0:
        weighted[sls] = config.sls_weight

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        batch = crop_batch(draw(config.batch, rng), config.crop, rng, config.augment)
        device = next(model.parameters()).device
        targets, weights = batch.targets.to(device), batch.weights.to(device)
        images = batch.images.to(device)
        heads = model.head_logits(images).split(1, 1) if isinstance(model, DeeplySupervised) else [model(images)]
        terms = {loss: torch.stack([loss(logits, targets, weights) for logits in heads]).mean() for loss in weighted}
        total = torch.stack([weight * terms[loss] for loss, weight in weighted.items()]).sum()
        return {"loss": total, **{loss.__name__: value for loss, value in terms.items()}}

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
