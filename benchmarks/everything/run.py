"""Segment everything without a grid, against SAM's automatic procedure on the same weights, decoder and batches.

    python benchmarks/everything/run.py [--model nano] [--images 60] [--views whole|tiles] [--force]

Images of the published training list of NUAA-SIRST (folder FEWLABEL_DATA, default ../shared/data), drawn with a fixed
seed; test images are never read. On each image, one after the other in one thread:

* `control`: prior peaks with region growing in the image, no SAM at all;
* `peaks`: `segment_everything` at the prior peaks, one point each;
* `peaks+boxes`: the same with the box of the grown region beside the point;
* `peaks, defaults`: `peaks` with the thresholds that `segment_everything` has by itself, lower than the calibrated
  ones: few proposals need less sifting;
* `grid, loose`: `automatic_masks`, 32 x 32 points, with the thresholds below;
* `grid, published`: `automatic_masks` with the published thresholds 0.88 and 0.95, on every sixth image (an option),
  because the time is the same and a small model's predicted IoU and stability may never reach them.

Nothing is chosen on NUAA-SIRST. The loose thresholds of predicted IoU and of stability are low quantiles (`QUANTILES`)
over the masks that a central click gets on true targets of rendered scenes, for this model; all methods but the last
use the same two. With `--views whole` each image is squeezed into the model's frame, as SAM does; with `tiles` all look
at overlapping tiles of the frame's size, and the grid keeps its 1024 points.

A target is found when a kept mask has an IoU of at least 0.5 (or 0.25) with it, or when a kept mask's centroid is less
than 3 pixels from its own. `masks` counts kept masks per image, `small_masks` those of at most 1 % of the image, which
is what one who looks for small targets would keep of either. Suppression is greedy by predicted IoU, so raising that
threshold afterwards equals having asked for it: `curve` lists small masks and recall at the quantiles, and
`grid_at_our_recall` is the fewest small masks per image with which the loose grid finds as many targets as `peaks`,
`grid_at_boxes_recall` as many as `peaks+boxes`.

Writes results/NUAA-SIRST-<model>-<views>.json; a set that has one of the same weights is not measured again without
--force. Times are processor seconds of this process, which a busy machine blurs little; wall seconds stand beside them.
"""

import argparse
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from fewlabel.core.files import read_json, sha256_file, write_json  # noqa: E402
from fewlabel.core.masks import components  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.core.radiometry import standardise, to_unit  # noqa: E402
from fewlabel.core.suppress import suppress_masks  # noqa: E402
from fewlabel.core.types import Instances  # noqa: E402
from fewlabel.data.synth import infrared  # noqa: E402
from fewlabel.data.tiles import tiles  # noqa: E402
from fewlabel.metrics.targets import DISTANCE, centroids  # noqa: E402
from fewlabel.sam.everything import View, automatic_masks, segment_everything  # noqa: E402
from fewlabel.sam.families import load  # noqa: E402
from fewlabel.sam.nano import NANO_FOLDER  # noqa: E402
from fewlabel.sam.promptable import PromptableSegmenter  # noqa: E402
from fewlabel.sam.prompters import grow, with_boxes  # noqa: E402
from fewlabel.sam.prompts import central_point  # noqa: E402
from fewlabel.scalpel.bank import OperatorBank  # noqa: E402
from fewlabel.scalpel.propose import prior_peaks  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
NAME = "NUAA-SIRST"
RENDERED = 8_200_000  # first seed of the rendered scenes; pre-training seeds are pairs (seed, step)
QUANTILES = (0.02, 0.05, 0.1, 0.25, 0.5)  # of true targets' masks that a threshold may lose; the first is the loosest
SMALL = 0.01  # share of the image
GRID, OURS, BOXED, SHIPPED = "grid, loose", "peaks", "peaks+boxes", "peaks, defaults"


class Found(NamedTuple):
    """What one method said about one image: kept masks with scores, seconds and what was dropped."""

    instances: Instances
    cpu: float
    wall: float
    dropped: dict[str, int]


