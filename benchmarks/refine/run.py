"""What SAM's refinement does to pseudo-masks, with and without its gate, where the truth is known.

    python benchmarks/refine/run.py --data ../shared/data --fractions 0.05 0.1 0.3 --seeds 0 1

For each labelled share and seed a plain teacher of recipes/s4m-dsb2018.yaml (no structural distillation) labels the
training images that it was not trained on, whose masks only the comparison sees; every way of refining gets the very
same pseudo-masks. One record for each share and seed under results/; one that exists is not measured again without
--force. The test list is not touched. nano-SAM is the SAM.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from fewlabel.core.files import write_json
from fewlabel.core.progress import track
from fewlabel.core.provenance import commit, processor
from fewlabel.data.views import view_of, view_without_labels
from fewlabel.pipeline.instance_run import InstanceRun
from fewlabel.pipeline.instance_stages import class_count, trained_network
from fewlabel.recipe import InstanceRecipe, load_recipe, of_method
from fewlabel.s4m.batches import torch_generator
from fewlabel.s4m.pseudo import image_masks, pseudo_labels
from fewlabel.s4m.refine import RefineConfig, refine
from fewlabel.s4m.refine_gate import RefineStats, iou_change
from fewlabel.sam.families import load

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WAYS: dict[str, RefineConfig] = {
    "published": RefineConfig(choose="quality", gate=None),
    "no-gate": RefineConfig(gate=None),
    "gate": RefineConfig(),
    "gate-box": RefineConfig(box=True),
    "gate-three-draws": RefineConfig(draws=3),
}
"""Ways of refining by name; `gate` is the recipe's default."""
WORSE = 0.05  # loss of IoU from which a mask counts as spoilt, and gain from which one counts as mended


def teacher_run(data: Path, runs: Path, fraction: float, seed: int, extra: list[str]) -> InstanceRun:
    """A run whose teach stage is done: the plain teacher of a share and a seed."""
    changes = (
        f"data.root={(data / 'DSB2018').resolve()}",
        f"split.fraction={fraction}",
        f"seed={seed}",
        f"split.seed={seed}",
        "teach.similarity_weight=0",
        *extra,
    )
    file = HERE.parents[1] / "recipes" / "s4m-dsb2018.yaml"
    recipe = of_method(load_recipe(file, changes), InstanceRecipe, "The benchmark")
    run = InstanceRun(recipe, runs / f"{fraction:g}-seed{seed}")
    run.execute("teach")
    return run


def summary(changes: torch.Tensor, stats: RefineStats) -> dict[str, Any]:
    """Figures of one way: IoU with the truth before and after in percent, and shares of all pseudo-masks in percent."""
    before, after = changes.T
    return {
        "IoU_before": round(100 * float(before.mean()), 2),
        "IoU_after": round(100 * float(after.mean()), 2),
        "spoilt": round(100 * float((after < before - WORSE).float().mean()), 2),
        "mended": round(100 * float((after > before + WORSE).float().mean()), 2),
        "accepted": round(100 * stats.acceptance, 2),
        "dropped": stats.empty,
    }


@torch.no_grad()
def measure(run: InstanceRun, images: int) -> dict[str, Any]:
    """Refine one teacher's pseudo-masks in every way.

    Args:
        run: Its teach stage is done.
        images: Most images, from the first of the unlabelled ones.

    Returns:
        Number of images and pseudo-masks, and the figures of each way. A mask that was dropped counts with an IoU of 0.
    """
    network = trained_network(run.recipe, run.recipe.network, class_count(run.dataset), run.folder.stage("teach"))
    sam = load(run.recipe.sam).eval()
    changes: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    stats = dict.fromkeys(WAYS, RefineStats())
    ids = run.split.unlabelled[:images]
    for number, id in enumerate(track(ids, f"refine {run.path.name}")):
        sample = run.dataset.labelled(id)
        view, truth = view_without_labels(sample.image), view_of(sample).masks
        outputs = network(view.image[None])
        found = pseudo_labels(
            outputs.class_logits[0], outputs.mask_logits[0], view.size, view.content, run.recipe.student.filter
        )
        if not len(found):
            continue
        before = image_masks(found, view.size, view.content)
        for way, config in WAYS.items():
            refined = refine(sam, view, found, torch_generator(run.recipe.seed, number, "refinement"), config)
            after = torch.zeros_like(before)
            after[refined.kept] = refined.masks
            changes[way].append(iou_change(before, after, truth))
            stats[way] = stats[way] + refined.stats
    count = stats["gate"].count
    ways = {way: summary(torch.cat(parts), stats[way]) for way, parts in changes.items()} if count else {}
    return {"images": len(ids), "pseudo_masks": count, "ways": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of DSB2018's folder")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=60, help="most images of each cell")
    parser.add_argument("--runs", type=Path, default=Path("runs/refine"), help="where the run folders go")
    parser.add_argument("--set", action="append", default=[], help="further changes to the recipe")
    parser.add_argument("--force", action="store_true", help="measure cells anew that have a record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for fraction in options.fractions:
        for seed in options.seeds:
            path = RESULTS / f"DSB2018-{fraction:g}-seed{seed}.json"
            if path.is_file() and not options.force:
                continue
            run = teacher_run(options.data, options.runs, fraction, seed, options.set)
            began = time.perf_counter()
            found = measure(run, options.images)
            record = {
                "benchmark": "refine",
                "dataset": "DSB2018",
                "fraction": fraction,
                "seed": seed,
                "sam": "nano-SAM",
                **found,
                "seconds": round(time.perf_counter() - began, 1),
                "device": f"cpu-{os.cpu_count()}",
                "machine": processor(),
                "torch": torch.__version__,
                "commit": commit(HERE),
                "date": (run.folder.manifest("teach") or {})["date"],
                "recipe": run.recipe.model_dump(mode="json") | {"data": {"root": "DSB2018"}},
            }
            write_json(path, record)
            print(fraction, seed, record["pseudo_masks"], record["ways"], flush=True)


if __name__ == "__main__":
    main()
