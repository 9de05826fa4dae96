"""From a run folder to the values that the report shows."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewlabel import __version__
from fewlabel.core.files import read_json
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.labelling import LABELS, TEACHER
from fewlabel.pipeline.scoring import THRESHOLD, load_threshold
from fewlabel.pipeline.trained import load_student, student_folder
from fewlabel.recipe import CommonRecipe, Recipe, dump_recipe
from fewlabel.report.contents import (
    DataFacts,
    Doubt,
    Example,
    PseudoLabels,
    ReportData,
    RouterWeights,
    ScoreRow,
    StageTime,
)
from fewlabel.scalpel import transfer
from fewlabel.scalpel.bank import OperatorBank
from fewlabel.scalpel.teacher import ScalpelTeacher, load_teacher
from fewlabel.students.detector.network import DETECTOR, Detector
from fewlabel.students.detector.predict import detect
from fewlabel.students.predict import predict
from fewlabel.training.log import LOG, read_log

UNLABELLED_EXAMPLES, TEST_EXAMPLES, ROUTER_IMAGES, ROUTER_TILES = 5, 3, 8, 16
METHOD_NOTE = (
    "The method follows the idea of Scalpel-SAM (arXiv 2512.22483), whose full text is not public to us; operators,"
    " router and losses are fewlabel's own design."
)
LIBRARIES = ("torch", "transformers", "numpy", "scipy")


def collect(recipe: Recipe, folder: RunFolder, dataset: Dataset, split: Split) -> ReportData:
    """Gather what the report of a run shows.

    Args:
        recipe: The run's recipe.
        folder: The run folder; its stages up to eval are done.
        dataset: The data set.
        split: The run's split.

    Returns:
        The report's contents. Examples are images with targets, spread evenly over the lists, unpicked.
    """
    scored = read_json(folder.stage("eval") / "scores.json")
    teacher = load_teacher(teacher_folder(recipe, folder))
    return ReportData(
        title=recipe.name,
        recipe=dump_recipe(recipe),
        facts=data_facts(recipe, dataset, split),
        student=recipe.student.network,
        boxes=recipe.student.network == DETECTOR,
        sam=recipe.teacher.sam,
        scores=[ScoreRow.from_scores(method, scores) for method, scores in scored["methods"].items()],
        pseudo_labels=PseudoLabels.from_summary(scored["pseudo_labels"]),
        doubts=[
            Doubt(item["id"], "validation" if item["id"] in split.validation else "training", tuple(item["reasons"]))
            for item in scored["doubtful_labels"]
        ],
        curves=_curves(recipe, folder),
        router=_router(folder, dataset, split, teacher),
        operators=prior_names(teacher),
        examples=_examples(recipe, folder, dataset, split, teacher),
        stages=stage_times(folder),
        versions={"fewlabel": __version__, **{name: version(name) for name in LIBRARIES}},
        hardware=(folder.manifest("eval") or {}).get("machine", ""),
        notes=(METHOD_NOTE,),
        created=(folder.manifest("eval") or {}).get("date", ""),
    )


def data_facts(recipe: CommonRecipe, dataset: Dataset, split: Split) -> DataFacts:
    """Which images a run used for what."""
    total = len(split.train) + len(split.validation) + len(split.unlabelled)
    return DataFacts(
        name=dataset.name,
        labelled=len(split.train),
        validation=len(split.validation),
        unlabelled=len(split.unlabelled),
        test=len(split.test),
        fraction=recipe.split.fraction or round(len(split.labelled) / total, 4),
        seed=recipe.split.seed,
        targets=sum(len(dataset.labelled(id).instances) for id in split.train),
    )


def _curves(recipe: Recipe, folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    logs = {"teacher": folder.stage("teach") / LOG}
    if recipe.label.rounds > 1:
        logs["teacher, second round"] = teacher_folder(recipe, folder) / LOG
    for method in recipe.methods:
        logs[method] = student_folder(folder, method) / LOG
    return {name: read_log(path) for name, path in logs.items()}


def stage_times(folder: RunFolder) -> list[StageTime]:
    """Time and memory of the stages that are done."""
    done = [(stage, folder.manifest(stage)) for stage in folder.plan.stages]
    return [StageTime(stage, found["seconds"], found["peak_rss_mb"]) for stage, found in done if found is not None]


def spread(ids: tuple[str, ...], count: int) -> list[str]:
    """At most `count` ids at even distances, the same each time."""
    return [ids[i] for i in np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)] if ids else []


def _examples(
    recipe: Recipe, folder: RunFolder, dataset: Dataset, split: Split, teacher: ScalpelTeacher
) -> list[Example]:
    store = LabelStore(folder.stage("label") / LABELS)
    student = load_student(recipe, folder, "fewlabel")
    threshold = load_threshold(student, folder, "fewlabel")
    chosen = spread(split.unlabelled, UNLABELLED_EXAMPLES) + spread(split.test, TEST_EXAMPLES)
    return [example(id, dataset, store, teacher, student, threshold) for id in chosen]


def said(student: nn.Module, image: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """What a student says of an image, as an example holds it.

    Args:
        student: A trained student.
        image: float32 `(H, W)`, standardised.
        threshold: Of a student that gives boxes, the score above which one counts.

    Returns:
        Values of `Example` by name: the probability, or the boxes that count and their scores.
    """
    if not isinstance(student, Detector):
        return {"student": predict(student, image)}
    found = detect(student, image)
    counted = found.scores > threshold
    return {"boxes": found.boxes[counted], "box_scores": found.scores[counted]}


def example(
    id: str,
    dataset: Dataset,
    store: LabelStore,
    teacher: ScalpelTeacher,
    student: nn.Module,
    threshold: float = THRESHOLD,
) -> Example:
    """All intermediate results of one image; the pseudo-label only where the store has one. See `said` for the last."""
    image = dataset.image(id).normalised()
    target, weight = target_and_weight(store.get(id)) if id in store else (None, None)
    return Example(
        id=id,
        image=image,
        truth=dataset.labelled(id).instances.semantic() if dataset.has_mask(id) else None,
        priors=priors(teacher, image),
        teacher=transfer.predict(teacher, image).probability,
        target=target,
        weight=weight,
        **said(student, image, threshold),
    )


@torch.inference_mode()
def priors(teacher: ScalpelTeacher, image: np.ndarray) -> np.ndarray:
    """What the teacher's bank says of a standardised image `(H, W)`: float32 `(E, H, W)`, E may be 0."""
    return np.asarray(teacher.bank(torch.from_numpy(image)[None, None])[0].numpy())


