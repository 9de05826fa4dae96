"""Stage 1 of the scalpel recipe: few labelled images and rendered scenes teach the teacher.

After Scalpel-SAM (arXiv 2512.22483), whose losses are not public; rendered scenes as free labels are our own.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fewlabel.core.files import sha256_json, write_json
from fewlabel.data.augment import AugmentConfig, Batch, crop_batch
from fewlabel.data.pool import Draw, patch_of_scene
from fewlabel.data.synth.infrared import InfraredConfig, render
from fewlabel.scalpel.teacher import CARD, ScalpelTeacher
from fewlabel.scalpel.tiles import TILE
from fewlabel.training.loop import FitResult, LoopConfig, fit
from fewlabel.training.losses import bce, soft_iou


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
    coarse_weight: float = Field(default=0.3, ge=0, description="Weight of the same losses on SAM's own mask logits.")


def draw_batch(draw: Draw, config: TeachConfig, seed: int, step: int) -> Batch:
    """The batch of one step, a pure function of its arguments.

    Args:
        draw: `(n, rng) -> n patches` of labelled images; not called for n = 0.
        config: Gives batch, crop, share of scenes and augmentation.
        seed: Seed of the training.
        step: Step from 0.

    Returns:
        Crops; the last ones are of rendered scenes. Their number is the share times the batch, rounded at random so
        that the share holds on average.
    """
    rng = np.random.default_rng([seed, step])
    scenes = min(int(config.batch * config.synthetic + rng.random()), config.batch)
    patches = draw(config.batch - scenes, rng) if scenes < config.batch else []
    patches = [*patches, *(patch_of_scene(render(rng, config.crop, config.scenes)) for _ in range(scenes))]
    return crop_batch(patches, config.crop, rng, config.augment)


def coarse_batch(targets: Tensor, weights: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Targets and weights at the size of SAM's masks.

    Args:
        targets: float (B, 1, S, S) in {0, 1}.
        weights: float (B, 1, S, S) >= 0.
        size: Rows and columns (h, w).

    Returns:
        (B, 1, h, w) each: a cell is target if any of its pixels is, so that no small target is lost, and counts as
        much as the least of its pixels.
    """
    return F.adaptive_max_pool2d(targets, size), -F.adaptive_max_pool2d(-weights, size)


def losses(teacher: ScalpelTeacher, batch: Batch, config: TeachConfig) -> dict[str, Tensor]:
    """Loss terms of a batch.

    Args:
        teacher: The teacher, on the device of the batch.
        batch: Crops.
        config: Weights of the terms.

    Returns:
        Scalars: `loss` (the sum that is minimised), `bce`, `soft_iou`, `coarse`; with an adapter also `balance` (as it
        enters the sum) and `gate_entropy` (mean over the levels, 1 = all operators used alike; not in the sum).
    """
    logits, coarse_logits = teacher.both(batch.images)
    size = (int(coarse_logits.shape[-2]), int(coarse_logits.shape[-1]))
    coarse_targets, coarse_weights = coarse_batch(batch.targets, batch.weights, size)
    terms = {
        "bce": bce(logits, batch.targets, batch.weights),
        "soft_iou": soft_iou(logits, batch.targets, batch.weights),
        "coarse": config.bce_weight * bce(coarse_logits, coarse_targets, coarse_weights)
        + config.iou_weight * soft_iou(coarse_logits, coarse_targets, coarse_weights),
    }
    total = (
        config.bce_weight * terms["bce"]
        + config.iou_weight * terms["soft_iou"]
        + config.coarse_weight * terms["coarse"]
    )
    if teacher.adapter is not None:
        entropies = list(teacher.adapter.entropy().values())
        terms["balance"] = teacher.adapter.balance_loss()
        terms["gate_entropy"] = torch.tensor(sum(entropies) / len(entropies), device=logits.device)
        total = total + terms["balance"]
    return {"loss": total, **terms}


def teach(
    teacher: ScalpelTeacher,
    draw: Draw,
    config: TeachConfig,
    folder: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> FitResult:
    """Train the teacher, or go on where an earlier call in the same folder stopped.

    Args:
        teacher: Changed in place; ends in evaluation mode with the averaged weights.
        draw: `(n, rng) -> n patches` of labelled images, a pure function of its arguments, as `PatchPool.draw` is.
        config: Options.
        folder: Receives what `training.loop.fit` writes, and `teacher.json` at the end; read by `load_teacher`.
        seed: Seed of batches.
        device: Where to train.
        fingerprint: Hash of the labelled images behind `draw`.
        validate: Figures of the averaged teacher, for the log.
        validate_every: Steps between validations; with 0 only at the end.

    Returns:
        Steps, seconds and folder.

    Raises:
        RunError: The folder belongs to another training, or a loss is not finite.
        KeyboardInterrupt: The process was asked to stop; the state was saved first.
    """
    card = teacher.card()

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = draw_batch(draw, config, seed, step)
        moved = Batch(batch.images.to(device), batch.targets.to(device), batch.weights.to(device))
        return losses(teacher, moved, config)

    result = fit(
        teacher,
        step_loss,
        config,
        folder,
        seed=seed,
        label="teach",
        device=device,
        fingerprint=sha256_json({"teacher": card, "data": fingerprint}),
        validate=validate,
        validate_every=validate_every,
    )
    write_json(folder / CARD, card)
    return result