def unit(grey: np.ndarray) -> torch.Tensor:
    """A raw infrared image (H, W) as SAM is given it: float32 (1, H, W) in (0, 1)."""
    return torch.from_numpy(to_unit(standardise(grey)))[None]


@torch.inference_mode()
def calibrate(segmenter: PromptableSegmenter, scenes: int) -> np.ndarray:
    """`QUANTILES` (Q, 2) of predicted IoU and stability over the masks of true targets on rendered scenes."""
    seen = []
    for index in range(scenes):
        scene = infrared.render(np.random.default_rng(RENDERED + index), 256)
        embedding = segmenter.encode(unit(scene.radiance.astype(np.float32))[None])
        for number in range(1, int(scene.labels.max()) + 1):
            click = torch.from_numpy(central_point(scene.labels == number))[None, None, None]
            logits, quality = segmenter.decode(embedding, click)
            best = logits[0, 0, int(quality[0, 0].argmax())]
            seen.append([float(quality.max()), float((best > 1).sum() / (best > -1).sum().clamp_min(1))])
    return np.quantile(np.array(seen), QUANTILES, axis=0)


def views_of(size: tuple[int, int], kind: str, side: int) -> list[View] | None:
    """Overlapping tiles of the frame's size that cover an image, or None for the whole image."""
    if kind == "whole":
        return None
    height, width = size
    return [(x, y, min(x + side, width), min(y + side, height)) for y, x in tiles(height, width, side, side // 4)]


def timed(method: Callable[[Counter[str]], Instances]) -> Found:
    dropped: Counter[str] = Counter()
    cpu, wall = time.process_time(), time.perf_counter()
    instances = method(dropped)
    return Found(instances, time.process_time() - cpu, time.perf_counter() - wall, dict(dropped))


def methods(
    segmenter: PromptableSegmenter, grey: np.ndarray, kind: str, loose: tuple[float, float]
) -> dict[str, Callable[[Counter[str]], Instances]]:
    """Every method as a function of the counts that it adds to; each starts from the raw image."""
    views = views_of(grey.shape, kind, segmenter.frame)  # type: ignore[arg-type]
    options: dict[str, Any] = {"min_quality": loose[0], "min_stability": loose[1], "views": views}
    bank = OperatorBank()

    def control(_: Counter[str]) -> Instances:
        found = prior_peaks(grey, bank=bank).proposals
        grown = Instances.from_masks(
            np.array([grow(grey, point) for point in found.centres], bool).reshape(-1, *grey.shape), source="sam"
        )
        return grown.select(suppress_masks(grown.rles, grown.boxes, found.strengths, 0.5))

    def boxed(dropped: Counter[str]) -> Instances:
        proposals = with_boxes(grey, prior_peaks(grey, bank=bank).proposals)
        return segment_everything(segmenter, unit(grey), proposals, dropped=dropped, **options)

    return {
        "control": control,
        OURS: lambda dropped: segment_everything(
            segmenter, unit(grey), prior_peaks(grey, bank=bank).proposals, dropped=dropped, **options
        ),
        BOXED: boxed,
        SHIPPED: lambda dropped: segment_everything(
            segmenter, unit(grey), prior_peaks(grey, bank=bank).proposals, dropped=dropped, views=views
        ),
        GRID: lambda dropped: automatic_masks(segmenter, unit(grey), dropped=dropped, **options),
        "grid, published": lambda dropped: automatic_masks(segmenter, unit(grey), views=views, dropped=dropped),
    }


def judge(found: Instances, labels: np.ndarray, count: int) -> dict[str, Any]:
    """Scores and sizes of the kept masks, and each target's IoU and centroid distance with each of them."""
    truth = Instances.from_components(labels, np.arange(1, count + 1)).masks()
    centres, areas = centroids(labels, count)
    overlap, gaps = np.zeros((count, len(found))), np.zeros((count, len(found)))
    for index, mask in enumerate(found.masks()):
        shared = (truth & mask).sum((1, 2))
        overlap[:, index] = shared / (areas + mask.sum() - shared)
        gaps[:, index] = np.hypot(*(centres - np.argwhere(mask).mean(0)).T)
    small = found.areas() <= SMALL * labels.size
    return {"scores": found.scores, "small": small, "overlap": overlap, "gaps": gaps}


def recall(rows: list[dict[str, Any]], hit: Callable[[dict[str, Any]], np.ndarray]) -> float:
    """Percent of targets that have a kept mask for which `hit` (T, N) is true."""
    per_target = np.concatenate([hit(row).any(axis=1) for row in rows])
    return round(100.0 * float(per_target.mean()), 1)


def summary(rows: list[dict[str, Any]], runs: list[Found]) -> dict[str, Any]:
    """What a method needed and found over its images."""
    dropped: Counter[str] = Counter()
    for run in runs:
        dropped.update(run.dropped)
    return {
        "images": len(rows),
        "cpu_seconds": round(float(np.mean([run.cpu for run in runs])), 4),
        "wall_seconds": round(float(np.mean([run.wall for run in runs])), 4),
        "masks": round(float(np.mean([len(row["scores"]) for row in rows])), 2),
        "small_masks": round(float(np.mean([row["small"].sum() for row in rows])), 2),
        "recall_IoU50": recall(rows, lambda row: row["overlap"] >= 0.5),
        "recall_IoU25": recall(rows, lambda row: row["overlap"] >= 0.25),
        "recall_centroid": recall(rows, lambda row: row["gaps"] < DISTANCE),
        "recall_IoU50_small": recall(rows, lambda row: (row["overlap"] >= 0.5) & row["small"]),
        "dropped": dict(dropped),
    }


def at_threshold(rows: list[dict[str, Any]], threshold: float) -> dict[str, float]:
    """Small masks per image and percent of targets found at IoU 0.5 when predicted IoU must reach `threshold`."""
    kept = [row["small"] & (row["scores"] >= threshold) for row in rows]
    share = np.concatenate([((r["overlap"] >= 0.5) & k).any(axis=1) for r, k in zip(rows, kept, strict=True)])
    return {
        "threshold": round(float(threshold), 3),
        "small_masks": round(float(np.mean([k.sum() for k in kept])), 2),
        "recall_IoU50": round(100.0 * float(share.mean()), 1),
    }


def masks_at_recall(rows: list[dict[str, Any]], wanted: float) -> dict[str, float] | None:
    """Fewest small masks per image with which a method finds at least `wanted` percent, or None if it never does."""
    scores = np.concatenate([row["scores"] for row in rows])
    for threshold in np.unique(np.quantile(scores, np.linspace(0, 1, 201)))[::-1] if len(scores) else ():
        here = at_threshold(rows, float(threshold))
        if here["recall_IoU50"] >= wanted:
            return here
    return None


def paired_ratio(runs: dict[str, dict[str, Found]], slow: str, fast: str, what: str) -> float:
    """Time of one method over another's, on the images that both have seen."""
    both = runs[slow].keys() & runs[fast].keys()
    times = [sum(getattr(runs[name][image], what) for image in both) for name in (slow, fast)]
    return round(times[0] / times[1], 2)


def peak_rss() -> int:
    """Highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read(id_: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Grey image float32 (H, W), label map and number of targets."""
    pixels = np.asarray(Image.open(DATA / NAME / "images" / f"{id_}.png")).astype(np.float32)
    mask = np.asarray(Image.open(DATA / NAME / "masks" / f"{id_}.png").convert("L")) > 127
    return (pixels if pixels.ndim == 2 else pixels[..., :3].mean(-1)), *components(mask)


def measure(segmenter: PromptableSegmenter, images: int, kind: str, every: int, scenes: int) -> dict[str, Any]:
    """Run every method on every image; the largest image first, cheap methods before the grid, for the peak memory."""
    ids = (DATA / NAME / "img_idx" / f"train_{NAME}.txt").read_text(encoding="utf-8").split()
    chosen = sorted(np.random.default_rng(0).permutation(ids)[:images])
    samples = sorted(((id_, *read(id_)) for id_ in chosen), key=lambda sample: -sample[1].size)
    quantiles = calibrate(segmenter, scenes)
    loose = float(quantiles[0, 0]), float(quantiles[0, 1])
    print(f"loose thresholds: predicted IoU {loose[0]:.3f}, stability {loose[1]:.3f}", flush=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    runs: dict[str, dict[str, Found]] = {}
    memory: dict[str, int] = {}
    segmenter.encode(unit(samples[0][1])[None])  # the first call builds caches that no method should pay for
    for number, (id_, grey, labels, count) in enumerate(samples):
        for name, method in methods(segmenter, grey, kind, loose).items():
            if name == "grid, published" and number % every:
                continue
            found = timed(method)
            memory.setdefault(name, peak_rss())
            runs.setdefault(name, {})[id_] = found
            rows.setdefault(name, []).append(judge(found.instances, labels, count))
        print(number + 1, id_, {name: round(runs[name][id_].cpu, 2) for name in runs if id_ in runs[name]}, flush=True)
    table = {name: summary(rows[name], list(runs[name].values())) for name in rows}
    return {
        "images": len(samples),
        "targets": sum(sample[3] for sample in samples),
        "thresholds": {"predicted_IoU": round(loose[0], 3), "stability": round(loose[1], 3), "scenes": scenes},
        "ratio": paired_ratio(runs, GRID, OURS, "cpu"),
        "wall_ratio": paired_ratio(runs, GRID, OURS, "wall"),
        "ratio_published": paired_ratio(runs, "grid, published", OURS, "cpu"),
        "ratio_boxes": paired_ratio(runs, GRID, BOXED, "cpu"),
        "memory_ratio": round(memory[GRID] / memory[OURS], 2),
        "peak_rss_mb": memory[GRID],
        "peak_rss_mb_ours": memory[OURS],
        "masks_ratio": round(table[GRID]["masks"] / max(table[OURS]["masks"], 1e-9), 2),
        "small_masks_ratio": round(table[GRID]["small_masks"] / max(table[OURS]["small_masks"], 1e-9), 2),
        "grid_at_our_recall": masks_at_recall(rows[GRID], table[OURS]["recall_IoU50_small"]),
        "grid_at_boxes_recall": masks_at_recall(rows[GRID], table[BOXED]["recall_IoU50_small"]),
        "curve": {
            name: [at_threshold(rows[name], float(quality)) for quality in quantiles[:, 0]]
            for name in (OURS, BOXED, GRID)
        },
        "methods": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, or a checkpoint folder")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--views", choices=("whole", "tiles"), default="whole")
    parser.add_argument("--published-every", type=int, default=6, help="images per run of the published thresholds")
    parser.add_argument("--scenes", type=int, default=60, help="rendered scenes that the loose thresholds come from")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (DATA / NAME).is_dir():
        raise SystemExit(f"{NAME} is not in {DATA}; set FEWLABEL_DATA to its folder")
    weights = NANO_FOLDER if options.model == "nano" else Path(options.model)
    digest = sha256_file(weights / "model.safetensors")
    path = options.results / f"{NAME}-{Path(options.model).name}-{options.views}.json"
    if path.exists() and not options.force and read_json(path)["weights_sha256"] == digest:
        print(f"{path} holds these weights; --force measures again")
        return
    measured = measure(load(options.model), options.images, options.views, options.published_every, options.scenes)
    record = {
        "benchmark": "speed-everything",
        "method": f"prior peaks ({Path(options.model).name}, {options.views})",
        "baseline": "automatic masks from a 32 x 32 point grid, same weights, decoder, batches and thresholds",
        "dataset": NAME,
        "split": "published training list",
        "seed": 0,
        "views": options.views,
        **measured,
        "weights_sha256": digest,
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "device": "cpu-1",
        "machine": processor(),
        "torch": torch.__version__.split("+")[0],
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(path, record)
    for name, row in record["methods"].items():
        print(name, row)
    keys = ("ratio", "wall_ratio", "ratio_published", "memory_ratio", "masks_ratio", "small_masks_ratio")
    print({key: record[key] for key in keys}, record["grid_at_our_recall"], record["grid_at_boxes_recall"])
    for name, points in record["curve"].items():
        print(name, points)


if __name__ == "__main__":
    main()
