"""The proof of the s4m recipe: all parts, each part alone, none of them, and all labels; one record per cell.

    python benchmarks/s4m/run.py --data ../shared/data --grid cpu --jobs 2
    python benchmarks/s4m/run.py --data ../shared/data --grid full --device cuda
    python benchmarks/s4m/run.py --list                        # which cells have a record, and which have not

Every cell is recipes/s4m-dsb2018.yaml or recipes/s4m-objects.yaml with the changes of grid.py: same split, same
network, same number of the student's steps for all methods of a seed. Cells that share a teacher train it once. A cell
that has a record is not measured again; one that was killed goes on where it was. Nothing is chosen by a test list.

The set `objects` is rendered here: 2,000 training and 300 test scenes of 8 classes with heavy occlusion.
"""

import argparse
import math
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grid import GUIDED, Cell, cells  # noqa: E402

from cells import alone, carry_out, changes_of, chosen, measured, options_of, shared  # noqa: E402
from fewlabel.core.files import read_json, write_json  # noqa: E402
from fewlabel.data.synth.objects import ObjectsConfig  # noqa: E402
from fewlabel.data.synth.objects_coco import write_coco_dataset  # noqa: E402
from fewlabel.pipeline.instance_run import InstanceRun  # noqa: E402
from fewlabel.pipeline.instance_scoring import load_network  # noqa: E402
from fewlabel.pipeline.instance_stages import class_count, score  # noqa: E402
from fewlabel.recipe import InstanceRecipe, load_recipe, of_method  # noqa: E402

HERE = Path(__file__).parent
RECIPES = {"DSB2018": "s4m-dsb2018.yaml", "objects": "s4m-objects.yaml"}
SPLITS = {"DSB2018": "published-400-100", "objects": "rendered-2000-300"}
FIGURES = ("AP", "AP50", "AP75", "boundary_AP")
TRAINING, TEST, CLASSES, SEED = 2000, 300, 8, 20
CROWDED = ObjectsConfig(styles=(1.0, 0.0, 0.0, 0.0), objects=(8, 30), radius=(6.0, 40.0), parts=0.0)
"""Generic scenes without parts, of up to thirty objects that cover each other."""


def rendered(folder: Path) -> Path:
    """The data set `objects` in COCO's layout, rendered when it is not there yet."""
    with alone(folder):
        if not (folder / "annotations").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            write_coco_dataset(folder, TRAINING + TEST, SEED, classes=CLASSES, config=CROWDED)
            whole = read_json(folder / "annotations.json")
            (folder / "annotations.json").unlink()
            ids = [image["id"] for image in whole["images"]]
            for part, wanted in (("train", set(ids[:TRAINING])), ("test", set(ids[TRAINING:]))):
                images = [image for image in whole["images"] if image["id"] in wanted]
                annotations = [item for item in whole["annotations"] if item["image_id"] in wanted]
                content = whole | {"images": images, "annotations": annotations}
                write_json(folder / "parts" / f"instances_{part}.json", content)
            (folder / "parts").rename(folder / "annotations")
    return folder


def changes(cell: Cell, root: Path, extra: tuple[str, ...]) -> tuple[str, ...]:
    """What a cell changes in the recipe."""
    compared = "" if cell.method in GUIDED else cell.method
    return (*changes_of(cell, root), f"compare=[{compared}]", *GUIDED.get(cell.method, ()), *extra)


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
    root = rendered(runs / "objects") if cell.dataset == "objects" else data / cell.dataset
    base = runs / f"{cell.dataset}-{cell.fraction:g}-seed{cell.seed}"
    recipe = of_method(
        load_recipe(HERE.parents[1] / "recipes" / RECIPES[cell.dataset], changes(cell, root, extra)),
        InstanceRecipe,
        "The benchmark",
    )
    run = InstanceRun(recipe, base / cell.method, device=device)
    folder = run.folder
    if cell.method in GUIDED:
        teacher = "plain" if recipe.teach.similarity_weight == 0 else "structure"
        shared(run, base / f"teacher-{teacher}", ("check", "split", "teach"), folder)
        run.execute("train")
        parts, network = ["teach", "train"], load_network(recipe, folder, "fewlabel", class_count(run.dataset))
    else:
        run.execute("baselines")
        parts, network = ["baselines"], load_network(recipe, folder, cell.method, class_count(run.dataset))
    scores = score(network, run.dataset, run.split.test, recipe.eval.side).compute()
    manifests = [folder.manifest(stage) or {} for stage in parts]  # type: ignore[arg-type]
    metrics = {name: scores[name] for name in FIGURES}  # type: ignore[literal-required]
    record = {
        "benchmark": "s4m",
        "dataset": cell.dataset,
        "split": SPLITS[cell.dataset],
        "fraction": 1.0 if cell.method == "all-labels" else cell.fraction,
        "seed": cell.seed,
        "method": cell.method,
        "student": recipe.network.name,
        "steps": recipe.student.steps,
        "metrics": {name: round(value, 2) if math.isfinite(value) else None for name, value in metrics.items()},
        **measured(manifests, device, Path(__file__)),
        "recipe": recipe.model_dump(mode="json") | {"data": {"root": cell.dataset}},
    }
    if cell.method in GUIDED and recipe.asks_sam:
        record["sam"] = "nano-SAM" if recipe.sam == "nano" else recipe.sam
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of(parser, Path("runs/s4m"))
    parser.add_argument("--grid", choices=["cpu", "full"], default="cpu")
    options = parser.parse_args()
    options.results = options.results or HERE / "results"
    wanted = chosen(
        cells(options.grid),
        dataset=options.datasets,
        fraction=options.fractions,
        seed=options.seeds,
        method=options.methods,
    )

    def record(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        cell = Cell(**values)
        return cell.name, measure(cell, options.data, options.runs, options.device, tuple(options.set))

    carry_out(Path(__file__), options, wanted, record)


if __name__ == "__main__":
    main()
