"""The proof of the scalpel recipe: fewlabel beside its controls and without each of its parts, one record per cell.

    python benchmarks/scalpel/run.py --data ../shared/data --grid cpu --jobs 2
    python benchmarks/scalpel/run.py --data ../shared/data --grid full --students dnanet mshnet --device cuda
    python benchmarks/scalpel/run.py --data ../shared/data --grid boxes     # records go to benchmarks/boxes/results
    python benchmarks/scalpel/run.py --list                    # which cells have a record, and which have not

Every cell is recipes/scalpel-sirst.yaml (of boxes recipes/scalpel-boxes.yaml) with the changes of grid.py: same split,
same student, same number of steps on real images for all methods of a seed. Cells that share a teacher or a student's
start train it once. A cell that has a record is not measured again; one that was killed goes on where it was. Nothing
is chosen by a test list: the teacher's threshold is calibrated on the validation part of the labelled share, all else
stands in the recipe.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grid import METHODS, STUDENT_METHODS, TEACHER_METHODS, Cell, cells

from fewlabel.core.files import write_json
from fewlabel.core.provenance import commit, processor
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.metrics.scores import evaluate
from fewlabel.pipeline.boxes import boxed_pairs, detections, score_boxes
from fewlabel.pipeline.folder import RunFolder, Stage
from fewlabel.pipeline.run import Run
from fewlabel.pipeline.scoring import labelled_pairs, load_threshold, predictions
from fewlabel.pipeline.trained import load_student
from fewlabel.recipe import load_recipe
from fewlabel.students.detector.network import DETECTOR, Detector

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
RESULTS = {"cpu": HERE / "results", "full": HERE / "results", "boxes": HERE.parent / "boxes" / "results"}
SPLIT = "dnanet-50-50"
FIGURES = ("IoU", "nIoU", "Pd", "Fa", "hIoU")
BOX_FIGURES = ("AP50", "AP", "AR50", "precision", "recall")


def changes(cell: Cell, data: Path, extra: tuple[str, ...]) -> tuple[str, ...]:
    """What a cell changes in the recipe."""
    return (
        f"data.root={json.dumps(str((data / cell.dataset).resolve()))}",
        f"split.fraction={cell.fraction}",
        f"seed={cell.seed}",
        f"split.seed={cell.seed}",
        f"student.network={cell.student}",
        f"student.compare=[{cell.method if cell.method in STUDENT_METHODS else ''}]",
        f"name={cell.name}",
        *TEACHER_METHODS.get(cell.method, ()),
        *extra,
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def shared(run: Run, folder: Path, stages: tuple[Stage, ...], target: RunFolder) -> None:
    """Do stages in a folder that several cells use, and copy them to a cell's."""
    with alone(folder):
        Run(run.recipe, folder, device=run.device).execute(stages[-1])
        for stage in stages:
            if target.manifest(stage) is None:
                shutil.copytree(folder / stage, target.stage(stage), dirs_exist_ok=True)


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
    file = RECIPES / f"scalpel-{'boxes' if cell.student == DETECTOR else 'sirst'}.yaml"
    recipe = load_recipe(file, changes(cell, data, extra))
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
        "seconds": round(sum(manifest["seconds"] for manifest in manifests), 1),
        "peak_rss_mb": max(manifest["peak_rss_mb"] for manifest in manifests),
        "device": f"cpu-{os.cpu_count()}" if device == "cpu" else device,
        "machine": processor(),
        "torch": manifests[0]["machine"].rsplit(" ", 1)[-1],
        "commit": commit(HERE),
        "date": manifests[0]["date"],
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


def run_cell(cell: Cell, options: argparse.Namespace) -> int:
    """Measure one cell in a process of its own, with one thread, and write its record."""
    path = options.results / f"{cell.name}.json"
    if path.is_file() and not options.force:
        return 0
    log = options.runs / "logs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__)), "--data", str(options.data), "--runs", str(options.runs)]
    command += ["--results", str(options.results), "--device", options.device, "--cell", json.dumps(vars(cell))]
    for change in options.set:
        command += ["--set", change]
    with log.open("a") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    print(f"{cell.name}: {'done' if status == 0 else f'ended with status {status}, see {log}'}", flush=True)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets' folders")
    parser.add_argument("--grid", choices=["cpu", "boxes", "full"], default="cpu")
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--fractions", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--students", nargs="+")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/scalpel"), help="where the run folders go")
    parser.add_argument("--results", type=Path, help="where the records go; the benchmark's results by default")
    parser.add_argument("--device", default="cpu", help="where the networks train and label")
    parser.add_argument("--set", action="append", default=[], help="further changes to the recipe")
    parser.add_argument("--force", action="store_true", help="measure cells anew that have a record")
    parser.add_argument("--list", action="store_true", help="only say which cells have a record")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # one cell as JSON, in this very process
    options = parser.parse_args()
    options.results = options.results or RESULTS[options.grid]
    if options.cell:
        import torch

        torch.set_num_threads(1)
        cell = Cell(**json.loads(options.cell))
        record = measure(cell, options.data, options.runs, options.device, tuple(options.set))
        write_json(options.results / f"{cell.name}.json", record)
        return
    wanted = [
        cell
        for cell in cells(options.grid)
        for chosen, value in [
            (
                (options.datasets, options.fractions, options.seeds, options.students, options.methods),
                (cell.dataset, cell.fraction, cell.seed, cell.student, cell.method),
            )
        ]
        if all(names is None or item in names for names, item in zip(chosen, value, strict=True))
    ]
    if options.list:
        for cell in wanted:
            print(f"{'recorded' if (options.results / f'{cell.name}.json').is_file() else 'not run ':9s} {cell.name}")
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        sys.exit(max(pool.map(lambda cell: run_cell(cell, options), wanted), default=0))


if __name__ == "__main__":
    main()
