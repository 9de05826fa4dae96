"""The students of a run: untrained, and as the run trained them."""

from pathlib import Path

import torch
from torch import nn

from fewlabel.core.errors import DataError, RunError
from fewlabel.pipeline.folder import MANIFEST, RunFolder, Stage
from fewlabel.recipe import Recipe, of_method, parse_recipe
from fewlabel.students import create
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.train import DetectorConfig
from fewlabel.training.checkpoint import load_weights
from fewlabel.training.loop import WEIGHTS


def fresh_student(recipe: Recipe) -> nn.Module:
    """The untrained student; its weights depend on the recipe's seed alone, so every method starts from the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if isinstance(recipe.student.training, DetectorConfig):
            return Detector(recipe.student.training.crop)
        return create(recipe.student.network)


def student_folder(folder: RunFolder, method: str) -> Path:
    """Where the student of a method is: the train stage has fewlabel's, the baselines stage all others."""
    return folder.stage("train" if method == "fewlabel" else "baselines") / method


def run_recipe(folder: RunFolder, method: str = "fewlabel") -> Recipe:
    """The recipe that a run's student was trained with.

    Raises:
        DataError: The folder is not a run folder.
        RunError: The stage that trains the student is not done.
    """
    if not folder.stage("check").is_dir():
        raise DataError(f"{folder.path} is not a run folder; give one made by `fewlabel run`.")
    stage: Stage = "train" if method == "fewlabel" else "baselines"
    manifest = folder.manifest(stage)
    if manifest is None:
        raise RunError(f"Stage {stage!r} of {folder.path} is not done; run it first.")
    recipe = parse_recipe(manifest["recipe"], str(folder.stage(stage) / MANIFEST))
    return of_method(recipe, Recipe, "Export", "`fewlabel predict` takes the run folder as it is")


def load_student(recipe: Recipe, folder: RunFolder, method: str) -> nn.Module:
    """A trained student in eval mode.

    Raises:
        RunError: The run trained no student by that method.
    """
    weights = student_folder(folder, method) / WEIGHTS
    if not weights.is_file():
        trained = sorted(path.parent.name for path in folder.path.glob(f"*/*/{WEIGHTS}"))
        raise RunError(
            f"{folder.path} holds no student by method {method!r}, only {', '.join(trained) or 'none yet'}; train it or"
            " choose one of them."
        )
    student = fresh_student(recipe)
    load_weights(weights, student)
    return student.eval()
