"""From a recipe or a data set's folder to a page that shows what training will see; nothing is trained."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.data.augment import AugmentConfig, Patch, crop, jitter
from fewlabel.data.dataset import Dataset
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.pool import loaders
from fewlabel.pipeline.inputs import data_section, draw_scenes, layouts, open_dataset
from fewlabel.recipe import Recipe, load_recipe, of_method
from fewlabel.report.preview import Preview, Row, View, write
from fewlabel.students.detector.train import DetectorConfig
from fewlabel.students.train import StudentConfig

CROPS = 5  # of each image: with the whole image they fill the width of a page
SCENES = 2


SHOWN = 2**22
"""Pixels above which an image is shown by its crops alone."""


def preview_recipe(path: Path, overrides: tuple[str, ...], out: Path, *, images: int, seed: int) -> None:
    """Preview a recipe's data with its student's crops; rendered scenes too where the student trains on some.

    Raises:
        RecipeError: The recipe cannot be read.
        DataError: As `preview`.
    """
    recipe = of_method(load_recipe(path, overrides), Recipe, "A preview", "give the data set's folder alone")
    config = recipe.student.training
    scenes: list[Patch] = []
    if recipe.student.synthetic_steps:
        scenes = draw_scenes(config.crop)(SCENES, np.random.default_rng(seed))
    dataset = open_dataset(recipe.data, strict=False)
    preview(dataset, config, out, title=recipe.name, images=images, seed=seed, scenes=scenes)


def preview_folder(
    root: Path, out: Path, *, images: int, seed: int, format: str = "auto", max_pixels: int = MAX_PIXELS
) -> None:
    """Preview a data set on its own, with the crops that a student has by default; DataError as `preview`."""
    data = data_section(root, format, max_pixels)
    print("\n".join(layouts(data)))
    dataset = open_dataset(data, strict=False)
    preview(dataset, StudentConfig(), out, title=dataset.name, images=images, seed=seed)


def preview(
    dataset: Dataset,
    config: StudentConfig | DetectorConfig,
    out: Path,
    *,
    title: str,
    images: int = 8,
    seed: int = 0,
    scenes: Iterable[Patch] = (),
) -> None:
    """Write a page of labelled training images and crops of them as a student's training draws them.

    Args:
        dataset: The data set; test images are not shown.
        config: Gives the side of the crops and how they vary.
        out: The HTML file.
        title: What the page is called.
        images: Most images shown; those of more than `SHOWN` pixels by their crops alone.
        seed: Decides the choice of images and the crops.
        scenes: Rendered scenes that are shown too.

    Raises:
        DataError: No training image has labels, or one that was chosen cannot be read.
    """
    labelled = [id for id in dataset.train_ids if dataset.has_mask(id)]
    if not labelled:
        raise DataError(f"{dataset.name} has no labelled training image, so training has nothing to show: add labels.")
    rng = np.random.default_rng(seed)
    chosen = [labelled[index] for index in rng.permutation(len(labelled))[:images]]
    data = Preview(
        title=title,
        size=config.crop,
        settings=settings(config.augment),
        rows=[row_of(load(), config, rng, whole=True) for load in loaders(dataset, chosen)],
        scenes=[row_of(scene, config, rng, whole=False) for scene in scenes],
    )
    write(data, out)


def row_of(patch: Patch, config: StudentConfig | DetectorConfig, rng: np.random.Generator, *, whole: bool) -> Row:
    """An image with `CROPS` crops of it, drawn and varied as `fewlabel.data.augment.crop_batch` does."""
    crops = []
    for number in range(1, CROPS + 1):
        image, target, weight = crop(patch, config.crop, rng, config.augment)
        crops.append(view(f"crop {number}", jitter(image, rng, config.augment), target, weight))
    if not whole or patch.image.shape[0] * patch.image.shape[1] > SHOWN:
        return Row(patch.id, None, crops)
    planes = (np.asarray(plane) for plane in (patch.image, patch.target, patch.weight))
    return Row(patch.id, view(f"{patch.image.shape[0]} × {patch.image.shape[1]} px", *planes), crops)


def view(title: str, image: np.ndarray, target: np.ndarray, weight: np.ndarray) -> View:
    """A view with the number of its 8-connected targets."""
    return View(title, image, target, weight, components(target)[1])


def settings(config: AugmentConfig) -> list[tuple[str, str, str]]:
    """Name, value and meaning of every option that varies the crops."""
    fields = type(config).model_fields
    return [(name, str(getattr(config, name)), fields[name].description or "") for name in fields]
