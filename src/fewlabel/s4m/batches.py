"""Batches of views: what a step sees is a pure function of its numbers, so that a killed training goes on exactly."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from fewlabel.data.instance_crops import CropConfig, Record, crop_view
from fewlabel.data.photometric import Strength, vary
from fewlabel.data.views import View
from fewlabel.training import ranks

Item = TypeVar("Item")

DEPTH = 4  # steps whose crops are cut ahead of a GPU

Draw = Callable[[int, np.random.Generator], list[Record]]
"""Where a training gets its images: `(n, generator) -> n records`, random by the generator alone."""

Stream = Literal["labelled", "unlabelled", "points", "refinement", "paste", "weak colours", "strong colours"]
STREAMS: dict[Stream, int] = {
    "labelled": 0,
    "unlabelled": 1,
    "points": 2,
    "refinement": 3,
    "paste": 4,
    "weak colours": 5,
    "strong colours": 6,
}
"""Each use of random numbers has its own, so that switching one part off changes nothing else."""


def seed_of(seed: int, step: int, stream: Stream, index: int = 0) -> int:
    """A seed in 0..2^63 - 1 that differs between any two of its arguments."""
    state = np.random.SeedSequence([seed, step, STREAMS[stream], index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def torch_generator(seed: int, step: int, stream: Stream, index: int = 0) -> torch.Generator:
    """A generator on the CPU for one use in one step."""
    return torch.Generator().manual_seed(seed_of(seed, step, stream, index))


def draw_views(draw: Draw, count: int, crops: CropConfig, seed: int, step: int, stream: Stream) -> list[View]:
    """The crops of one step, `(3, S, S)` each; a pure function of the arguments."""
    rng = np.random.default_rng([seed, step, STREAMS[stream]])
    return [crop_view(record, crops, rng) for record in draw(count, rng)]


class Ahead(Generic[Item]):
    """A pure function of the step whose next values are made in threads while the present one is used.

    Crops are cut on the CPU and would otherwise keep a GPU waiting. The function draws from generators of its own,
    never from torch's global one, which the other thread uses.
    """

    def __init__(self, make: Callable[[int], Item], depth: int | None = None) -> None:
        """Make nothing yet.

        Args:
            make: `step -> value`; called from several threads.
            depth: Steps that are made ahead, each in a thread; by default one beside a CPU, `DEPTH` beside a GPU.
        """
        self._make = make
        self._depth = depth if depth is not None else DEPTH if torch.cuda.is_available() else 1
        self._threads = ThreadPoolExecutor(self._depth)
        self._begun: dict[int, Future[Item]] = {}

    def __call__(self, step: int) -> Item:
        """The value of a step; those of this rank's next steps are begun."""
        wanted = [step + k * ranks.size() for k in range(self._depth + 1)]
        begun = {later: self._begun.get(later) or self._threads.submit(self._make, later) for later in wanted}
        self._begun = begun
        return begun.pop(step).result()


def recoloured(views: Sequence[View], strength: Strength, seed: int) -> list[View]:
    """The views with varied colours; padding stays black.

    Args:
        views: Of one size.
        strength: See `fewlabel.data.photometric.vary`.
        seed: Seed of the variation.

    Returns:
        New views with the same masks.
    """
    images = vary(stacked(views), strength, seed)
    for image, view in zip(images, views, strict=True):
        image[:, view.content[0] :] = 0
        image[:, :, view.content[1] :] = 0
    return [replace(view, image=image) for view, image in zip(views, images, strict=True)]


def stacked(views: Sequence[View]) -> Tensor:
    """The images of views of one size, float32 `(B, 3, S, S)`."""
    return torch.stack([view.image for view in views])
