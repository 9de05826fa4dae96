"""Where training patches come from: groups drawn with set probabilities, loaded when needed, cached within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import Rle
from fewlabel.core.radiometry import standardise
from fewlabel.core.types import Image, Labelled
from fewlabel.data.augment import Patch
from fewlabel.data.dataset import Dataset
from fewlabel.data.large import LargeImage
from fewlabel.data.planes import GreyPlane, ObjectPlane, Plane, TargetPlane, WeightPlane

if TYPE_CHECKING:
    from fewlabel.data.synth.infrared import Scene

Draw = Callable[[int, np.random.Generator], list[Patch]]
"""Where a training gets its patches: ``(n, generator) -> n patches``, random by the generator alone."""

CACHE = 2**30
"""Bytes that a pool keeps: over a thousand infrared images of 256 x 256 pixels and more, but few of 10,000 x 10,000."""

SCENE = "a rendered scene"
"""What messages call an image that has no file."""


def patch_of(labelled: Labelled) -> Patch:
    """The patch of a labelled image: grey, normalised over the whole image; all but ignored regions count."""
    weight = None
    if labelled.ignored is not None and len(labelled.ignored):
        # What is an object is learnt even where a region to ignore lies over it.
        weight = (~labelled.ignored.semantic() | labelled.instances.semantic()).astype(np.float32)
    patch = _patch(labelled.image.normalised(), labelled.instances.semantic(), labelled.image.id, weight)
    # Told apart only in crops of those who ask for it, so a cache need not hold maps of numbers.
    return replace(patch, objects=ObjectPlane(labelled.instances.rles, labelled.instances.size))


def patch_of_large(image: LargeImage, objects: Sequence[Rle], ignored: Sequence[Rle] = ()) -> Patch:
    """The patch of a labelled image that is read by windows.

    Its crops equal those of `patch_of`, the image to float rounding. One pass over the image takes its statistics.

    Args:
        image: The image.
        objects: Masks of its objects; they stay run-length codes, as do those of what is ignored.
        ignored: Masks of regions that do not count, but for the objects in them.
    """
    numbers = ObjectPlane(objects, image.size)
    weight: np.ndarray | Plane = np.broadcast_to(np.float32(1), image.size)
    if ignored:
        weight = WeightPlane(numbers, ObjectPlane(ignored, image.size))
    return Patch(GreyPlane(image), TargetPlane(numbers), weight, image.id, objects=numbers)


def patch_of_unlabelled(image: Image | LargeImage) -> Patch:
    """The patch of an image without labels: grey, normalised over the whole image, no target and no pixel counts."""
    grey = image.normalised() if isinstance(image, Image) else GreyPlane(image)
    nothing = np.broadcast_to(np.False_, image.size)
    return Patch(grey, nothing, np.broadcast_to(np.float32(0), image.size), image.id)


def patch_of_scene(scene: Scene) -> Patch:
    """The patch of a synthetic infrared scene: its targets are all labels above 0, every pixel counts."""
    patch = _patch(standardise(scene.radiance.astype(np.float32)), scene.labels > 0, SCENE)
    return replace(patch, objects=scene.labels)


def loaders(dataset: Dataset, ids: Iterable[str]) -> list[Callable[[], Patch]]:
    """One loader per id, for a group of a `PatchPool`; a file is opened only when its loader is called."""
    return [partial(_load, dataset, id) for id in ids]


def unlabelled_loaders(dataset: Dataset, ids: Iterable[str]) -> list[Callable[[], Patch]]:
    """One loader per id, as `loaders`, whose patches have no target even where a mask exists: it is not opened."""
    return [partial(_load_unlabelled, dataset, id) for id in ids]


class PatchPool:
    """Patches in groups (say: labelled, pseudo-labelled), each group drawn with its own probability.

    Loaded patches stay in a least-recently-used cache, so a set larger than memory works and a small one is decoded
    once. What is drawn depends on the generator alone, never on what the cache holds. Not for use from several threads.

    Args:
        groups: Pairs of a probability weight and the loaders of the group. Weights need not sum to one; a group of
            weight 0 is never drawn.
        cache: Most bytes of pixels kept, besides the patch that was drawn last.

    Raises:
        DataError: No group can be drawn, a weight is negative, or a group of positive weight is empty.
    """

    def __init__(self, groups: Sequence[tuple[float, Sequence[Callable[[], Patch]]]], cache: int = CACHE) -> None:
        weights = np.array([weight for weight, _ in groups], np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise DataError(
                f"the weights of the training groups are {weights.tolist()}, expected numbers >= 0 with one above 0"
            )
        for number, (weight, members) in enumerate(groups):
            if weight > 0 and not members:
                raise DataError(
                    f"training group {number} has weight {weight} but no image: add some or set its weight to 0"
                )
        self._members = [list(members) for _, members in groups]
        self._probabilities = weights / weights.sum()
        self._capacity, self._held = cache, 0
        self._cache: OrderedDict[tuple[int, int], Patch] = OrderedDict()

    def __len__(self) -> int:
        """Number of patches over all groups."""
        return sum(len(members) for members in self._members)

    def draw(self, n: int, rng: np.random.Generator) -> list[Patch]:
        """Draw ``n`` patches with replacement: first the group by its probability, then a member uniformly."""
        keys = []
        for group in rng.choice(len(self._members), size=n, p=self._probabilities):
            keys.append((int(group), int(rng.integers(len(self._members[group])))))
        return [self._get(key) for key in keys]

    def _get(self, key: tuple[int, int]) -> Patch:
        patch = self._cache.get(key)
        if patch is None:
            patch = self._members[key[0]][key[1]]()
            self._cache[key] = patch
            self._held += _bytes(patch)
            while self._held > self._capacity and len(self._cache) > 1:
                self._held -= _bytes(self._cache.popitem(last=False)[1])
        else:
            self._cache.move_to_end(key)
        return patch


def _bytes(patch: Patch) -> int:
    """Memory of a patch's planes; an array that repeats a single number takes none."""
    planes = (patch.image, patch.target, patch.weight, patch.soft, patch.objects)
    return sum(
        plane.nbytes
        for plane in planes
        if plane is not None and not (isinstance(plane, np.ndarray) and not any(plane.strides))
    )


def _load(dataset: Dataset, id: str) -> Patch:
    image = dataset.opened(id)
    labels = dataset.labels(id, image)
    if isinstance(image, Image):
        return patch_of(Labelled(image, *labels))
    return patch_of_large(image, labels.instances.rles, () if labels.ignored is None else labels.ignored.rles)


def _load_unlabelled(dataset: Dataset, id: str) -> Patch:
    return patch_of_unlabelled(dataset.opened(id))


def _patch(image: np.ndarray, target: np.ndarray, id: str, weight: np.ndarray | None = None) -> Patch:
    # One stored number seen as a whole plane: a cache of hundreds of images need not hold their constant weights.
    everywhere = np.broadcast_to(np.float32(1), image.shape)
    return Patch(np.asarray(image, np.float32), target, everywhere if weight is None else weight, id)
