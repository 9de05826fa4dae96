"""Stage 1: a teacher learns from the labels, and from SAM how alike pixels are to each other.

After S⁴M (arXiv 2504.05301): `L = L_labelled + w · L_similarity`, labelled images alone. With w = 0 it is supervised
training, the baseline of every table.
"""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor, nn

from fewlabel.core.files import sha256_json
from fewlabel.data.instance_crops import CropConfig
from fewlabel.data.views import View
from fewlabel.s4m.batches import Ahead, Draw, draw_views, recoloured, seed_of, stacked
from fewlabel.s4m.network import InstanceSegmenter
from fewlabel.s4m.similarity import similarity_loss
from fewlabel.s4m.similarity_targets import SamSimilarity, SimilarityCache
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training.checkpoint import weights_sha256
from fewlabel.training.loop import FitResult, LoopConfig, fit

SLOW = 0.1  # factor on the learning rate of a pretrained backbone, as Mask2Former is trained


class InstanceLoopConfig(LoopConfig):
    """Options that both stages share; the published ones but for the schedule, which is the house's."""

    batch: int = Field(default=4, ge=1, description="Labelled crops in a step.")
    lr: float = Field(default=1e-4, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(default=0.05, ge=0, description="Decoupled decay of weight matrices and kernels.")
    clip: float = Field(default=0.01, ge=0, description="Highest norm of the whole gradient; 0 turns clipping off.")
    colours: bool = Field(default=False, description="Vary the colours of what a teacher sees (published: Cityscapes).")


class TeachConfig(InstanceLoopConfig):
    """Options of stage 1."""

    similarity_weight: float = Field(default=1.0, ge=0, description="Weight w of structural distillation; 0: none.")
    points: int = Field(default=128, ge=1, description="Prompts to SAM for each image.")


class Labelled:
    """The labelled crops of each step, a pure function of the step."""

    def __init__(
        self, draw: Draw, config: InstanceLoopConfig, crops: CropConfig, seed: int, device: str | torch.device
    ) -> None:
        """Draw nothing yet.

        Args:
            draw: `(n, generator) -> n records` of labelled images.
            config: Gives their number, and whether colours vary.
            crops: Geometry.
            seed: Of the training.
            device: Where the views go.
        """
        self._colours, self._seed, self._device = config.colours, seed, device
        self._views = Ahead(lambda step: draw_views(draw, config.batch, crops, seed, step, "labelled"))

    def __call__(self, step: int) -> list[View]:
        """The views of a step, on the device."""
        views = [view.to(self._device) for view in self._views(step)]
        return recoloured(views, "weak", seed_of(self._seed, step, "weak colours")) if self._colours else views


def teach(
    network: InstanceSegmenter,
    draw: Draw,
    config: TeachConfig,
    crops: CropConfig,
    folder: Path,
    *,
    seed: int,
    label: str = "teach",
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    sam: PromptableSegmenter | None = None,
    cache: SimilarityCache | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> FitResult:
    """Train a teacher in place; see `fewlabel.training.loop.fit` for files, resuming and errors.

    Args:
        network: Fresh, or with a pretrained backbone.
        draw: `(n, generator) -> n records` of labelled images.
        config: Options.
        crops: Geometry of the crops.
        folder: Of this training alone.
        seed: Seed of crops, points and the loss's own choices.
        label: A few words for the progress line.
        device: Where to train.
        fingerprint: Hash of the images behind `draw` and of the weights that the network starts with.
        sam: Frozen; asked only where `similarity_weight` is above 0, and needed then.
        cache: Where SAM's word on views is kept; only for crops that do not vary. An image then has the same points in
            every epoch.
        validate: Figures of the averaged network, for the log.
        validate_every: Steps between validations; with 0 only at the end.

    Returns:
        Steps, seconds and folder; `network` holds the averaged weights, in eval mode.
    """
    structure, asked = None, None
    if config.similarity_weight:
        if sam is None:
            raise ValueError("structural distillation needs a SAM")
        sam = sam.to(device).eval().requires_grad_(False)
        asked = weights_sha256(sam)
        structure = cache.similarity(sam, config.points, asked) if cache else SamSimilarity(sam, config.points)

    labelled = Labelled(draw, config, crops, seed, device)

    def step_loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        views = labelled(step)
        outputs = network(stacked(views))
        terms = network.loss_terms(outputs, views)
        if structure is None:
            return terms
        seeds = [
            seed_of(seed, 0, "points", crc32(view.id.encode())) if cache else seed_of(seed, step, "points", i)
            for i, view in enumerate(views)
        ]
        targets = structure.targets(views, seeds)
        similarity = similarity_loss(outputs.mask_features, views[0].size, targets)
        return {**terms, "loss": terms["loss"] + config.similarity_weight * similarity, "similarity": similarity}

    return fit(
        network,
        step_loss,
        config,
        folder,
        seed=seed,
        label=label,
        device=device,
        fingerprint=sha256_json([fingerprint, crops.model_dump(mode="json"), asked, cache is not None]),
        validate=validate,
        validate_every=validate_every,
        describe=lambda step: f"crops of {', '.join(view.id for view in labelled(step))}",
        slow=slow_parts(network),
    )


def slow_parts(network: InstanceSegmenter) -> dict[str, float]:
    """Starts of the parameters' names that are trained at a lower rate: those of a pretrained backbone."""
    if network.config.backbone_weights is None:
        return {}
    prefix = next(name for name, module in network.named_modules() if module is network.backbone)
    return {f"{prefix}.": SLOW}
