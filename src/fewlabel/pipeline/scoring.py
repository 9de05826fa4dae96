"""How good the students and pseudo-labels of a run are."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fewlabel.core.files import read_json, write_json
from fewlabel.core.progress import track
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.data.suspects import Suspect, compare_labels, rank_suspects
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.metrics.roc import THRESHOLDS, RocMetric
from fewlabel.metrics.scores import Scores
from fewlabel.metrics.scores import evaluate as score
from fewlabel.metrics.targets import Matching
from fewlabel.pipeline.boxes import THRESHOLD_FILE, boxed_pairs, detections, score_boxes, score_pseudo_boxes
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.trained import load_student, student_folder
from fewlabel.recipe import Recipe
from fewlabel.report.contents import PseudoLabels
from fewlabel.report.summary import label_warning
from fewlabel.students.detector.network import DETECTOR, Detector
from fewlabel.students.predict import predict

DOUBTS = 10  # labelled images that are named for another look
THRESHOLD = 0.5  # of every probability of a mask: a student must be usable as it comes
CURVE = THRESHOLDS[::2]  # of the ROC: 17 thresholds, one half among them; each costs a labelling of every image
COLUMNS = (("IoU %", "IoU", 7), ("nIoU %", "nIoU", 7), ("hIoU %", "hIoU", 7), ("Pd %", "Pd", 7), ("Fa ppm", "Fa", 9))
"""Heading, key and width of the columns of the terminal's score table."""
BOX_COLUMNS = (
    ("AP50 %", "AP50", 7),
    ("AP %", "AP", 7),
    ("AR50 %", "AR50", 7),
    ("prec %", "precision", 7),
    ("rec %", "recall", 7),
    ("IoU %", "IoU", 7),
    ("Pd %", "Pd", 7),
)
"""The same for students that give boxes; the last two are known of pseudo-labels alone, which are masks."""


def evaluate(recipe: Recipe, dataset: Dataset, split: Split, folder: RunFolder, out: Path) -> None:
    """Score every student on the test list, and the pseudo-labels where the truth is known; writes scores.json.

    Without a test list no student is scored, which the score table says.
    """
    matching = recipe.eval.matching
    scores: dict[str, Any] = {}
    for method in recipe.methods if split.test else ():
        student = load_student(recipe, folder, method)
        listed = track(split.test, f"test {method}")
        if isinstance(student, Detector):
            found = detections(student, boxed_pairs(dataset, listed))
            scores[method] = score_boxes(found, load_threshold(student, folder, method))
            continue
        pairs = labelled_pairs(dataset, listed)
        scores[method] = score_with_curve(((predict(student, image), truth) for image, truth in pairs), matching)
    pseudo = read_json(folder.stage("label") / "summary.json")
    if known := [id for id in split.unlabelled if dataset.has_mask(id)]:
        store = LabelStore(folder.stage("label") / "labels")
        truth = ((target_and_weight(store.get(id))[0], dataset.labelled(id).instances.semantic()) for id in known)
        pseudo["truth"] = score(truth, matching=matching)
        if recipe.student.network == DETECTOR:
            pseudo["truth"] |= score_pseudo_boxes(dataset, store, known)
    # A detector has a threshold of its own among its scores.
    shared = {} if recipe.student.network == DETECTOR else {"threshold": THRESHOLD}
    doubts = [asdict(suspect) for suspect in doubtful_labels(recipe, dataset, split, folder)]
    content = {"methods": scores, "pseudo_labels": pseudo, **shared, "matching": matching, "doubtful_labels": doubts}
    write_json(out / "scores.json", content)


def doubtful_labels(recipe: Recipe, dataset: Dataset, split: Split, folder: RunFolder) -> list[Suspect]:
    """Labelled images whose labels fewlabel's student doubts most, at most `DOUBTS`; none of a student of boxes.

    The student learnt from the training part, so it doubts wrong labels there less than they deserve.
    """
    student = load_student(recipe, folder, "fewlabel")
    if isinstance(student, Detector):
        return []
    pairs = zip(split.labelled, labelled_pairs(dataset, split.labelled), strict=True)
    return rank_suspects(compare_labels(id, truth, predict(student, image)) for id, (image, truth) in pairs)[:DOUBTS]


def load_threshold(student: nn.Module, folder: RunFolder, method: str) -> float:
    """The score above which pixels or boxes of a method's student count: of a detector the one chosen for it."""
    if not isinstance(student, Detector):
        return THRESHOLD
    return float(read_json(student_folder(folder, method) / THRESHOLD_FILE)["value"])


def score_with_curve(maps: Iterable[tuple[np.ndarray, np.ndarray]], matching: Matching) -> dict[str, Any]:
    """Score probabilities at `THRESHOLD`, and Pd against Fa at the thresholds `CURVE`, in one pass.

    Args:
        maps: Probability float `(H, W)` and true mask bool `(H, W)` of each image; one pair is held at a time.
        matching: Rule that pairs detections with targets.

    Returns:
        What `fewlabel.metrics.scores.evaluate` returns, and the curve of `fewlabel.metrics.roc` under `roc`.
    """
    curve = RocMetric(CURVE, matching)

    def masks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for probability, truth in maps:
            curve.update(probability, truth)
            yield probability > THRESHOLD, truth

    return {**score(masks(), matching=matching), "roc": curve.compute()}


def labelled_pairs(dataset: Dataset, ids: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standardised images float32 `(H, W)` with their truth bool `(H, W)`, read one at a time."""
    for id in ids:
        sample = dataset.labelled(id)
        yield sample.image.normalised(), sample.instances.semantic()


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
    """The score table of an eval stage as plain text, at most 100 characters wide for methods of up to 24."""
    content = read_json(folder / "scores.json")
    warning = label_warning(PseudoLabels.from_summary(content["pseudo_labels"]))
    ending = [f"warning: {warning}"] if warning else []
    if not content["methods"]:
        return "\n".join(["no test images, so no student was scored", *ending])
    rows = dict(content["methods"])
    if truth := content["pseudo_labels"].get("truth"):
        rows["(pseudo-labels)"] = truth
    boxes = any("AP50" in row for row in rows.values())
    columns, note = (BOX_COLUMNS, "test list") if boxes else (COLUMNS, f"{content['matching']} matching, test list")
    head = " ".join(f"{heading:>{width}s}" for heading, _, width in columns)
    lines = [f"{'method':24s} {head}   ({note})"]
    for name, row in rows.items():
        cells = (f"{'–' if row.get(key) is None else f'{row[key]:.1f}':>{width}s}" for _, key, width in columns)
        lines.append(f"{name:24s} {' '.join(cells)}")
    return "\n".join([*lines, *ending])
