"""Batches for the pre-training of nano-SAM: rendered scenes and all that is random about their prompts.

A batch is a pure function of (options, seed, step). Worker processes may therefore render ahead: which of them made a
batch, and how many there are, changes nothing.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewlabel.core.errors import RunError, first_line
from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.data.synth import infrared, objects
from fewlabel.sam.nano import FRAME
from fewlabel.sam.pretrain_config import Course, PretrainConfig
from fewlabel.sam.prompts import central_point, noisy_box, random_point, tight_box

# More targets than the sets for training detectors have: each further target is a prompt for the price of a decode.
INFRARED = infrared.InfraredConfig(counts=(0.0, 0.25, 0.2, 0.2, 0.2, 0.15))
AHEAD = 2  # batches that each worker renders in advance
MOST_CORRECTIONS = 2
POOL, ORDER = 1, 2  # third words of the seeds of a pool's scenes and of its orders; those of steps have two words


@dataclass(frozen=True)
class Scene:
    """One rendered image for prompting.

    Attributes:
        image: float32 `(3, 256, 256)` in [0, 1].
        labels: int32 `(256, 256)`, 0 for background, at least one target.
        parts: int32 `(256, 256)`, 0 for none; numbered apart from the labels.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    parts: NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """B images, P targets in each, and the prompts of one step.

    Attributes:
        images: float16 `(B, 3, S, S)` in [0, 1].
        masks: bool `(B, P, S, S)`, none empty.
        points: float32 `(B, P, 1, 2)` xy of the first click, or None in a step that starts from boxes.
        boxes: float32 `(B, P, 4)` xyxy, or None in a step that starts from clicks.
        multimask: Whether three masks are asked for.
        corrections: float32 `(R, B, P)` in [0, 1): R further clicks, each as a share of the way through the pixels
            that are wrong by then, in raster order.
    """

    images: Tensor
    masks: Tensor
    points: Tensor | None
    boxes: Tensor | None
    multimask: bool
    corrections: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on another device; a copy from pinned memory does not wait."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls this."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with all tensors changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        return Batch(**changed)


