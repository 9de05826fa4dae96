"""Train nano-SAM from random weights through the four stages of the embedded weights: about five hours on one core.

    python benchmarks/nano-sam/again.py [--runs runs/nano-again]

Each stage starts where the one before ended; one that is done is only loaded, one that was stopped goes on. The first
stage of the embedded weights saw scenes of the renderers and options of an earlier day (see `card.json`), so the
result is not the same bits. Publish it with `python -m fewlabel.sam.pretrain runs/nano-again/4`, measure it with
`run.py --card`.
"""

import argparse
from pathlib import Path

import torch

from fewlabel.sam.pretrain import configure, pretrain

# The place of a stage is its seed. The last one shows more objects: those were what clicks hit worst.
STAGES: tuple[dict[str, float], ...] = (
    {"steps": 2500},
    {"steps": 5000},
    {"steps": 2600},
    {"steps": 5600, "infrared": 0.4},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano-again"), help="parent of the stages' run folders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start: str | None = None
    for seed, changes in enumerate(STAGES):
        folder = options.runs / str(seed + 1)
        pretrain(configure("cpu", **changes), folder, seed, options.device, workers=options.workers, start=start)
        start = str(folder)


if __name__ == "__main__":
    main()
