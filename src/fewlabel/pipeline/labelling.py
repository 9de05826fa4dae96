"""The label stage: the teacher labels the unlabelled images, in one round or in two."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from fewlabel.core.files import read_json, sha256_json, write_json
from fewlabel.core.progress import track
from fewlabel.data.dataset import Dataset
from fewlabel.data.pool import PatchPool, loaders
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore
from fewlabel.metrics.scores import evaluate as score
from fewlabel.pipeline.inputs import pseudo_loaders
from fewlabel.pipeline.scoring import THRESHOLD, figures, validation_pairs
from fewlabel.recipe import Recipe
from fewlabel.scalpel import transfer
from fewlabel.scalpel.bank import OperatorBank
from fewlabel.scalpel.distill import teach
from fewlabel.scalpel.teacher import load_teacher

CURVE_POINTS = 5  # validations during a training, for the curve in the report; nothing is chosen by them
LABELS, SOFT, SUMMARY, TEACHER = "labels", "soft", "summary.json", "teacher"
FIRST = "round-1"  # folder of the first of two rounds; the last one's labels are always in the stage's own
PSEUDO_SHARE = 0.5  # of the crops in the second teaching: given labels stay in view, as in the student's training
SECOND_SEED = 1_000_000  # added to the run's seed: other crops and scenes than those of the first teaching


def label(
    recipe: Recipe, dataset: Dataset, split: Split, teach_folder: Path, out: Path, *, inputs: str, device: str
) -> None:
    """Label the unlabelled images with the teacher; writes the label store, threshold.json and summary.json.

    With two rounds, those of the first go to a folder of their own; the teacher is then taught on, from its own
    weights, with labels and accepted pseudo-labels, and labels all images once more. A stage that was killed goes on
    where it stopped: each part writes to a folder of its own and is done once.

    Args:
        recipe: The run's recipe.
        dataset: The data set.
        split: The run's split.
        teach_folder: What the teach stage wrote.
        out: The label stage's folder.
        inputs: Fingerprint of the teach stage.
        device: Where to label and teach.
    """
    if recipe.label.rounds == 1:
        _label_round(recipe, dataset, split, teach_folder, out, round=1, made_by=inputs, device=device)
        return
    first, again = out / FIRST, out / TEACHER
    _label_round(recipe, dataset, split, teach_folder, first, round=1, made_by=inputs, device=device)
    made_by = sha256_json([inputs, "round 2"])
    _teach_again(recipe, dataset, split, teach_folder, first, again, inputs=made_by, device=device)
    _label_round(recipe, dataset, split, again, out, round=2, made_by=made_by, device=device)


def _label_round(
    recipe: Recipe,
    dataset: Dataset,
    split: Split,
    teach_folder: Path,
    out: Path,
    *,
    round: int,
    made_by: str,
    device: str,
) -> None:
    """Let one teacher choose its threshold and label every unlabelled image."""
    teacher = load_teacher(teach_folder).to(device)
    chosen = out / "threshold.json"
    if not chosen.is_file():
        write_json(chosen, {"threshold": choose_threshold(recipe, teacher, validation_pairs(dataset, split))})
    threshold = float(read_json(chosen)["threshold"])
    store = LabelStore(out / LABELS, made_by=made_by)
    # Operators that the teacher does without must not judge for it either: leaving one out has to leave it out.
    bank = OperatorBank(recipe.teacher.operators).eval()
    wanted = round == recipe.label.rounds and recipe.student.soft_weight > 0
    transfer.label_images(
        teacher,
        split.unlabelled,
        dataset.image,
        store,
        threshold,
        recipe.label,
        round,
        bank,
        out / SOFT if wanted else None,
    )
    write_json(out / SUMMARY, store.summary() | {"threshold": threshold})


def choose_threshold(recipe: Recipe, teacher: nn.Module, held_out: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The recipe's threshold, or the one that suits the validation images."""
    if recipe.label.threshold is not None:
        return recipe.label.threshold
    views = recipe.label.views
    return transfer.calibrate(
        (transfer.predict(teacher, image, views).probability, truth) for image, truth in track(held_out, "threshold")
    )


def _teach_again(
    recipe: Recipe,
    dataset: Dataset,
    split: Split,
    teach_folder: Path,
    labelled: Path,
    out: Path,
    *,
    inputs: str,
    device: str,
) -> None:
    """Teach a taught teacher half as long again, on labels and on what it was sure of; writes its weights and log."""
    given = loaders(dataset, split.train)
    store = LabelStore(labelled / LABELS)
    # Only images with an accepted target: to learn its own silence from the others would confirm what it misses.
    sure = pseudo_loaders(dataset, store, [id for id in store.ids() if len(store.get(id).accepted)])
    pool = PatchPool([(1 - PSEUDO_SHARE, given), (PSEUDO_SHARE, sure)] if sure else [(1.0, given)])
    held_out = validation_pairs(dataset, split)
    # Without the terms that the frozen SAM guides: they lead an untrained teacher, and this one's decoder is no longer
    # the one that SAM was published with.
    steps = max(recipe.teach.steps // 2, 1)
    changes = {"steps": steps, "distil_weight": 0.0, "preserve_weight": 0.0}
    teach(
        load_teacher(teach_folder),
        pool.draw,
        recipe.teach.model_copy(update=changes),
        out,
        seed=recipe.seed + SECOND_SEED,
        device=device,
        validate=validation_of_teacher(held_out),
        validate_every=max(steps // CURVE_POINTS, 1),
        fingerprint=inputs,
    )


def validation_of_teacher(
    held_out: list[tuple[np.ndarray, np.ndarray]],
) -> Callable[[nn.Module], dict[str, float]] | None:
    """A function from a teacher to its scores on held-out images and masks; None where there are none."""

    def validate(model: nn.Module) -> dict[str, float]:
        views = ((transfer.predict(model, image, "one").probability > THRESHOLD, truth) for image, truth in held_out)
        return figures(score(views))

    return validate if held_out else None
