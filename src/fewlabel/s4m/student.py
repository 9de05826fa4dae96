"""Stage 2: a student learns from labels and from what a teacher says of unlabelled images.

After Guided Distillation (WACV 2024) and S⁴M (arXiv 2504.05301). The teacher of stage 1 is frozen for a burn-in; then
it gives way to the moving average of the student. SAM refines its masks, refined instances are exchanged between
images, and the student sees them under strong changes of colour. With all three parts off this is Guided Distillation,
and with a weight of 0 on unlabelled images supervised training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fewlabel.core.files import sha256_json
from fewlabel.data.instance_crops import CropConfig
from fewlabel.s4m.batches import Ahead, Draw, draw_views, recoloured, seed_of, stacked
from fewlabel.s4m.guidance import CollapseAlarm, Guidance, figures, guide, pasted
from fewlabel.s4m.network import InstanceSegmenter, Outputs
from fewlabel.s4m.paste import PasteConfig
from fewlabel.s4m.pseudo import FilterConfig
from fewlabel.s4m.refine import RefineConfig
from fewlabel.s4m.teacher import InstanceLoopConfig, Labelled, slow_parts
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training.checkpoint import weights_sha256
from fewlabel.training.ema import BurnInEma
from fewlabel.training.loop import FitResult, fit


class StudentConfig(InstanceLoopConfig):
    """Options of stage 2; a step has as many unlabelled crops as labelled ones."""

    ema: float = Field(
        default=0.9996, ge=0, lt=1, description="Decay of the moving average that becomes the teacher, and ships."
    )
    burn_in: int = Field(default=15000, ge=0, description="Steps for which the teacher of stage 1 stays.")
    unlabelled_weight: float = Field(default=2.0, ge=0, description="Weight of the loss on unlabelled images.")
    repeat_threshold: float = Field(
        default=10.0,
        ge=0,
        description="Share of images below which a class is repeated by the square root; 10 balances all classes.",
    )
    filter: FilterConfig = Field(default=FilterConfig(), description="Which of the teacher's objects count.")
    refine: RefineConfig | None = Field(default=RefineConfig(), description="SAM's refinement; null: none.")
    paste: PasteConfig | None = Field(default=PasteConfig(), description="Exchange of instances; null: none.")


@dataclass(frozen=True)
class Unlabelled:
    """The unlabelled side of a training.

    Attributes:
        draw: `(n, generator) -> n records` whose labels, if any, are not looked at.
        images: Number of images behind it.
        guiding: The teacher of stage 1, frozen; of any size, for it is never copied.
        sam: Frozen; None where the recipe does not refine.
    """

    draw: Draw
    images: int
    guiding: InstanceSegmenter
    sam: PromptableSegmenter | None = None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in eval mode, so that its running statistics stay those of its own batches."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.no_grad()
def teacher_outputs(student: InstanceSegmenter, ema: BurnInEma, guide: InstanceSegmenter, images: Tensor) -> Outputs:
    """What the teacher of the present step says: `guide` during the burn-in, the student's average afterwards."""
    if ema.updates < ema.burn_in:
        found: Outputs = guide(images)
        return found
    with evaluating(student):
        averaged: Outputs = functional_call(student, ema.weights, (images,))
        return averaged


def train_student(
    network: InstanceSegmenter,
    labelled: Draw,
    config: StudentConfig,
    crops: CropConfig,
    folder: Path,
    *,
    seed: int,
    label: str,
    unlabelled: Unlabelled | None = None,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> FitResult:
    """Train a student in place; see `fewlabel.training.loop.fit` for files, resuming and errors.

    Args:
        network: Fresh, or with a pretrained backbone; not the teacher's weights.
        labelled: `(n, generator) -> n records` with objects.
        config: Options. A burn-in as long as the training keeps the guiding teacher to the end: distillation of a
            finished network into a smaller one.
        crops: Geometry of the crops.
        folder: Of this training alone.
        seed: Seed of all choices.
        label: A few words for the progress line.
        unlabelled: The images without labels and their teacher; with None, or a weight of 0, training is supervised.
        device: Where to train.
        fingerprint: Hash of the images behind all functions and of the weights that the network starts with.
        validate: Figures of the averaged network, for the log.
        validate_every: Steps between validations; with 0 only at the end.

    Returns:
        Steps, seconds and folder; `network` holds the averaged weights, in eval mode.
    """
    ema = BurnInEma(network.to(device), config.ema, config.burn_in)
    more = unlabelled if config.unlabelled_weight else None
    guided = None if more is None else Guide(network, ema, more, config, crops, seed, device)
    known = Labelled(labelled, config, crops, seed, device)

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        views = known(step)
        terms = network.loss_terms(network(stacked(views)), views)
        if guided is None:
            return terms
        guidance = guided(step)
        strong = recoloured(guidance.views, "strong", seed_of(seed, step, "strong colours"))
        loss = network.loss_terms(network(stacked(strong)), strong)["loss"]
        total = terms["loss"] + config.unlabelled_weight * loss
        return {**terms, "loss": total, "unlabelled": loss, **figures(guidance, device)}

    def describe(step: int) -> str:
        drawn = [*known(step), *([] if guided is None else guided.views(step))]
        return f"crops of {', '.join(view.id for view in drawn)}"

    hashes = [] if more is None else [weights_sha256(part) for part in (more.guiding, more.sam) if part is not None]
    return fit(
        network,
        step_loss,
        config,
        folder,
        seed=seed,
        label=label,
        device=device,
        fingerprint=sha256_json([fingerprint, crops.model_dump(mode="json"), *hashes]),
        validate=validate,
        validate_every=validate_every,
        describe=describe,
        ema=ema,
        slow=slow_parts(network),
    )


class Guide:
    """The teacher of a training: from a step to unlabelled views with pseudo-labels."""

    def __init__(
        self,
        student: InstanceSegmenter,
        ema: BurnInEma,
        unlabelled: Unlabelled,
        config: StudentConfig,
        crops: CropConfig,
        seed: int,
        device: str | torch.device,
    ) -> None:
        """Freeze what is not trained.

        Raises:
            ValueError: The recipe refines but there is no SAM.
        """
        if config.refine is not None and unlabelled.sam is None:
            raise ValueError("a refinement needs a SAM")
        for part in (unlabelled.guiding, unlabelled.sam):
            if part is not None:
                part.to(device).eval().requires_grad_(False)
        self.student, self.ema, self.unlabelled = student, ema, unlabelled
        self.config, self.seed, self.device = config, seed, device
        self.views = Ahead(lambda step: draw_views(unlabelled.draw, config.batch, crops, seed, step, "unlabelled"))
        self.alarm = CollapseAlarm(unlabelled.images)

    def __call__(self, step: int) -> Guidance:
        """The unlabelled views of a step, a pure function of the step and the networks' weights."""
        config, seed = self.config, self.seed
        views = [view.to(self.device) for view in self.views(step)]
        seen = recoloured(views, "weak", seed_of(seed, step, "weak colours", 1)) if config.colours else views
        outputs = teacher_outputs(self.student, self.ema, self.unlabelled.guiding, stacked(seen))
        found = guide(outputs, views, config.filter, config.refine, self.unlabelled.sam, seed, step)
        self.alarm.see(found)
        return pasted(found, config.paste, seed, step)
