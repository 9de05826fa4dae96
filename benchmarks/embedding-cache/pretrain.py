"""Seconds per step of nano-SAM's pre-training: whole network, frozen encoder run each time, and from the cache.

    python benchmarks/embedding-cache/pretrain.py [--steps 40] [--force]

All ways train on the same batches in turns, so a busy machine slows them alike; drawing a batch is added to each.
`ratio` is the frozen encoder run each time divided by a warm cache, in processor seconds of this process (one thread).
"warm" reads what "cold" has stored a moment before, so its shards are still in the system's memory.
"""

import argparse
import os
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402  the thread limits have to be set before numpy starts its pools

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.sam.nano import build_nano  # noqa: E402
from fewlabel.sam.pretrain import bare_encoder, warm_start  # noqa: E402
from fewlabel.sam.pretrain_batches import Batch, draw_batch  # noqa: E402
from fewlabel.sam.pretrain_config import PretrainConfig  # noqa: E402
from fewlabel.sam.pretrain_frozen import FrozenFeatures, freeze_encoder  # noqa: E402
from fewlabel.sam.pretrain_loss import step_loss  # noqa: E402

RECORD = Path(__file__).parent / "results" / "pretrain-nano.json"
WAYS = ("whole", "uncached", "cold", "warm")
WARM_UP = 2  # steps left out


class Way:
    """One way of training nano-SAM, with weights and an optimiser of its own."""

    def __init__(self, name: str, cache: Path) -> None:
        self.segmenter = build_nano(0)
        sha256 = warm_start(self.segmenter, "nano")["weights_sha256"]
        bare_encoder(self.segmenter)
        self.segmenter.train()
        self.features: FrozenFeatures | None = None
        if name != "whole":
            freeze_encoder(self.segmenter)
            self.features = FrozenFeatures(self.segmenter, sha256, "cpu", None if name == "uncached" else cache, 1.0)
        self.parameters = [parameter for parameter in self.segmenter.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)

    def step(self, batch: Batch) -> float | None:
        """Train one step; returns the share of images that were in the cache."""
        embedding, hits = (None, None) if self.features is None else self.features(batch.images)
        self.optimiser.zero_grad()
        step_loss(self.segmenter, batch, 1.0, 1.0, embedding)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        return hits


def measure(steps: int) -> dict[str, Any]:
    """Mean processor seconds per step of every way, drawing included, and the ratios."""
    config = PretrainConfig(pool=1000)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    hits: dict[str, list[float]] = {name: [] for name in ("cold", "warm")}
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: Way(name, Path(folder)) for name in WAYS}  # "warm" comes after "cold", which fills their cache
        for step in range(steps + WARM_UP):
            began = time.process_time()
            batch = draw_batch(config, 0, step, True)
            drawing = time.process_time() - began
            for name, way in ways.items():
                began = time.process_time()
                found = way.step(batch)
                seconds[name].append(drawing + time.process_time() - began)
                if name in hits:
                    hits[name].append(found or 0.0)
    means = {name: fmean(values[WARM_UP:]) for name, values in seconds.items()}
    return {
        "ratio": round(means["uncached"] / means["warm"], 2),
        "whole_ratio": round(means["whole"] / means["warm"], 2),
        "cold_ratio": round(means["uncached"] / means["cold"], 3),
        "seconds_per_step": {name: round(value, 3) for name, value in means.items()},
        "hit_rate": {name: round(fmean(values), 4) for name, values in hits.items()},
        "pool": config.pool,
        "steps": steps,
        "batch": config.batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--force", action="store_true", help="measure again what has a record")
    options = parser.parse_args()
    if RECORD.exists() and not options.force:
        print(f"{RECORD.name}: measured before")
        return
    torch.set_num_threads(1)
    record = {
        "benchmark": "speed-embedding-cache",
        "method": "pretrain-nano-warm-cache",
        "baseline": "pre-training with the frozen encoder run for each image",
        **measure(options.steps),
        "device": "cpu-1",
        "machine": processor(),
        "torch": torch.__version__.split("+")[0],
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(RECORD, record)
    print(record)


if __name__ == "__main__":
    main()
