"""Pre-train nano-SAM on rendered scenes, after SAM's recipe (Kirillov et al., ICCV 2023, section 3 and appendix A).

Each step draws images with a few targets each, gives every target a click or a loose box, and trains the best of three
masks for an ambiguous click, or one mask otherwise; up to half of the steps go on with correction clicks and the
previous logits as a mask prompt. Half of the images are infrared scenes, half are scenes of objects; none is real.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fewlabel.core.errors import RunError
from fewlabel.core.files import read_json, write_json
from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.data.synth import infrared, objects
from fewlabel.sam.nano import FRAME, NANO_FOLDER, build_nano, save_nano
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.prompts import correction_click, noisy_box, random_point
from fewlabel.training.checkpoint import load_state, read_metadata, read_tensors
from fewlabel.training.loop import CHECKPOINT, WEIGHTS, FitResult, LoopConfig, fit

# Weights of the cross entropy over the target and over the rest. The rest weighs more so that a network that knows
# nothing yet answers "background", not 0 everywhere: logits are a product of two learnt vectors, and where both vanish
# so do their gradients.
ON_TARGET, ON_REST = 0.5, 2.0
FOCAL, SMALL = 1.0, 32.0  # weight of the focal loss, and pixels added to the area that it is divided by
SETTINGS = "settings.json"
LOGIT_LIMIT = 32.0  # of the mask prompt that is fed back
# More targets than the sets for training detectors have: each further target is a prompt for the price of a decode.
INFRARED = infrared.InfraredConfig(counts=(0.0, 0.25, 0.2, 0.2, 0.2, 0.15))


class PretrainConfig(LoopConfig):
    """Options of the pre-training."""

    steps: int = Field(default=2500, ge=1, description="Optimiser steps.")
    batch: int = Field(default=4, ge=1, description="Images in a step.")
    lr: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW.")
    warmup: int = Field(default=100, ge=0, description="Steps of linear warm-up, at most a fifth of all.")
    ema: float = Field(default=0.998, ge=0, lt=1, description="Decay of the weights' moving average; 0 turns it off.")
    targets: int = Field(default=4, ge=1, description="Targets that are prompted in each image.")
    infrared: float = Field(default=0.5, ge=0, le=1, description="Share of infrared scenes; the others show objects.")
    boxes: float = Field(default=0.4, ge=0, le=1, description="Share of steps that start from boxes, not clicks.")
    single: float = Field(default=0.25, ge=0, le=1, description="Share of click steps that train the single mask.")
    corrections: float = Field(default=0.5, ge=0, le=1, description="Share of steps that go on with correction clicks.")


@dataclass(frozen=True)
class Course:
    """What changes in the course of a training.

    Attributes:
        corrections: Factor of the share of correction steps, in [0, 1]: correcting masks that are still noise teaches
            nothing, so it grows over the first third.
        late: Share of the late pixel loss, in [0, 1]: grows from 58 % to 68 % of the steps.
    """

    corrections: float
    late: float

    @classmethod
    def at(cls, step: int, steps: int) -> "Course":
        """The course at a step, counted from 0."""
        done = step / steps
        return cls(min(1.0, 3.0 * done), min(1.0, max(0.0, (done - 0.58) / 0.1)))


@dataclass(frozen=True)
class Prompted:
    """A batch: images float32 `(B, 3, S, S)` in [0, 1] and one mask bool `(B, P, S, S)` per prompt."""

    images: Tensor
    masks: NDArray[np.bool_]


def draw_scene(rng: np.random.Generator, share: float) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Render one scene that shows a target.

    Infrared scenes are rendered at 256, 128 or 64 pixels and enlarged, so that one network sees targets of one pixel
    and of fifty.

    Args:
        rng: Source of the scene.
        share: Probability of an infrared scene.

    Returns:
        Image float32 `(3, 256, 256)` in [0, 1] and labels int32 `(256, 256)`, 0 for background.
    """
    while True:
        if rng.random() < share:
            factor = int(rng.choice([1, 2, 4], p=[0.6, 0.25, 0.15]))
            scene = infrared.render(rng, FRAME // factor, INFRARED)
            grey = torch.from_numpy(to_unit(standardise(scene.radiance.astype(np.float32))))[None, None]
            if factor > 1:
                grey = F.interpolate(grey, scale_factor=factor, mode="bilinear")
            image = grey[0].expand(3, -1, -1).numpy()
            labels = scene.labels.repeat(factor, 0).repeat(factor, 1)
        else:
            picture = objects.render(rng, FRAME)
            image, labels = picture.pixels.astype(np.float32) / 255.0, picture.labels
        if labels.any():
            return image, labels


def draw_batch(rng: np.random.Generator, config: PretrainConfig) -> Prompted:
    """Render a batch and choose the targets to be prompted, uniformly and with replacement among an image's targets."""
    images, masks = [], []
    for _ in range(config.batch):
        image, labels = draw_scene(rng, config.infrared)
        numbers = np.unique(labels[labels > 0])
        chosen = rng.permutation(numbers)[: config.targets]
        chosen = np.concatenate([chosen, rng.choice(numbers, config.targets - len(chosen))])
        images.append(torch.from_numpy(np.ascontiguousarray(image)))
        masks.append(labels[None] == chosen[:, None, None])
    return Prompted(torch.stack(images), np.stack(masks))


def mask_loss(logits: Tensor, targets: Tensor, late: float) -> Tensor:
    """Loss of each mask: dice plus a pixel loss that changes in the course of the training.

    Early, the pixel loss is the cross entropy averaged over the target and over the rest separately, so that a target
    of nine pixels in an image of 65536 weighs as much as its background: with one common average a network that starts
    from random weights settles on empty masks. Such a balance draws masks too large, because a missed pixel of a small
    target costs more than a false one. Late, it is the focal loss (Lin et al., 2017; gamma 2), in which both cost the
    same, summed and divided by the target's area. The dice loss is that of Milletari et al., 2016.

    Args:
        logits: float `(..., H, W)`.
        targets: float `(..., H, W)` in [0, 1], broadcastable.
        late: Share of the late pixel loss, in [0, 1].

    Returns:
        float `(...)`.
    """
    probability = logits.sigmoid()
    area = targets.sum((-2, -1))
    rest = targets.shape[-1] * targets.shape[-2] - area
    share = ON_TARGET * targets / area.clamp_min(1.0)[..., None, None]
    share = (1 - late) * (share + ON_REST * (1 - targets) / rest.clamp_min(1.0)[..., None, None])
    if late > 0:
        share = share + late * FOCAL * (probability - targets).square() / (area + SMALL)[..., None, None]
    cross = ((F.softplus(logits) - logits * targets) * share).sum((-2, -1))
    overlap = (probability * targets).sum((-2, -1))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum((-2, -1)) + area + 1.0)
    return cross + dice


