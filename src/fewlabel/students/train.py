"""Training of a student on patches: labelled, pseudo-labelled or synthetic, which the drawing function decides."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fewlabel.core.files import sha256_json
from fewlabel.data.augment import AugmentConfig, Batch, crop_batch
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


def batch_of(draw: Draw, config: StudentConfig, seed: int, step: int) -> Batch:
    """The batch of one step, a pure function of its arguments; ``seed`` and ``step`` seed draws and crops."""
    rng = np.random.default_rng([seed, step])
    return crop_batch(draw(config.batch, rng), config.crop, rng, config.augment)


def head_logits(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits of all heads that are supervised, (B, 1, S, S) each; the first is what the student predicts."""
    return list(model.head_logits(images).split(1, 1)) if isinstance(model, DeeplySupervised) else [model(images)]


def loss_terms(heads: Sequence[Tensor], targets: Tensor, weights: Tensor, config: StudentConfig) -> dict[str, Tensor]:
    """The student's loss and its parts.

    Args:
        heads: logits of each head, (B, 1, S, S).
        targets: (B, 1, S, S) in [0, 1].
        weights: (B, 1, S, S) >= 0.
        config: gives the weights of the losses.

    Returns:
        Scalars: ``loss``, the weighted sum; ``bce``, ``soft_iou`` and, where it has a weight, ``sls``: means over the
        heads.
    """
    weighted = {bce: config.bce_weight, soft_iou: config.iou_weight}
    if config.sls_weight > 0:
        weighted[sls] = config.sls_weight
    terms = {loss: torch.stack([loss(logits, targets, weights) for logits in heads]).mean() for loss in weighted}
    total = torch.stack([weight * terms[loss] for loss, weight in weighted.items()]).sum()
    return {"loss": total, **{loss.__name__: value for loss, value in terms.items()}}


def batch_terms(heads: Sequence[Tensor], batch: Batch, config: StudentConfig, soft_weight: float) -> dict[str, Tensor]:
    """The student's loss on a batch that may hold a teacher's beliefs.

    Crops with beliefs, those of pseudo-labelled images, have the loss ``(1 - s) hard + s soft``: ``hard`` is that of
    `loss_terms`, ``soft`` the cross-entropy with the beliefs where they are known. Others have the hard loss. Beliefs
    are taken at temperature 1: higher ones are there to show how a teacher ranks the many classes that it thinks wrong,
    of which there is only one here.

    Args:
        heads: logits of each head, (B, 1, S, S).
        batch: on the device of the logits.
        config: gives the weights of the hard losses.
        soft_weight: s in 0..1.

    Returns:
        The terms of `loss_terms` (``loss`` being the whole one) and, with a soft weight, ``soft_bce``.
    """
    terms = loss_terms(heads, batch.targets, batch.weights, config)
    if not soft_weight:
        return terms
    terms["soft_bce"] = terms["loss"].new_zeros(())
    if batch.soft is None:
        return terms
    known = ~batch.soft.isnan()
    held = known.flatten(1).any(1)
    if not held.any():
        return terms
    believing = [logits[held] for logits in heads]
    beliefs, counts = batch.soft.nan_to_num(0)[held], known[held].float()
    soft = torch.stack([bce(logits, beliefs, counts) for logits in believing]).mean()
    hard = loss_terms(believing, batch.targets[held], batch.weights[held], config)["loss"]
    share = held.float().mean()
    return {**terms, "loss": terms["loss"] + soft_weight * share * (soft - hard), "soft_bce": soft}


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors on a device."""
    soft = None if batch.soft is None else batch.soft.to(device)
    return Batch(batch.images.to(device), batch.targets.to(device), batch.weights.to(device), ids=batch.ids, soft=soft)


def step_loss_on(draw: Draw, config: StudentConfig, seed: int, soft_weight: float = 0.0) -> StepLoss:
    """The loss of one step as a pure function of the model and the step.

    Args:
        draw: ``(n, generator) -> n patches``, with no randomness but the generator's.
        config: gives batch, crop, augmentation and the weights of the losses.
        seed: with the step it seeds the generator of draws and crops.
        soft_weight: see `batch_terms`.

    Returns:
        Function for `fewlabel.training.loop.fit`; its terms are those of `batch_terms`.
    """

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = moved(batch_of(draw, config, seed, step), next(model.parameters()).device)
        return batch_terms(head_logits(model, batch.images), batch, config, soft_weight)

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
    soft_weight: float = 0.0,
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
        soft_weight: share of a teacher's beliefs in the loss on the patches that hold some, see `batch_terms`.

    Returns:
        Steps, seconds and folder; ``model`` holds the averaged weights, in eval mode.
    """
    return fit(
        model,
        step_loss_on(draw, config, seed, soft_weight),
        config,
        folder,
        seed=seed,
        label=label,
        device=device,
        fingerprint=sha256_json([fingerprint, soft_weight]) if soft_weight else fingerprint,
        validate=validate,
        validate_every=validate_every,
        describe=lambda step: f"crops of {', '.join(batch_of(draw, config, seed, step).ids)}",
    )
