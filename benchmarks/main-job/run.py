"""The main job on real infrared images: fewlabel beside its controls, one JSON record for each method and seed.

    python benchmarks/main-job/run.py --data ../shared/data/NUAA-SIRST --seeds 0 1 --jobs 2

Each seed is one run of recipes/scalpel-sirst.yaml with its own split, initial weights and crops. A seed whose records
exist is not run again; one that was killed goes on. All methods train the same network for the same number of steps.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fewlabel.core.files import read_json, write_json
from fewlabel.core.provenance import commit
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.trained import student_folder
from fewlabel.recipe import Recipe, load_recipe
from fewlabel.training.log import LOG

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "recipes" / "scalpel-sirst.yaml"
SPLITS = {"NUAA-SIRST": "dnanet-50-50", "NUDT-SIRST": "dnanet-50-50"}


def record_path(dataset: str, method: str, seed: int) -> Path:
    """File of one cell."""
    return HERE / "results" / f"{dataset}-{method}-seed{seed}.json"


def overrides(data: Path, seed: int) -> tuple[str, ...]:
    """What a seed changes in the recipe."""
    return (
        f"data.root={json.dumps(str(data.resolve()))}",
        f"seed={seed}",
        f"split.seed={seed}",
        f"name=main-job-{data.name}-{seed}",
    )


def seconds_of(folder: RunFolder, method: str) -> float:
    """Training time of a method's student alone, from the last line of its log."""
    lines = (student_folder(folder, method) / LOG).read_text().splitlines()
    return max(json.loads(line).get("seconds", 0.0) for line in lines)


def rounded(scores: dict[str, float | None]) -> dict[str, float | None]:
    """The four scores to two decimals; one that is undefined stays so."""
    return {key: None if scores[key] is None else round(scores[key], 2) for key in ("IoU", "nIoU", "Pd", "Fa")}


def write_records(recipe: Recipe, folder: RunFolder, code: str, device: str) -> None:
    """One record per method of a finished run."""
    scored = read_json(folder.stage("eval") / "scores.json")
    seconds = {stage: (folder.manifest(stage) or {}).get("seconds", 0.0) for stage in ("teach", "label", "synthetic")}
    for method, scores in scored["methods"].items():
        trained = folder.manifest("train" if method == "fewlabel" else "baselines") or {}
        before = {"fewlabel": sum(seconds.values()), "synthetic-pretrained": seconds["synthetic"]}.get(method, 0.0)
        pseudo = scored["pseudo_labels"]
        record = {
            "benchmark": "main-job",
            "dataset": recipe.data.root.name,
            "split": SPLITS.get(recipe.data.root.name, "own"),
            "fraction": 1.0 if method == "all-labels" else recipe.split.fraction,
            "seed": recipe.seed,
            "method": method,
            "student": recipe.student.network,
            "steps": recipe.student.training.steps,
            "metrics": rounded(scores),
            "matching": scores["matching"],
            "seconds": round(seconds_of(folder, method) + before, 1),
            "peak_rss_mb": trained["peak_rss_mb"],
            "device": f"cpu-{os.cpu_count()}" if device == "cpu" else device,
            "machine": trained["machine"],
            "torch": trained["machine"].rsplit(" ", 1)[-1],
            "commit": code,
            "date": trained["date"],
            "recipe": recipe.model_dump(mode="json") | {"data": {"format": "sirst", "root": recipe.data.root.name}},
        }
        if method == "fewlabel":
            record["pseudo_labels"] = rounded(pseudo["truth"]) | {
                "coverage": pseudo["coverage"],
                "images": pseudo["images"],
            }
            record["sam"] = "nano-SAM" if recipe.teacher.sam == "nano" else recipe.teacher.sam
        write_json(record_path(recipe.data.root.name, method, recipe.seed), record)


def run_seed(data: Path, seed: int, until: str, runs: Path, device: str, extra: tuple[str, ...]) -> int:
    """Run one seed in a process of its own, with one thread, and write its records."""
    recipe = load_recipe(RECIPE, overrides(data, seed) + extra)
    if all(record_path(data.name, method, seed).is_file() for method in recipe.methods):
        print(f"{data.name} seed {seed}: recorded before")
        return 0
    out = runs / f"{data.name}-seed{seed}"
    command = [sys.executable, "-m", "fewlabel.cli", until, str(RECIPE), "--out", str(out), "--threads", "1"]
    command += ["--device", device]
    for change in overrides(data, seed) + extra:
        command += ["--set", change]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stdout.log").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    if status == 0 and until == "report":
        write_records(recipe, RunFolder(out), commit(HERE), device)
    print(f"{data.name} seed {seed}: {'done' if status == 0 else f'ended with status {status}, see {out}/stdout.log'}")
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side, one thread each")
    parser.add_argument("--until", default="report", help="stop after a stage, say baselines; records need report")
    parser.add_argument("--runs", type=Path, default=Path("runs/main-job"), help="where the run folders go")
    parser.add_argument("--device", default="cpu", help="where the networks train and label")
    parser.add_argument("--set", action="append", default=[], help="further changes to the recipe")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(run_seed, options.data, seed, options.until, options.runs, options.device, tuple(options.set))
            for seed in options.seeds
        ]
        sys.exit(max(job.result() for job in jobs))


if __name__ == "__main__":
    main()
