"""Train nano-SAM from random weights through the three stages of the embedded weights: about three hours on one core.

    python benchmarks/nano-sam/again.py [--runs runs/nano-again]

Each stage starts where the one before ended; one that is done is only loaded, one that was stopped goes on. The first
stage of the embedded weights saw scenes of the renderers and options of an earlier day (see `card.json`), so the
result is not the same bits. Publish it with `python -m fewlabel.sam.pretrain runs/nano-again/3`, measure it with
`run.py --card`.
"""

import argparse
from pathlib import Path

import torch

from fewlabel.sam.pretrain import configure, pretrain

STAGES = (2500, 5000, 2600)  # steps; the number of a stage is its seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano-again"), help="parent of the stages' run folders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start: str | None = None
    for seed, steps in enumerate(STAGES):
        folder = options.runs / str(seed + 1)
        pretrain(configure("cpu", steps=steps), folder, seed, options.device, workers=options.workers, start=start)
        start = str(folder)


if __name__ == "__main__":
    main()
