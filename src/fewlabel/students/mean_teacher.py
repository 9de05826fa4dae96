"""A student that teaches itself online: its averaged weights say on unlabelled images what it should see there.

The mean teacher of Tarvainen & Valpola (NeurIPS 2017) for segmentation: no SAM and no stored pseudo-labels. The average
is the one that every training keeps and ends with (`fewlabel.training.ema`), so it is part of the checkpoint and an
interrupted training goes on exactly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage
from torch import Tensor, nn
from torch.func import functional_call

from fewlabel.core.files import sha256_json
from fewlabel.data.augment import AugmentConfig, Batch, crop_batch, jitter, turned
from fewlabel.data.pool import Draw
from fewlabel.students.train import StudentConfig, batch_terms, head_logits, loss_terms, moved
from fewlabel.training.ema import Ema
from fewlabel.training.loop import FitResult, StepLoss, fit
from fewlabel.training.losses import bce

PLAIN = {"gain": 0.0, "offset": 0.0, "gamma": 0.0, "noise": 0.0}  # intensities as they are


class MeanTeacherConfig(BaseModel):
    """Options of online self-training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0, description="Highest weight of the loss on unlabelled images.")
    ramp: float = Field(
        default=1 / 3, ge=0, le=1, description="Share of the steps over which that weight rises from almost 0."
    )
    low: float = Field(
        default=0.2, ge=0, le=1, description="Probability below which the average is sure of background."
    )
    high: float = Field(default=0.7, ge=0, le=1, description="Probability above which the average is sure of a target.")
    strength: float = Field(
        default=2.0, ge=0, description="The student's view varies by this many times the intensities of the crops."
    )
    blur: float = Field(default=1.0, ge=0, description="Largest standard deviation of its blur, in pixels.")

    @model_validator(mode="after")
    def _ordered(self) -> "MeanTeacherConfig":
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: low must not lie above high")
        return self


@dataclass(frozen=True)
class Views:
    """Two views of each unlabelled crop.

    Attributes:
        weak: float32 (B, 1, S, S), the crops as they are: what the average looks at.
        strong: float32 (B, 1, S, S), varied in intensity, blurred, and turned: what the student looks at.
        turns: B numbers 0..7, by which flip or quarter turn `strong` differs from `weak` (see `augment.turned`).
        ids: Which images the crops come from.
    """

    weak: Tensor
    strong: Tensor
    turns: tuple[int, ...]
    ids: tuple[str, ...]


def labelled_crops(batch: int, share: float) -> int:
    """How many crops of a batch are labelled: ``share`` of them, but at least one, and not all."""
    return min(max(round(batch * share), 1), batch - 1)


def ramp_up(step: int, steps: float) -> float:
    """Weight in (0, 1] of a loss that must not be trusted at once: ``exp(-5 (1 - step / steps)^2)``, then 1.

    Source: Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, as used by the mean teacher.
    """
    return math.exp(-5 * (1 - step / steps) ** 2) if step < steps else 1.0


def two_views(crops: Batch, rng: np.random.Generator, augment: AugmentConfig, strength: float, blur: float) -> Views:
    """Make the student's view of unlabelled crops.

    Args:
        crops: Crops whose intensities are as recorded.
        rng: The only source of randomness.
        augment: Ranges of the intensities; says also whether to turn.
        strength: Factor on these ranges.
        blur: Largest standard deviation of the blur in pixels.

    Returns:
        The views.
    """
    wider = augment.model_copy(update={name: strength * getattr(augment, name) for name in PLAIN})
    turns = tuple(int(rng.integers(8)) if augment.turns else 0 for _ in crops.images)
    strong = np.empty(crops.images.shape, np.float32)
    for view, crop, turn in zip(strong, crops.images.numpy(), turns, strict=True):
        smooth = ndimage.gaussian_filter(crop[0], rng.uniform(0, blur)) if blur else crop[0]
        view[0] = turned(jitter(smooth, rng, wider), turn)
    return Views(crops.images, torch.from_numpy(strong), turns, crops.ids)