def hard_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the masks `logits > 0` `(..., H, W)` with bool targets `(..., H, W)`; 1 where both are empty."""
    masks = logits > 0
    union = (masks | targets).sum((-2, -1))
    return torch.where(union > 0, (masks & targets).sum((-2, -1)) / union.clamp_min(1), 1.0)


def score(
    segmenter: PromptableSegmenter, low: Tensor, quality: Tensor, targets: Tensor, late: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of one decode: the best mask's loss and the error of the predicted IoU of all.

    The best of several masks is found at the decoder's resolution; its loss, and every IoU, at the image's.

    Args:
        segmenter: The model, for its geometry.
        low: Logits `(B, P, M, h, w)`.
        quality: Predicted IoU `(B, P, M)`.
        targets: bool `(B, P, H, W)`.
        late: As in `mask_loss`.

    Returns:
        Mask loss (scalar), IoU loss (scalar), index of the best mask `(B, P)`, and that mask's mean IoU (scalar).
    """
    size = (int(targets.shape[-2]), int(targets.shape[-1]))
    with torch.no_grad():
        actual = hard_iou(segmenter.to_image(low, size), targets[:, :, None])
        coarse = F.adaptive_avg_pool2d(targets.float(), low.shape[-1])
        best = mask_loss(low, coarse[:, :, None], late).argmin(-1)
    index = best[:, :, None, None, None].expand(-1, -1, 1, *low.shape[-2:])
    full = segmenter.to_image(low.gather(2, index)[:, :, 0], size)
    return (
        mask_loss(full, targets.float(), late).mean(),
        (quality - actual).square().mean(),
        best,
        actual.gather(-1, best[..., None]).mean(),
    )


def step_loss(
    segmenter: PromptableSegmenter, config: PretrainConfig, rng: np.random.Generator, course: Course
) -> dict[str, Tensor]:
    """Loss terms of one step; everything random in it comes from `rng`.

    Args:
        segmenter: The model.
        config: Options.
        rng: Source of scenes and prompts.
        course: Where in the training the step lies.

    Returns:
        The total "loss", and of the first prompts the mask loss "first", "iou_error" and the best mask's "iou".
    """
    batch = draw_batch(rng, config)
    device = next(segmenter.parameters()).device
    embedding = segmenter.encode(batch.images.to(device))
    targets = torch.from_numpy(batch.masks).to(device)
    boxes = points = labels = None
    multimask = False
    if rng.random() < config.boxes:
        boxes = torch.from_numpy(_each(batch.masks, lambda mask: noisy_box(mask, rng))).to(device)
    else:
        points = torch.from_numpy(_each(batch.masks, lambda mask: random_point(mask, rng)))[:, :, None].to(device)
        labels = torch.ones(points.shape[:3], dtype=torch.long, device=device)
        multimask = bool(rng.random() >= config.single)
    low, quality = segmenter.decode_low(embedding, points, labels, boxes, multimask=multimask)
    mask_term, iou_term, best, overlap = score(segmenter, low, quality, targets, course.late)
    terms = {"loss": mask_term + iou_term, "first": mask_term.detach(), "iou_error": iou_term.detach(), "iou": overlap}
    if rng.random() < config.corrections * course.corrections:
        index = best[:, :, None, None, None].expand(-1, -1, 1, *low.shape[-2:])
        prompt = low.detach().gather(2, index)[:, :, 0]
        predicted = (segmenter.to_image(prompt, batch.masks.shape[-2:]) > 0).cpu().numpy()
        clicks, kinds = _corrections(predicted, batch.masks, int(rng.integers(1, 3)), rng)
        points, labels = _append(points, clicks.to(device)), _append(labels, kinds.to(device))
        prompt = prompt.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        low, quality = segmenter.decode_low(embedding, points, labels, boxes, prompt, multimask=False)
        mask_term, iou_term, _, _ = score(segmenter, low, quality, targets, course.late)
        terms["loss"] = terms["loss"] + mask_term + iou_term
    return terms


