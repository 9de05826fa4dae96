"""The work of each stage: from files to files."""

from pathlib import Path
from typing import Any

from torch import nn

from fewlabel.core.files import read_json, sha256_json
from fewlabel.data.dataset import Dataset
from fewlabel.data.pool import PatchPool, loaders, unlabelled_loaders
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore
from fewlabel.metrics.scores import evaluate as score
from fewlabel.pipeline.boxes import Validation
from fewlabel.pipeline.inputs import draw_scenes, pseudo_loaders
from fewlabel.pipeline.labelling import CURVE_POINTS, LABELS, SOFT, SUMMARY, validation_of_teacher
from fewlabel.pipeline.scoring import figures, predictions, validation_pairs
from fewlabel.pipeline.trained import fresh_student
from fewlabel.recipe import Method, Recipe
from fewlabel.scalpel.distill import teach
from fewlabel.scalpel.teacher import ScalpelTeacher
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.train import DetectorConfig, train_detector
from fewlabel.students.mean_teacher import train_mean_teacher
from fewlabel.students.train import train_student
from fewlabel.training.checkpoint import load_weights
from fewlabel.training.loop import WEIGHTS

FROM_SCENES: frozenset[Method] = frozenset({"fewlabel", "synthetic-pretrained", "mean-teacher"})
"""Methods whose student has seen rendered scenes before."""

ONLINE_SHARE = 0.5  # of a batch that is not for fewlabel's online learning: labels and pseudo-labels


def teach_teacher(recipe: Recipe, dataset: Dataset, split: Split, out: Path, *, inputs: str, device: str) -> None:
    """Adapt SAM on the labelled images; writes the teacher's weights and log."""
    pool = PatchPool([(1.0, loaders(dataset, split.train))])
    unlabelled = unlabelled_pool(dataset, split)
    teach(
        ScalpelTeacher(recipe.teacher),
        pool.draw,
        recipe.teach,
        out,
        seed=recipe.seed,
        device=device,
        validate=validation_of_teacher(validation_pairs(dataset, split)),
        validate_every=max(recipe.teach.steps // CURVE_POINTS, 1),
        fingerprint=inputs,
        unlabelled=None if unlabelled is None else unlabelled.draw,
    )


def unlabelled_pool(dataset: Dataset, split: Split) -> PatchPool | None:
    """The unlabelled images, whose masks, if any, stay shut; None where there are no such images."""
    return PatchPool([(1.0, unlabelled_loaders(dataset, split.unlabelled))]) if split.unlabelled else None


def train_synthetic(recipe: Recipe, out: Path, *, device: str) -> None:
    """Train the student on rendered scenes; writes weights and log, or nothing when the recipe asks for none."""
    section = recipe.student
    if not section.synthetic_steps:
        return
    student, draw = fresh_student(recipe), draw_scenes(section.training.crop)
    options = section.training.model_copy(update={"steps": section.synthetic_steps})
    common: dict[str, Any] = {"seed": recipe.seed, "label": "student on rendered scenes", "device": device}
    if isinstance(options, DetectorConfig):
        assert isinstance(student, Detector)  # made for the same options
        train_detector(student, draw, options, out, **common)
    else:
        train_student(student, draw, options, out, **common)


def train_method(
    method: Method,
    recipe: Recipe,
    dataset: Dataset,
    split: Split,
    labels: Path,
    synthetic: Path,
    out: Path,
    *,
    inputs: str,
    device: str,
) -> None:
    """Train the student by one method; writes its folder with weights and log, of a detector also its threshold.

    Args:
        method: Decides the start and the images. `fewlabel`, `synthetic-pretrained` and `mean-teacher` begin where the
            rendered scenes ended: mean-teacher stands for what unlabelled images are worth without SAM, and from
            another start the difference to fewlabel would also be that of the starts. The other two begin untrained.
        recipe: The run's recipe.
        dataset: The data set.
        split: The run's split.
        labels: Folder of the label stage; read for `fewlabel` alone.
        synthetic: Folder of the student trained on rendered scenes.
        out: Parent of the method's folder.
        inputs: Fingerprint of the data.
        device: Where to train.
    """
    section = recipe.student
    student = fresh_student(recipe)
    if method in FROM_SCENES and section.synthetic_steps:
        load_weights(synthetic / WEIGHTS, student)
    pool = method_pool(method, recipe, dataset, split, labels)
    common: dict[str, Any] = {
        "seed": recipe.seed,
        "label": f"student {method}",
        "device": device,
        "validate_every": max(section.training.steps // CURVE_POINTS, 1),
        "fingerprint": sha256_json([method, inputs]),
    }
    if isinstance(section.training, DetectorConfig):
        assert isinstance(student, Detector)  # made for the same options
        validation = Validation(dataset, split)
        common |= {"validate": validation.figures if validation.pairs else None}
        train_detector(student, pool.draw, section.training, out / method, **common)
        validation.write_threshold(student, out / method)
        return
    online = method == "mean-teacher" or (method == "fewlabel" and section.online)
    unlabelled = unlabelled_pool(dataset, split) if online else None
    held_out = validation_pairs(dataset, split)

    def validate(model: nn.Module) -> dict[str, float]:
        return figures(score(predictions(model, held_out)))

    common |= {
        "validate": validate if held_out else None,
        "soft_weight": section.soft_weight if method == "fewlabel" else 0.0,
    }
    if unlabelled is None:
        train_student(student, pool.draw, section.training, out / method, **common)
    else:
        share = section.labelled_share if method == "mean-teacher" else ONLINE_SHARE
        options = section.mean_teacher
        train_mean_teacher(
            student, pool.draw, unlabelled.draw, section.training, options, out / method, share=share, **common
        )


def method_pool(method: Method, recipe: Recipe, dataset: Dataset, split: Split, labels: Path) -> PatchPool:
    """The images with targets that one method's student is trained on; `split` has seen to it that their masks exist.

    Pseudo-labels join the given ones unless none was accepted: all of them together would then say that there are no
    targets. Images on which the teacher was unsure as a whole are left out (`PseudoLabel.unsure`).
    """
    given = loaders(dataset, split.train)
    if method == "all-labels":
        return PatchPool([(1.0, given + loaders(dataset, split.unlabelled))])
    if method == "fewlabel" and read_json(labels / SUMMARY)["accepted"]:
        store = LabelStore(labels / LABELS)
        soft = labels / SOFT if recipe.student.soft_weight else None
        pseudo = pseudo_loaders(dataset, store, [id for id in store.ids() if not store.get(id).unsure], soft)
        return PatchPool([(recipe.student.labelled_share, given), (1.0 - recipe.student.labelled_share, pseudo)])
    return PatchPool([(1.0, given)])
