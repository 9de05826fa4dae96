"""Stage 1 of the scalpel recipe: few labelled images, rendered scenes and the frozen SAM teach the teacher.

After Scalpel-SAM (arXiv 2512.22483), whose losses are not public; rendered scenes as free labels are our own, and so
are the terms that keep the teacher near the SAM it came from (`scalpel.guidance`).
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewlabel.core.errors import ModelError
from fewlabel.core.files import sha256_json, write_json
from fewlabel.data.augment import Batch, crop_batch
from fewlabel.data.pool import Draw, patch_of_scene
from fewlabel.data.synth.infrared import render
from fewlabel.scalpel.reference import FrozenSam
from fewlabel.scalpel.teach_config import TeachConfig
from fewlabel.scalpel.teach_losses import losses, shares
from fewlabel.scalpel.teacher import CARD, ScalpelTeacher
from fewlabel.training.checkpoint import weights_sha256
from fewlabel.training.loop import WEIGHTS, FitResult, fit

__all__ = ["TeachConfig", "draw_batch", "draw_unlabelled", "teach"]

UNLABELLED_STREAM = 1  # crops of unlabelled images have random numbers of their own, so the others stay what they are


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


def draw_unlabelled(draw: Draw, config: TeachConfig, seed: int, step: int) -> Batch:
    """The unlabelled crops of one step, a pure function of its arguments.

    Args:
        draw: `(n, rng) -> n patches`; their targets are blanked before a crop is placed.
        config: Gives their number, crop and augmentation.
        seed: Seed of the training.
        step: Step from 0.

    Returns:
        Crops in which there is no target and no pixel counts.
    """
    rng = np.random.default_rng([seed, step, UNLABELLED_STREAM])
    blank = [
        replace(
            patch,
            target=np.broadcast_to(np.False_, patch.target.shape),
            weight=np.broadcast_to(np.float32(0), patch.target.shape),
        )
        for patch in draw(config.unlabelled, rng)
    ]
    return crop_batch(blank, config.crop, rng, config.augment)


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
    unlabelled: Draw | None = None,
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
        unlabelled: As `draw`, of images whose masks, if any, are not looked at; only the terms that the frozen SAM
            guides use them, and do with the labelled ones alone where there are none.

    Returns:
        Steps, seconds and folder.

    Raises:
        RunError: The folder belongs to another training, or a loss is not finite: the sentence names the images.
        ModelError: A term needs the frozen SAM, but the teacher's mask decoder is a trained one.
        KeyboardInterrupt: The process was asked to stop; the state was saved first.
    """
    card = teacher.card()
    teacher.to(device)
    guides = {"distil", "preserve"} & set(shares(teacher, config))
    # What is finished is only loaded, into a teacher that may be trained already.
    reference = _frozen(teacher) if guides and not (folder / WEIGHTS).exists() else None
    more = unlabelled if guides and config.unlabelled else None
    if guides and config.unlabelled and unlabelled is None:
        print("teach: no unlabelled images, so the frozen SAM is asked about labelled ones alone", file=sys.stderr)

    def batches(step: int) -> tuple[Batch, Batch | None]:
        extra = draw_unlabelled(more, config, seed, step) if more else None
        return draw_batch(draw, config, seed, step), extra

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch, extra = batches(step)
        moved = replace(
            batch, images=batch.images.to(device), targets=batch.targets.to(device), weights=batch.weights.to(device)
        )
        return losses(teacher, moved, config, reference, None if extra is None else extra.images.to(device))

    def describe(step: int) -> str:
        return f"crops of {', '.join(id for batch in batches(step) if batch is not None for id in batch.ids)}"

    result = fit(
        teacher,
        step_loss,
        config,
        folder,
        seed=seed,
        label="teach",
        device=device,
        fingerprint=sha256_json({"teacher": card, "data": fingerprint, "unlabelled": more is not None}),
        validate=validate,
        validate_every=validate_every,
        describe=describe,
    )
    write_json(folder / CARD, card)
    return result


def _frozen(teacher: ScalpelTeacher) -> FrozenSam:
    """The SAM that an untrained teacher started from."""
    if weights_sha256(teacher.segmenter) != teacher.sam_sha256:
        raise ModelError(
            "The teacher's mask decoder is trained already, so there is no frozen SAM to hold it against; start from an"
            " untrained teacher, or set distil_weight and preserve_weight to 0."
        )
    return FrozenSam(teacher.segmenter, teacher.config.operators)