def averaged_belief(model: nn.Module, ema: Ema, images: Tensor) -> Tensor:
    """What the averaged weights say: probabilities float32 (B, 1, H, W), without gradient.

    The network runs in evaluation mode, as it does when it is deployed, so that its running statistics stay those of
    the student's own batches; its mode is set back.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = functional_call(model, ema.weights, (images,))
            return torch.sigmoid(logits.float())
    finally:
        model.train(training)


def agreement(heads: Sequence[Tensor], belief: Tensor, weights: Tensor, config: StudentConfig) -> Tensor:
    """The student's usual loss, with what the average believes as truth.

    The cross-entropy takes the probabilities as they are. The losses of areas take the mask of those above one half:
    two soft maps that agree do not have a soft IoU of 1, and over an empty crop the sum of a thousand probabilities of
    0.001 would count as a target.

    Args:
        heads: Logits of each head, (B, 1, S, S).
        belief: Probabilities (B, 1, S, S) of the average, turned as the student's view is.
        weights: (B, 1, S, S), 1 = counts.
        config: Gives the weights of the losses.

    Returns:
        Scalar.
    """
    hard = loss_terms(heads, (belief > 0.5).float(), weights, config)
    soft = torch.stack([bce(logits, belief, weights) for logits in heads]).mean()
    return hard["loss"] + config.bce_weight * (soft - hard["bce"])


def step_loss_on(
    labelled: Draw,
    unlabelled: Draw,
    config: StudentConfig,
    options: MeanTeacherConfig,
    ema: Ema,
    *,
    share: float,
    seed: int,
    soft_weight: float = 0.0,
) -> StepLoss:
    """The loss of one step as a pure function of the model, its average and the step.

    On labelled crops it is the student's usual loss. On unlabelled ones it is the `agreement` with the average on the
    pixels where its probability is below ``low`` or above ``high``.

    Args:
        labelled: ``(n, generator) -> n patches`` with targets.
        unlabelled: The same for images whose targets are not looked at.
        config: Options of the training; its batch, at least 2, holds both kinds.
        options: Options of the self-training.
        ema: The average that the training keeps.
        share: Labelled share of a batch, see `labelled_crops`.
        seed: With the step it seeds draws and crops.
        soft_weight: Of the labelled crops, see `fewlabel.students.train.batch_terms`.

    Returns:
        Function for `fewlabel.training.loop.fit`; its terms are those of the labelled crops, ``consistency`` (the loss
        on unlabelled ones, before its weight) and ``sure`` (share of their pixels that count).
    """

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        drawn, views = batch_of(labelled, unlabelled, config, options, share=share, seed=seed, step=step)
        device = next(model.parameters()).device
        known = moved(drawn, device)
        belief = averaged_belief(model, ema, views.weak.to(device))
        belief = torch.stack([_turned(plane, turn) for plane, turn in zip(belief, views.turns, strict=True)])
        sure = ((belief < options.low) | (belief > options.high)).float()
        # One pass over both kinds: batch normalisation then has one set of statistics, that of all images.
        heads = head_logits(model, torch.cat([known.images, views.strong.to(device)]))
        count = len(known.images)
        terms = batch_terms([logits[:count] for logits in heads], known, config, soft_weight)
        consistency = agreement([logits[count:] for logits in heads], belief, sure, config)
        weight = options.weight * ramp_up(step, options.ramp * config.steps)
        return {**terms, "loss": terms["loss"] + weight * consistency, "consistency": consistency, "sure": sure.mean()}

    return step_loss


def batch_of(
    labelled: Draw,
    unlabelled: Draw,
    config: StudentConfig,
    options: MeanTeacherConfig,
    *,
    share: float,
    seed: int,
    step: int,
) -> tuple[Batch, Views]:
    """Labelled crops and two views of unlabelled ones for one step, a pure function of the arguments."""
    rng = np.random.default_rng([seed, step])
    count = labelled_crops(config.batch, share)
    known = crop_batch(labelled(count, rng), config.crop, rng, config.augment)
    plain = config.augment.model_copy(update=PLAIN)
    crops = crop_batch(unlabelled(config.batch - count, rng), config.crop, rng, plain)
    return known, two_views(crops, rng, config.augment, options.strength, options.blur)


def _turned(planes: Tensor, turn: int) -> Tensor:
    """`augment.turned` for the last two axes of a tensor."""
    planes = torch.rot90(planes, turn % 4, (-2, -1))
    return planes.flip(-1) if turn >= 4 else planes


def train_mean_teacher(
    model: nn.Module,
    labelled: Draw,
    unlabelled: Draw,
    config: StudentConfig,
    options: MeanTeacherConfig,
    folder: Path,
    *,
    share: float,
    seed: int,
    label: str,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
    soft_weight: float = 0.0,
) -> FitResult:
    """Train a student on labels and on what its own average says of unlabelled images, in place.

    A step costs as many crops with gradients as one of `fewlabel.students.train.train_student`, and a pass without
    gradients over the unlabelled ones.

    Args:
        model: A student, fresh or already trained on something else.
        labelled: ``(n, generator) -> n patches`` with targets.
        unlabelled: The same for images whose targets are not looked at.
        config: Options of the training; its batch is at least 2.
        options: Options of the self-training.
        folder: Of this training alone.
        share: Labelled share of each batch.
        seed: Seed of draws, crops and the network's own randomness.
        label: A few words for the progress line.
        device: Where to train.
        fingerprint: Hash of what both functions draw from and of the weights that the model starts with.
        validate: Figures of the averaged weights for the log.
        validate_every: Steps between validations; with 0 only the last step is validated.
        soft_weight: Share of a teacher's beliefs in the loss on the labelled patches that hold some.

    Returns:
        Steps, seconds and folder; ``model`` holds the averaged weights, in eval mode.

    Raises:
        ValueError: A batch of one crop cannot hold both kinds.
        RunError: See `fewlabel.training.loop.fit`.
    """
    if config.batch < 2:
        raise ValueError("a mean teacher needs batches of at least 2 crops, one labelled and one unlabelled")
    ema = Ema(model.to(device), config.ema)

    def describe(step: int) -> str:
        known, views = batch_of(labelled, unlabelled, config, options, share=share, seed=seed, step=step)
        return f"crops of {', '.join((*known.ids, *views.ids))}"

    return fit(
        model,
        step_loss_on(labelled, unlabelled, config, options, ema, share=share, seed=seed, soft_weight=soft_weight),
        config,
        folder,
        seed=seed,
        label=label,
        device=device,
        fingerprint=sha256_json([fingerprint, options.model_dump(mode="json"), share, soft_weight]),
        validate=validate,
        validate_every=validate_every,
        describe=describe,
        ema=ema,
    )
