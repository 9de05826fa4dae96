"""How good the students and pseudo-labels of a run are."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fewlabel.core.files import read_json, write_json
from fewlabel.core.progress import track
from fewlabel.core.radiometry import standardise
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.metrics.scores import Scores
from fewlabel.metrics.scores import evaluate as score
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.trained import load_student
from fewlabel.recipe import Recipe
from fewlabel.students.predict import predict

THRESHOLD = 0.5  # of every student's probability: a student must be usable as it comes


def evaluate(recipe: Recipe, dataset: Dataset, split: Split, folder: RunFolder, out: Path) -> None:
    """Score every student on the test list, and the pseudo-labels where the truth is known; writes scores.json.

    Without a test list no student is scored, which the score table says.
    """
    matching = recipe.eval.matching
    scores: dict[str, Any] = {}
    for method in recipe.methods if split.test else ():
        student = load_student(recipe, folder, method)
        pairs = labelled_pairs(dataset, track(split.test, f"test {method}"))
        scores[method] = score(predictions(student, pairs), matching=matching)
    pseudo = read_json(folder.stage("label") / "summary.json")
    if known := [id for id in split.unlabelled if dataset.has_mask(id)]:
        store = LabelStore(folder.stage("label") / "labels")
        truth = ((target_and_weight(store.get(id))[0], dataset.labelled(id).instances.semantic()) for id in known)
        pseudo["truth"] = score(truth, matching=matching)
    content = {"methods": scores, "pseudo_labels": pseudo, "threshold": THRESHOLD, "matching": matching}
    write_json(out / "scores.json", content)


def labelled_pairs(dataset: Dataset, ids: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standardised images float32 `(H, W)` with their truth bool `(H, W)`, read one at a time."""
    for id in ids:
        sample = dataset.labelled(id)
        yield standardise(sample.image.grey()), sample.instances.semantic()


def validation_pairs(dataset: Dataset, split: Split) -> list[tuple[np.ndarray, np.ndarray]]:
    """The validation part of the labelled share, kept in memory: it is a few images, used again and again."""
    return list(labelled_pairs(dataset, split.validation))


def predictions(
    student: nn.Module, pairs: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true masks, bool `(H, W)`."""
    for image, truth in pairs:
        yield predict(student, image) > THRESHOLD, truth


def figures(scores: Scores) -> dict[str, float]:
    """Those of the four scores that are numbers: without targets, say, there is no Pd."""
    known = {"IoU": scores["IoU"], "nIoU": scores["nIoU"], "Pd": scores["Pd"], "Fa": scores["Fa"]}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def score_table(folder: Path) -> str:
    """The score table of an eval stage as plain text."""
    content = read_json(folder / "scores.json")
    if not content["methods"]:
        return "no test list (img_idx/test.txt), so no student was scored"
    matching = content["matching"]
    lines = [
        f"{'method':24s} {'IoU %':>7s} {'nIoU %':>7s} {'Pd %':>7s} {'Fa ppm':>9s}   ({matching} matching, test list)"
    ]
    rows = dict(content["methods"])
    if truth := content["pseudo_labels"].get("truth"):
        rows["(pseudo-labels)"] = truth
    for name, row in rows.items():
        cells = [("–" if row[key] is None else f"{row[key]:.1f}") for key in ("IoU", "nIoU", "Pd", "Fa")]
        lines.append(f"{name:24s} {cells[0]:>7s} {cells[1]:>7s} {cells[2]:>7s} {cells[3]:>9s}")
    return "\n".join(lines)
