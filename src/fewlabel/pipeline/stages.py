"""The work of each stage: from files to files."""

from pathlib import Path

import numpy as np
from torch import nn

from fewlabel.core.errors import DataError
from fewlabel.core.files import read_json, sha256_json, write_json
from fewlabel.core.progress import track
from fewlabel.data.check import CheckReport
from fewlabel.data.check import check as check_dataset
from fewlabel.data.dataset import Dataset
from fewlabel.data.pool import PatchPool, loaders
from fewlabel.data.split import Split, make_split
from fewlabel.labels.store import LabelStore
from fewlabel.metrics.scores import evaluate as score
from fewlabel.pipeline.inputs import draw_scenes, open_dataset, pseudo_loaders
from fewlabel.pipeline.scoring import THRESHOLD, figures, predictions, validation_pairs
from fewlabel.pipeline.trained import fresh_student
from fewlabel.recipe import Method, Recipe
from fewlabel.scalpel import transfer
from fewlabel.scalpel.distill import teach
from fewlabel.scalpel.teacher import ScalpelTeacher, load_teacher
from fewlabel.students.train import train_student
from fewlabel.training.checkpoint import load_weights
from fewlabel.training.loop import WEIGHTS

CURVE_POINTS = 5  # validations during a training, for the curve in the report; nothing is chosen by them


def check(root: Path, out: Path | None, *, keep_going: bool, fraction: float | None) -> CheckReport:
    """Decode everything once; writes check.json and rejected.csv.

    Args:
        root: The data set's folder.
        out: Where to write; nothing is written when absent.
        keep_going: List unusable images as rejected instead of stopping.
        fraction: Labelled share that the split will take. With one, every training image has to have a mask, so that
            the share is drawn from all of them; with None, masks may be missing. Test images always need theirs.

    Raises:
        DataError: Something cannot be used, and `keep_going` is off.
    """
    dataset = open_dataset(root, strict=False)
    required = dataset.test_ids if fraction is None else (*dataset.train_ids, *dataset.test_ids)
    rejected = None if out is None else out / "rejected.csv"
    report = check_dataset(dataset, keep_going=keep_going, require_masks=required, rejected_csv=rejected)
    if out is not None:
        write_json(out / "check.json", report.to_json())
    return report


def split(recipe: Recipe, dataset: Dataset, areas: dict[str, float], out: Path) -> None:
    """Choose labelled, validation and unlabelled images; writes split.json.

    Raises:
        DataError: The labelled share holds no target, or `all-labels` is to be compared but masks are missing: both
            would be found out only after hours.
    """
    section = recipe.split
    made = make_split(
        dataset.train_ids,
        {id: areas[id] for id in dataset.train_ids if id in areas},
        fraction=section.fraction,
        seed=section.seed,
        validation_share=section.validation_share,
        test_ids=dataset.test_ids,
    )
    if not any(areas[id] > 0 for id in made.train):
        raise DataError(
            f"None of the {len(made.train)} labelled images of {recipe.data.root} shows a target, so nothing can be"
            " learned; label some that do, or raise split.fraction."
        )
    missing = next((id for id in made.unlabelled if not dataset.has_mask(id)), None)
    if missing is not None and "all-labels" in recipe.student.compare:
        raise DataError(
            f"Image {missing!r} of {recipe.data.root} has no mask, so 'all-labels' cannot be trained; remove it from"
            " student.compare."
        )
    made.save(out / "split.json")


