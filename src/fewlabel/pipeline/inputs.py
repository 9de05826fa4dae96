"""What the stages read: the data set, its inventory, and pools of patches to draw crops from."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.files import sha256_file, sha256_json
from fewlabel.data.augment import Patch
from fewlabel.data.dataset import Dataset
from fewlabel.data.joined import PREFIX, JoinedDataset
from fewlabel.data.large import LargeImage
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.planes import ObjectPlane
from fewlabel.data.pool import Draw, patch_of_large, patch_of_scene
from fewlabel.data.readers import FORMATS, find_layout, open_folder
from fewlabel.data.synth import infrared
from fewlabel.labels.soft import read_soft, soft_target
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.recipe import DataSection
from fewlabel.sam.nano import NANO_FOLDER


def open_dataset(data: DataSection, exclude: Iterable[str] = (), *, strict: bool = True) -> Dataset:
    """Open a recipe's data without the images in `exclude`; see `fewlabel.data.readers.FolderDataset` for `strict`."""
    left_out = frozenset(exclude)
    options: dict[str, Any] = {"strict": strict, "max_pixels": data.max_pixels, "radiometry": data.radiometry}
    dataset = open_folder(data.root, data.format, left_out, **options)
    if data.unlabelled is None:
        return dataset
    inside = frozenset(id.removeprefix(PREFIX) for id in left_out if id.startswith(PREFIX))
    further = open_folder(data.unlabelled, data.unlabelled_format, inside, every=data.unlabelled_every, **options)
    return JoinedDataset(dataset, further)


def data_section(root: Path, format: str = "auto", max_pixels: int = MAX_PIXELS) -> DataSection:
    """The data of a command that has no recipe.

    Raises:
        DataError: There is no such format.
    """
    if format not in FORMATS:
        raise DataError(f"There is no data format {format!r}; choose one of {', '.join(FORMATS)}.")
    return DataSection.model_validate({"format": format, "root": root, "max_pixels": max_pixels})


def layouts(data: DataSection) -> list[str]:
    """What is read as which layout and why, one line for each folder of a recipe's data.

    Raises:
        DataError: A layout is to be recognised and is not.
    """
    lines = []
    for root, format in ((data.root, data.format), (data.unlabelled, data.unlabelled_format)):
        if root is not None:
            said = find_layout(root).sentence() if format == "auto" else f"format: {format}, as asked for"
            lines.append(said if root == data.root else f"{root}: {said}")
    return lines


def checkpoint_hash(name: str) -> str:
    """Hash of the files of a SAM checkpoint's folder (`nano` is the embedded one); the name itself for a hub id."""
    folder = NANO_FOLDER if name == "nano" else Path(name)
    files = sorted(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors", ".bin"))
    return sha256_json({path.name: sha256_file(path) for path in files}) if files else name


def pseudo_loaders(
    dataset: Dataset, store: LabelStore, ids: Iterable[str], soft: Path | None = None
) -> list[Callable[[], Patch]]:
    """One loader per pseudo-labelled image, in the order of the sorted ids.

    Args:
        dataset: Has the images.
        store: Has their pseudo-labels.
        ids: Which images.
        soft: Folder of the teacher's probabilities, where the student learns from them too.
    """
    return [partial(_pseudo_patch, dataset, store, id, soft) for id in sorted(ids)]


def _pseudo_patch(dataset: Dataset, store: LabelStore, id: str, soft: Path | None) -> Patch:
    label, image = store.get(id), dataset.opened(id)
    belief = None if soft is None else soft_target(label, read_soft(soft / f"{id}.png"))
    if isinstance(image, LargeImage):
        patch = replace(patch_of_large(image, label.accepted.rles, label.ignored), soft=belief)
        return replace(patch, weight=np.broadcast_to(np.float32(0), image.size)) if label.unsure else patch
    target, weight = target_and_weight(label)
    objects = ObjectPlane(label.accepted.rles, label.size)
    return Patch(image.normalised(), target, weight, id, belief, objects)


def draw_scenes(size: int) -> Draw:
    """Draw freshly rendered infrared scenes of `size` × `size` pixels."""

    def draw(count: int, rng: np.random.Generator) -> list[Patch]:
        return [patch_of_scene(infrared.render(rng, size)) for _ in range(count)]

    return draw