def pretrain(config: PretrainConfig, folder: Path, seed: int, device: str = "cpu") -> FitResult:
    """Pre-train nano-SAM; a stopped run goes on from its checkpoint, bit for bit on the CPU.

    Args:
        config: Options.
        folder: Run folder: settings, log, checkpoint, and at the end `config.json` and `model.safetensors` (averaged
            weights in half precision, transformers' layout, so that `families.load(folder)` opens it).
        seed: Seed of the initial weights and of all batches.
        device: Where to train.

    Returns:
        Steps, seconds and folder.

    Raises:
        RunError: The folder belongs to another training, or the loss is no longer finite.
    """
    segmenter = build_nano(seed)
    write_json(folder / SETTINGS, settings(config, seed, device))

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        return step_loss(segmenter, config, np.random.default_rng([seed, step]), Course.at(step, config.steps))

    result = fit(segmenter, loss, config, folder, seed=seed, label="pretrain nano-SAM", device=device)
    save_nano(segmenter, folder)
    return result


def settings(config: PretrainConfig, seed: int, device: str) -> dict[str, object]:
    """What a model card says about a training: options, seed, machine, library and day."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu-{torch.get_num_threads()}",
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__.split("+")[0],
        "date": date.today().isoformat(),
    }


def publish(folder: Path, target: Path = NANO_FOLDER) -> dict[str, object]:
    """Make a run's averaged weights the embedded ones; works from a checkpoint of a run that still goes on.

    Args:
        folder: A folder that `pretrain` wrote to.
        target: Folder that receives `config.json`, `model.safetensors` and `training.json`.

    Returns:
        What `training.json` says: steps done, whether that was all, seconds, and the run's `settings`.

    Raises:
        RunError: The folder holds neither weights nor a checkpoint.
    """
    segmenter = build_nano(0)
    if (folder / WEIGHTS).exists():
        tensors, metadata = read_tensors(folder / WEIGHTS).tensors, read_metadata(folder / WEIGHTS)
        steps = json.loads(metadata["config"])["steps"]
        facts: dict[str, object] = {"steps": steps, "finished": True, "seconds": float(metadata["seconds"])}
    elif (folder / CHECKPOINT).exists():
        state, parts = load_state(folder / CHECKPOINT)
        tensors = {
            name.removeprefix(prefix): value
            for prefix in ("model.", "ema.")  # averages replace the parameters of the same name
            for name, value in parts.items()
            if name.startswith(prefix)
        }
        facts = {"steps": state["step"], "finished": False, "seconds": round(float(state["seconds"]), 1)}
    else:
        raise RunError(f"{folder} holds neither {WEIGHTS} nor {CHECKPOINT}; give the folder of a pre-training run.")
    if (folder / SETTINGS).exists():
        facts |= read_json(folder / SETTINGS)
    segmenter.load_state_dict(tensors)
    save_nano(segmenter, target)
    write_json(target / "training.json", facts)
    return facts


def _each(masks: NDArray[np.bool_], prompt: Callable[[NDArray[np.bool_]], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Apply a prompt sampler to each of `(B, P, H, W)` masks; returns float32 `(B, P, n)`."""
    return np.stack([np.stack([prompt(mask) for mask in row]) for row in masks])


def _append(before: Tensor | None, more: Tensor) -> Tensor:
    """Further clicks `(B, P, K, ...)` after those there are."""
    return more if before is None else torch.cat([before, more], 2)


def _corrections(
    predicted: NDArray[np.bool_], targets: NDArray[np.bool_], clicks: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Clicks on the errors of `(B, P, H, W)` masks: float32 `(B, P, clicks, 2)` and labels int64 `(B, P, clicks)`."""
    images, prompts = targets.shape[:2]
    points = np.zeros((images, prompts, clicks, 2), np.float32)
    labels = np.zeros((images, prompts, clicks), np.int64)
    for index in np.ndindex(images, prompts, clicks):
        points[index], labels[index] = correction_click(predicted[index[:2]], targets[index[:2]], rng)
    return torch.from_numpy(points), torch.from_numpy(labels)


def main() -> None:
    """Command line of this module: run or go on with a pre-training, or publish one."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--publish", action="store_true", help="embed the run's averaged weights in the package")
    parser.add_argument("--steps", type=int, default=PretrainConfig().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.publish:
        print(publish(options.folder))
        return
    if options.device == "cpu":
        torch.set_num_threads(1)
    pretrain(PretrainConfig(steps=options.steps), options.folder, options.seed, options.device)


if __name__ == "__main__":
    main()