def teach_teacher(recipe: Recipe, dataset: Dataset, split: Split, out: Path, *, inputs: str, device: str) -> None:
    """Adapt SAM on the labelled images; writes the teacher's weights and log."""
    pool = PatchPool([(1.0, loaders(dataset, split.train))])
    held_out = validation_pairs(dataset, split)

    def validate(model: nn.Module) -> dict[str, float]:
        views = ((transfer.predict(model, image, "one").probability > THRESHOLD, truth) for image, truth in held_out)
        return figures(score(views))

    teach(
        ScalpelTeacher(recipe.teacher),
        pool.draw,
        recipe.teach,
        out,
        seed=recipe.seed,
        device=device,
        validate=validate if held_out else None,
        validate_every=max(recipe.teach.steps // CURVE_POINTS, 1),
        fingerprint=inputs,
    )


def label(
    recipe: Recipe, dataset: Dataset, split: Split, teach_folder: Path, out: Path, *, inputs: str, device: str
) -> None:
    """Label the unlabelled images with the teacher; writes the label store, threshold.json and summary.json."""
    teacher = load_teacher(teach_folder).to(device)
    chosen = out / "threshold.json"
    if not chosen.is_file():
        write_json(chosen, {"threshold": choose_threshold(recipe, teacher, validation_pairs(dataset, split))})
    threshold = float(read_json(chosen)["threshold"])
    store = LabelStore(out / "labels", made_by=inputs)
    transfer.label_images(teacher, split.unlabelled, dataset.image, store, threshold, recipe.label)
    write_json(out / "summary.json", store.summary() | {"threshold": threshold})


def choose_threshold(recipe: Recipe, teacher: nn.Module, held_out: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The recipe's threshold, or the one that suits the validation images."""
    if recipe.label.threshold is not None:
        return recipe.label.threshold
    views = recipe.label.views
    return transfer.calibrate(
        (transfer.predict(teacher, image, views).probability, truth) for image, truth in track(held_out, "threshold")
    )


def train_synthetic(recipe: Recipe, out: Path, *, device: str) -> None:
    """Train the student on rendered scenes; writes weights and log, or nothing when the recipe asks for none."""
    section = recipe.student
    if not section.synthetic_steps:
        return
    train_student(
        fresh_student(recipe),
        draw_scenes(section.training.crop),
        section.training.model_copy(update={"steps": section.synthetic_steps}),
        out,
        seed=recipe.seed,
        label="student on rendered scenes",
        device=device,
    )


def train_method(
    method: Method,
    recipe: Recipe,
    pool: PatchPool,
    held_out: list[tuple[np.ndarray, np.ndarray]],
    synthetic: Path,
    out: Path,
    *,
    inputs: str,
    device: str,
) -> None:
    """Train the student by one method; writes its folder with weights and log.

    Args:
        method: Decides the start: `fewlabel` and `synthetic-pretrained` begin where the rendered scenes ended.
        recipe: The run's recipe.
        pool: Images to draw crops from.
        held_out: Validation images and masks for the curve; nothing is chosen by them.
        synthetic: Folder of the student trained on rendered scenes.
        out: Parent of the method's folder.
        inputs: Fingerprint of the data.
        device: Where to train.

    """
    student = fresh_student(recipe)
    if method in ("fewlabel", "synthetic-pretrained") and recipe.student.synthetic_steps:
        load_weights(synthetic / WEIGHTS, student)

    def validate(model: nn.Module) -> dict[str, float]:
        return figures(score(predictions(model, held_out)))

    train_student(
        student,
        pool.draw,
        recipe.student.training,
        out / method,
        seed=recipe.seed,
        label=f"student {method}",
        device=device,
        validate=validate if held_out else None,
        validate_every=max(recipe.student.training.steps // CURVE_POINTS, 1),
        fingerprint=sha256_json([method, inputs]),
    )


def method_pool(method: Method, recipe: Recipe, dataset: Dataset, split: Split, label_folder: Path) -> PatchPool:
    """The images that one method's student is trained on; `split` has made sure that their masks are there."""
    given = loaders(dataset, split.train)
    if method == "all-labels":
        return PatchPool([(1.0, given + loaders(dataset, split.unlabelled))])
    if method == "fewlabel" and split.unlabelled:
        pseudo = pseudo_loaders(dataset, LabelStore(label_folder / "labels"))
        return PatchPool([(recipe.student.labelled_share, given), (1.0 - recipe.student.labelled_share, pseudo)])
    return PatchPool([(1.0, given)])
