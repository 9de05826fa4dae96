"""Memory of a check of very many files: highest resident memory at several numbers of tiny images.

    python benchmarks/many-files/run.py [--counts 10000 100000] [--force]

Writes grey PNG files of 8 x 8 pixels with random values, in a scratch folder in the layout `plain`, and checks them in
a process of its own for each number. `growth_mb` is the highest resident memory less that before the data set is opened
(libraries loaded), in MiB; `bytes_per_file` is the growth between the smallest and this number, for each further file.
Writes one JSON under benchmarks/many-files/results/; it is not measured again without --force.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
from PIL import Image as Pillow  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.check import check  # noqa: E402
from fewlabel.data.readers import open_folder  # noqa: E402

RESULT = Path(__file__).parent / "results" / "check.json"
SIDE = 8


def write_files(root: Path, count: int) -> None:
    """Add images until there are `count`, a thousand in a folder."""
    present = sum(len(list(folder.iterdir())) for folder in root.iterdir())
    for number in range(present, count):
        folder = root / f"{number // 1000:03d}"
        folder.mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Pillow.fromarray(values).save(folder / f"{number:06d}.png")


def resident() -> tuple[float, float]:
    """Resident memory of this process now, and at most so far, in MiB; from Linux's own books."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def child(root: Path) -> None:
    """Check a folder and print what it took."""
    before, began = resident()[0], time.process_time()
    report = check(open_folder(root, "plain"))
    print(
        json.dumps(
            {
                "images": report.train,
                "seconds": round(time.process_time() - began, 1),
                "growth_mb": round(resident()[1] - before, 1),
                "peak_rss_mb": round(resident()[1], 1),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000], help="numbers of files, rising")
    parser.add_argument("--force", action="store_true", help="measure again")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    if RESULT.exists() and not options.force:
        print(f"{RESULT.name} exists")
        return
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            write_files(Path(scratch), count)
            command = [sys.executable, __file__, "--child", scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cell = json.loads(done.stdout.splitlines()[-1])
            if cells:
                further = cell["images"] - cells[0]["images"]
                cell["bytes_per_file"] = round((cell["growth_mb"] - cells[0]["growth_mb"]) * 2**20 / further)
            cells.append(cell)
            print(cell)
    record = {
        "benchmark": "memory-many-files",
        "method": "check",
        "size": [SIDE, SIDE],
        "cells": cells,
        "load": round(os.getloadavg()[0], 2),
        "device": f"cpu-{os.cpu_count()}",
        "machine": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