def prior_names(teacher: ScalpelTeacher) -> tuple[str, ...]:
    """Names of the E responses of `priors`."""
    if isinstance(teacher.bank, OperatorBank):
        return teacher.bank.names
    return tuple(f"convolution {number}" for number in range(1, teacher.bank.channels + 1))


def teacher_folder(recipe: Recipe, folder: RunFolder) -> Path:
    """Where the teacher is that made the pseudo-labels: of two rounds the second one's."""
    return folder.stage("label") / TEACHER if recipe.label.rounds > 1 else folder.stage("teach")


def _router(folder: RunFolder, dataset: Dataset, split: Split, teacher: ScalpelTeacher) -> RouterWeights | None:
    """Mean gates over labelled images, and the entropy that the training logged; None for a teacher without router."""
    if teacher.adapter is None or not teacher.adapter.expert_names:
        return None
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for id in spread(split.train, ROUTER_IMAGES):
        # All tiles of an image in one forward pass: the adapter remembers the gates of the last one.
        transfer.predict(teacher, dataset.image(id).normalised(), "one", batch=ROUTER_TILES)
        for level, (image_gate, final_gate) in teacher.adapter.gates.items():
            seen.setdefault(str(level), []).append((image_gate.mean(0).numpy(), final_gate.mean(0).numpy()))
    levels = {
        level: (np.mean([gate for gate, _ in gates], axis=0).tolist(), np.mean([gate for _, gate in gates], 0).tolist())
        for level, gates in seen.items()
    }
    records = [record for record in read_log(folder.stage("teach") / LOG) if "gate_entropy" in record]
    entropy = [(record["step"], record["gate_entropy"]) for record in records]
    return RouterWeights(teacher.adapter.expert_names, levels, {"all levels": entropy} if entropy else {})