def draw_scene(rng: np.random.Generator, share: float) -> Scene:
    """Render one scene that shows a target.

    Infrared scenes are rendered at 256, 128 or 64 pixels and scenes of objects at 256 or 128, and enlarged: one network
    sees targets of one pixel and of fifty, and objects that are sharp or blurred, small or large.

    Args:
        rng: Source of the scene.
        share: Probability of an infrared scene.
    """
    while True:
        if rng.random() < share:
            factor = int(rng.choice([1, 2, 4], p=[0.7, 0.2, 0.1]))
            drawn = infrared.render(rng, FRAME // factor, INFRARED)
            image = to_unit(standardise(drawn.radiance.astype(np.float32)))[None]
            labels, parts = drawn.labels, np.zeros_like(drawn.labels)
        else:
            factor = 2 if rng.random() < 0.15 else 1
            picture = objects.render(rng, FRAME // factor)
            image = picture.pixels.astype(np.float32) / 255.0
            labels, parts = picture.labels, picture.parts
        if not labels.any():
            continue
        if factor > 1:
            enlarged = F.interpolate(torch.from_numpy(image)[None], scale_factor=factor, mode="bilinear")
            image = enlarged[0].numpy()
            labels, parts = (each.repeat(factor, 0).repeat(factor, 1) for each in (labels, parts))
        return Scene(np.broadcast_to(image, (3, FRAME, FRAME)), labels, parts)


def choose_masks(rng: np.random.Generator, scene: Scene, count: int, parts: float) -> NDArray[np.bool_]:
    """Masks to be prompted: targets, and instead of a share of them parts where the scene has any.

    Different targets come before the same one twice, and so do parts.

    Returns:
        bool `(count, H, W)`, none empty.
    """
    wholes = _shuffled(rng, scene.labels, count)
    chosen = scene.labels[None] == wholes[:, None, None]
    if scene.parts.any():
        pieces = _shuffled(rng, scene.parts, count)
        for slot in np.flatnonzero(rng.random(count) < parts):
            chosen[slot] = scene.parts == pieces[slot]
    return chosen


def _shuffled(rng: np.random.Generator, labels: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """`count` labels above 0 in random order, repeated only where there are fewer."""
    numbers = np.unique(labels[labels > 0])
    first = rng.permutation(numbers)[:count]
    return np.concatenate([first, rng.choice(numbers, count - len(first))])


def pool_scene(config: PretrainConfig, seed: int, index: int) -> Scene:
    """Render a scene of the pool: a pure function of the arguments; only `config.infrared` counts."""
    return draw_scene(np.random.default_rng([seed, index, POOL]), config.infrared)


def pool_indices(config: PretrainConfig, seed: int, step: int) -> list[int]:
    """Which scenes of the pool a step shows: all of them in a random order, then all in another one, and so on."""
    found = []
    for place in range(step * config.batch, (step + 1) * config.batch):
        epoch, at = divmod(place, config.pool)
        found.append(int(np.random.default_rng([seed, epoch, ORDER]).permutation(config.pool)[at]))
    return found


def draw_batch(config: PretrainConfig, seed: int, step: int, warm: bool) -> Batch:
    """Render the batch of one step and draw its prompts: a pure function of the arguments.

    The scenes are new ones, or the next of the pool; the prompts are always new.

    Args:
        config: Options.
        seed: Seed of the training.
        step: From 0.
        warm: Whether the training started from trained weights.
    """
    rng = np.random.default_rng([seed, step])
    if config.pool:
        scenes = [pool_scene(config, seed, index) for index in pool_indices(config, seed, step)]
    else:
        scenes = [draw_scene(rng, config.infrared) for _ in range(config.batch)]
    masks = np.stack([choose_masks(rng, scene, config.targets, config.parts) for scene in scenes])
    flat = masks.reshape(-1, FRAME, FRAME)
    points = boxes = None
    multimask = False
    if rng.random() < config.boxes:
        drawn = [tight_box(mask) if rng.random() < config.tight else noisy_box(mask, rng) for mask in flat]
        boxes = torch.from_numpy(np.stack(drawn)).reshape(*masks.shape[:2], 4)
    else:
        drawn = [central_point(mask) if rng.random() < config.central else random_point(mask, rng) for mask in flat]
        points = torch.from_numpy(np.stack(drawn)).reshape(*masks.shape[:2], 1, 2)
        multimask = bool(rng.random() >= config.single)
    goes_on = rng.random() < config.corrections * Course.at(step, config, warm).corrections
    rounds = int(rng.integers(1, MOST_CORRECTIONS + 1)) if goes_on else 0
    return Batch(
        images=torch.from_numpy(np.stack([scene.image for scene in scenes])).half(),
        masks=torch.from_numpy(masks),
        points=points,
        boxes=boxes,
        multimask=multimask,
        corrections=torch.from_numpy(rng.random((rounds, *masks.shape[:2]), dtype=np.float32)),
    )


class Batches:
    """The batches of a training in the order of its steps, rendered here or ahead by worker processes.

    Args:
        config: Options.
        seed: Seed of the training.
        warm: Whether the training started from trained weights.
        workers: Processes that render; 0 renders in this one.
        pin: Whether workers' batches are put into page-locked memory, from which copies to a GPU need not be waited
            for.
    """

    def __init__(self, config: PretrainConfig, seed: int, warm: bool, workers: int = 0, pin: bool = False) -> None:
        self.steps = _Steps(config, seed, warm)
        self.workers, self.pin = workers, pin
        self._coming: Iterator[Batch] | None = None
        self._next = 0

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coming = None  # the loader's last reference: its processes end

    def __call__(self, step: int) -> Batch:
        """The batch of a step; steps in a row are ready in advance.

        Raises:
            RunError: A worker process ended before its time.
        """
        if self.workers == 0:
            return self.steps[step]
        if self._coming is None or step != self._next:
            loader: DataLoader[Batch] = DataLoader(
                self.steps,
                batch_size=None,
                sampler=range(step, len(self.steps)),  # type: ignore[arg-type]
                num_workers=self.workers,
                collate_fn=_as_it_is,
                pin_memory=self.pin,
                prefetch_factor=AHEAD,
                worker_init_fn=_leave_signals_to_the_parent,
                multiprocessing_context="spawn",  # a fork would inherit the locks of this process's threads
            )
            self._coming = iter(loader)
        try:
            batch = next(self._coming)
        except (RuntimeError, OSError, EOFError) as error:
            raise RunError(
                f"A rendering process ended at step {step} ({first_line(error)}); run again to go on from the last "
                f"checkpoint, with fewer than {self.workers} workers if memory is short."
            ) from error
        self._next = step + 1
        return batch


class _Steps(Dataset[Batch]):
    """The batches by step, as the data loader asks for them."""

    def __init__(self, config: PretrainConfig, seed: int, warm: bool) -> None:
        self.config, self.seed, self.warm = config, seed, warm

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        return draw_batch(self.config, self.seed, step, self.warm)


def _as_it_is(batch: Any) -> Any:
    """Batches need no collating."""
    return batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the process group must not end a renderer while the training writes its checkpoint."""
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)
