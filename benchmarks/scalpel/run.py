"""The proof of the scalpel recipe: fewlabel beside its controls and without each of its parts, one record per cell.

    python benchmarks/scalpel/run.py --data ../shared/data --grid cpu --jobs 2
    python benchmarks/scalpel/run.py --data ../shared/data --grid full --students dnanet mshnet --device cuda
    python benchmarks/scalpel/run.py --data ../shared/data --grid boxes     # records go to benchmarks/boxes/results
    python benchmarks/scalpel/run.py --list                    # which cells have a record, and which have not

Every cell is recipes/scalpel-sirst.yaml, of NUDT-SIRST recipes/scalpel-nudt.yaml, of boxes recipes/scalpel-boxes.yaml,
with the changes of grid.py: same split, same student, same number of steps on real images for all methods of a seed.
Cells that share a teacher or a student's start train it once. A cell that has a record is not measured again; one that
was killed goes on where it was. Nothing is chosen by a test list: the teacher's threshold is calibrated on the
validation part of the labelled share, all else stands in the recipe.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grid import STUDENT_METHODS, TEACHER_METHODS, Cell, cells  # noqa: E402

from cells import carry_out, changes_of, chosen, measured, options_of, shared  # noqa: E402
from fewlabel.labels.store import LabelStore, target_and_weight  # noqa: E402
from fewlabel.metrics.scores import evaluate  # noqa: E402
from fewlabel.pipeline.boxes import boxed_pairs, detections, score_boxes  # noqa: E402
from fewlabel.pipeline.run import Run  # noqa: E402
from fewlabel.pipeline.scoring import labelled_pairs, load_threshold, predictions  # noqa: E402
from fewlabel.pipeline.trained import load_student  # noqa: E402
from fewlabel.recipe import Recipe, load_recipe, of_method  # noqa: E402
from fewlabel.students.detector.network import DETECTOR, Detector  # noqa: E402

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
RESULTS = {"cpu": HERE / "results", "full": HERE / "results", "boxes": HERE.parent / "boxes" / "results"}
NAMES = {"NUAA-SIRST": "sirst", "NUDT-SIRST": "nudt"}  # of the recipe for each data set
SPLIT = "dnanet-50-50"
FIGURES = ("IoU", "nIoU", "Pd", "Fa", "hIoU")
BOX_FIGURES = ("AP50", "AP", "AR50", "precision", "recall")


def changes(cell: Cell, data: Path, extra: tuple[str, ...]) -> tuple[str, ...]:
    """What a cell changes in the recipe."""
    return (
        *changes_of(cell, data / cell.dataset),
        f"student.network={cell.student}",
        f"student.compare=[{cell.method if cell.method in STUDENT_METHODS else ''}]",
        *TEACHER_METHODS.get(cell.method, ()),
        *extra,
    )


def measure(cell: Cell, data: Path, runs: Path, device: str, extra: tuple[str, ...]) -> dict[str, Any]:
    """Train and score one cell.

    Args:
        cell: What to measure.
        data: Folder of the data sets.
        runs: Where the run folders go.
        device: Where the networks train.
        extra: Further changes to the recipe.

    Returns:
        The record.
    """
    base = runs / f"{cell.dataset}-{cell.fraction:g}-seed{cell.seed}"
    file = RECIPES / f"scalpel-{'boxes' if cell.student == DETECTOR else NAMES[cell.dataset]}.yaml"
    recipe = of_method(load_recipe(file, changes(cell, data, extra)), Recipe, "The benchmark")
    run = Run(recipe, base / f"{cell.method}-{cell.student}", device=device)
    folder, parts = run.folder, ["baselines"]
    if cell.method in TEACHER_METHODS:
        shared(run, base / f"teacher-{cell.method}", ("check", "split", "teach", "label"), folder)
        parts = ["teach", "label", "train"]
    if cell.method not in ("labels-only", "all-labels"):
        parts.append("synthetic")
    shared(run, base / f"start-{cell.student}", ("synthetic",), folder)
    run.execute("train" if cell.method in TEACHER_METHODS else "baselines")

    metrics, matching = score(run, cell.method if cell.method in STUDENT_METHODS else "fewlabel")
    manifests = [folder.manifest(stage) or {} for stage in parts]  # type: ignore[arg-type]
    record = {
        "benchmark": "boxes" if cell.student == DETECTOR else "scalpel",
        "dataset": cell.dataset,
        "split": SPLIT,
        "fraction": 1.0 if cell.method == "all-labels" else cell.fraction,
        "seed": cell.seed,
        "method": cell.method,
        "student": cell.student,
        "steps": recipe.student.training.steps,
        "metrics": metrics,
        **matching,
        **measured(manifests, device, Path(__file__)),
        "recipe": recipe.model_dump(mode="json") | {"data": {"format": "sirst", "root": cell.dataset}},
    }
    if cell.method in TEACHER_METHODS:
        record["pseudo_labels"] = pseudo_quality(run)
        record["sam"] = "nano-SAM" if recipe.teacher.sam == "nano" else recipe.teacher.sam
    return record


def score(run: Run, method: str) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics of a run's student on the test list, and by which matching those of masks are."""
    student = load_student(run.recipe, run.folder, method)
    if isinstance(student, Detector):
        found = detections(student, boxed_pairs(run.dataset, run.split.test))
        boxes = score_boxes(found, load_threshold(student, run.folder, method))
        return {name: round(boxes[name], 2) for name in BOX_FIGURES}, {}
    scores = evaluate(predictions(student, labelled_pairs(run.dataset, run.split.test)), matching="nearest")
    metrics = {name: round(scores[name], 2) for name in FIGURES}  # type: ignore[literal-required]
    return metrics, {"matching": scores["matching"]}


def pseudo_quality(run: Run) -> dict[str, Any]:
    """How good a run's pseudo-labels are on the unlabelled training images, against the masks that it did not see."""
    store = LabelStore(run.folder.stage("label") / "labels")
    known = [id for id in run.split.unlabelled if run.dataset.has_mask(id)]
    pairs = ((target_and_weight(store.get(id))[0], run.dataset.labelled(id).instances.semantic()) for id in known)
    scores = evaluate(pairs, matching="nearest")
    counts = store.summary()
    return {name: round(scores[name], 2) for name in FIGURES} | {  # type: ignore[literal-required]
        "coverage": counts["coverage"],
        "images": len(known),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of(parser, Path("runs/scalpel"))
    parser.add_argument("--grid", choices=["cpu", "boxes", "full"], default="cpu")
    parser.add_argument("--students", nargs="+")
    options = parser.parse_args()
    options.results = options.results or RESULTS[options.grid]
    wanted = chosen(
        cells(options.grid),
        dataset=options.datasets,
        fraction=options.fractions,
        seed=options.seeds,
        student=options.students,
        method=options.methods,
    )

    def record(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        cell = Cell(**values)
        return cell.name, measure(cell, options.data, options.runs, options.device, tuple(options.set))

    carry_out(Path(__file__), options, wanted, record)


if __name__ == "__main__":
    main()
