"""Speed of the synthetic scene renderers, in images per second on one core.

    python benchmarks/synth/run.py [--images 300] [--size 256] [--force]

Writes one JSON per cell under benchmarks/synth/results/; a cell that exists is not measured again without --force.
`images_per_second` counts the processor time of this process alone (one thread), so that a busy machine does not blur
it; `wall_seconds` is what the clock said.

The cell `coco` writes whole data sets of 20 images in COCO's format: rendering, PNG files and annotations. The cell
`field` also times the textbook way of making one power-law field (complex128 white noise, numpy FFT, frequencies
computed anew) in the same run as its baseline.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import scipy  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.synth import infrared, objects  # noqa: E402
from fewlabel.data.synth.fields import power_law  # noqa: E402
from fewlabel.data.synth.objects_coco import write_coco_dataset  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SET = 20  # images in a data set of the cell `coco`


def measure(make: Callable[[np.random.Generator], object], images: int, before: int = 10) -> tuple[float, float]:
    """Processor seconds and wall seconds for `images` calls of `make`, after some to fill the caches."""
    for k in range(before):
        make(np.random.default_rng([0, k]))
    wall, busy = time.perf_counter(), time.process_time()
    for k in range(images):
        make(np.random.default_rng([1, k]))
    return time.process_time() - busy, time.perf_counter() - wall


def textbook_field(rng: np.random.Generator, size: int) -> np.ndarray:
    """One power-law field as usually written: full complex128 FFT of white noise, every frequency computed anew."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    f[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * f**-1.5).real
    return (field - field.mean()) / field.std()


def write_coco(rng: np.random.Generator, size: int) -> int:
    """Write a COCO data set to a scratch folder; returns its number of images."""
    with tempfile.TemporaryDirectory() as scratch:
        write_coco_dataset(Path(scratch) / "set", SET, int(rng.integers(1 << 31)), size=size)
    return SET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="images per cell")
    parser.add_argument("--size", type=int, default=256, help="side of the square images in pixels")
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    options = parser.parse_args()
    cells: dict[str, Callable[[np.random.Generator], object]] = {
        "infrared": lambda rng: infrared.render(rng, options.size),
        "objects": lambda rng: objects.render(rng, options.size),
        "coco": lambda rng: write_coco(rng, options.size),
        "field": lambda rng: power_law(rng, (options.size, options.size), 3.0),
    }
    for cell, make in cells.items():
        path = RESULTS / f"{cell}-{options.size}.json"
        if path.exists() and not options.force:
            print(f"{path.name} exists")
            continue
        each = SET if cell == "coco" else 1  # images of one call
        calls = max(1, options.images // each)
        seconds, wall = measure(make, calls, 1 if cell == "coco" else 10)
        record: dict[str, object] = {
            "benchmark": "speed-synth",
            "method": cell,
            "size": [options.size, options.size],
            "images": calls * each,
            "images_per_second": round(calls * each / seconds, 1),
            "seconds": round(seconds, 3),
            "wall_seconds": round(wall, 3),
            "threads": 1,
            "load": round(os.getloadavg()[0], 2),
            "device": "cpu-1",
            "machine": processor(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "commit": commit(Path(__file__).parent),
            "date": date.today().isoformat(),
        }
        if cell == "field":
            baseline, _ = measure(lambda rng: textbook_field(rng, options.size), options.images)
            record |= {
                "baseline": "numpy complex128 FFT, nothing cached",
                "baseline_seconds": round(baseline, 3),
                "ratio": round(baseline / seconds, 2),
            }
        write_json(path, record)
        print(f"{cell}: {record['images_per_second']} images/s per core")


if __name__ == "__main__":
    main()
