"""Time of an epoch that trains SAM's decoder alone, with and without the embedding cache.

    python benchmarks/embedding-cache/run.py [--model nano] [--images 213] [--gb 1.0] [--force]

A frozen encoder gives the same features in every epoch; the cache computes them once. All ways train the same decoder
steps on the training images of NUAA-SIRST (folder FEWLABEL_DATA, default ../shared/data): one click on a target per
image, cross entropy of the mask, AdamW, one image per step. `baseline` encodes each image in each epoch, `cold` fills
an empty cache on the way, `warm` is every epoch after it. The three are taken in turns for each image, so that a busy
machine slows them alike; images are decoded from their files beforehand for all, and shards that were just written are
still in the system's memory. `ratio` is the baseline's time divided by that of a warm epoch, in processor seconds of
this one thread; `wall_ratio` the same by the clock. `mask_agreement` is the IoU of the masks from cached half-precision
features with those from the encoder, over all images together.

Writes benchmarks/embedding-cache/results/MODEL.json; a record that exists is not measured again without --force.
"""

import argparse
import copy
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.masks import components  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.readers.sirst import SirstDataset  # noqa: E402
from fewlabel.sam.cache import EmbeddingCache, image_hash, to_input  # noqa: E402
from fewlabel.sam.families import load  # noqa: E402
from fewlabel.sam.promptable import Embedding, PromptableSegmenter  # noqa: E402
from fewlabel.sam.prompts import random_point  # noqa: E402
from fewlabel.training.checkpoint import weights_sha256  # noqa: E402
from fewlabel.training.losses import bce  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
WAYS = ("baseline", "cold", "warm")


class Clock:
    """Processor and wall seconds of what runs in it, added up."""

    def __init__(self) -> None:
        self.busy = self.wall = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.busy += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


def cases(count: int) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Key, image (1, H, W), mask bool (H, W) of one target and a click (1, 1, 1, 2) on it, of training images."""
    dataset = SirstDataset(DATA / "NUAA-SIRST")
    found = []
    for index, id in enumerate(dataset.train_ids[:count]):
        labelled = dataset.labelled(id)
        rng = np.random.default_rng(index)
        labels, number = components(labelled.instances.semantic())
        if number == 0:
            continue
        mask = labels == rng.integers(1, number + 1)
        image = to_input(labelled.image)
        click = torch.from_numpy(random_point(mask, rng)).view(1, 1, 1, 2)
        found.append((image_hash(image), image, torch.from_numpy(mask), click))
    return found


def trainer(segmenter: PromptableSegmenter) -> Callable[[Embedding, Tensor, Tensor], None]:
    """One decoder step on an embedding, with weights and an optimiser of its own."""
    own = copy.deepcopy(segmenter)
    own.model.mask_decoder.requires_grad_(True)
    optimiser = torch.optim.AdamW(own.model.mask_decoder.parameters(), lr=1e-5)

    def step(embedding: Embedding, mask: Tensor, click: Tensor) -> None:
        logits, _ = own.decode(embedding, click, multimask=False)
        loss = bce(logits[0], mask[None, None].float(), torch.ones_like(logits[0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def measure(segmenter: PromptableSegmenter, images: int, gb: float) -> dict[str, Any]:
    """Three epochs in turns, and what the cache did meanwhile."""
    data = cases(images)
    folder = Path(tempfile.mkdtemp(prefix="fewlabel-cache-"))
    try:
        cache = EmbeddingCache(folder, segmenter, weights_sha256(segmenter), gb)
        clocks = {way: Clock() for way in WAYS}
        steps = {way: trainer(segmenter) for way in WAYS}
        for _, image, mask, click in data[:2]:  # first calls set buffers up
            for way in WAYS:
                with torch.no_grad():
                    embedding = segmenter.encode(image[None])
                steps[way](embedding, mask, click)
        common = total = 0
        for key, image, mask, click in data:
            with clocks["baseline"]:
                with torch.no_grad():
                    embedding = segmenter.encode(image[None])
                steps["baseline"](embedding, mask, click)
            with clocks["cold"]:
                steps["cold"](cache.get(key, image), mask, click)
            with clocks["warm"]:
                stored = cache.get(key, image)
                steps["warm"](stored, mask, click)
            with torch.no_grad():
                one, other = (segmenter.decode(e, click, multimask=False)[0] > 0 for e in (embedding, stored))
            common, total = common + int((one & other).sum()), total + int((one | other).sum())
        hits, requests = cache.hits, cache.hits + cache.misses
        return {
            "images": len(data),
            "ratio": round(clocks["baseline"].busy / clocks["warm"].busy, 2),
            "wall_ratio": round(clocks["baseline"].wall / clocks["warm"].wall, 2),
            "cold_ratio": round(clocks["baseline"].busy / clocks["cold"].busy, 2),
            "seconds": round(clocks["warm"].busy, 3),
            "baseline_seconds": round(clocks["baseline"].busy, 3),
            "cold_seconds": round(clocks["cold"].busy, 3),
            "hits": hits,
            "requests": requests,
            "hit_rate": round(hits / requests, 4),
            "cache_mb": round(cache.bytes / 1e6, 2),
            "mask_agreement": round(common / total, 5),
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="what families.load takes: nano, a folder or a hub id")
    parser.add_argument("--images", type=int, default=213, help="training images in an epoch")
    parser.add_argument("--gb", type=float, default=1.0, help="bound of the cache in 10^9 bytes")
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{Path(options.model).name}.json"
    if path.exists() and not options.force:
        print(f"{path.name} exists")
        return
    load_before = os.getloadavg()[0]
    record = {
        "benchmark": "speed-embedding-cache",
        "method": "decoder-epoch-cached",
        "dataset": "NUAA-SIRST",
        "sam": f"{options.model} (own, not Meta's SAM)" if options.model == "nano" else options.model,
        "baseline": "the same epoch, encoder run for each image",
        **measure(load(options.model), options.images, options.gb),
        "threads": 1,
        "load": round(load_before, 2),
        "device": "cpu-1",
        "machine": processor(),
        "torch": torch.__version__.split("+")[0],
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(path, record)
    print(", ".join(f"{key} {record[key]}" for key in ("ratio", "wall_ratio", "cold_ratio", "hit_rate", "cache_mb")))


if __name__ == "__main__":
    main()
