"""Speed of encoding the components of one image: one pass over all labels against one whole-image encode for each.

    python benchmarks/rle/run.py [--size 1024] [--pairs 7] [--force]

Writes one JSON per number of components under benchmarks/rle/results/; a cell that exists is not measured again without
--force. The two ways are timed in turn, in pairs, in one process and thread; `ratio` is the median over the pairs, of
processor time, so that a busy machine does not blur it. Both results are compared byte for byte first. Encoding inside
each component's box and placing the code (`box_seconds`) is timed beside them. `peak_bytes` and `memory_ratio` count
what numpy allocates, in a run of their own.
"""

import argparse
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
from scipy import ndimage  # noqa: E402

from fewlabel.core import rle  # noqa: E402
from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.masks import components, encode, encode_components  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 10, 100, 1000)


def scene(count: int, size: int) -> np.ndarray:
    """Labels of `count` discs of 2 to 12 pixels across that do not touch."""
    rng, mask = np.random.default_rng(count), np.zeros((size, size), dtype=bool)
    made = 0
    while made < count:
        side = int(rng.integers(2, 13))
        top, left = rng.integers(1, size - side - 1, 2)
        if mask[top - 1 : top + side + 1, left - 1 : left + side + 1].any():
            continue
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        mask[top : top + side, left : left + side] = np.hypot(y, x) <= side / 2
        made += 1
    labels, found = components(mask)
    if found != count:
        raise RuntimeError(f"{found} components were drawn, expected {count}")
    return labels


def plain(labels: np.ndarray, count: int) -> list[rle.Rle]:
    """One whole-image encode for each component."""
    return [encode(labels == number) for number in range(1, count + 1)]


def boxed(labels: np.ndarray, count: int) -> list[rle.Rle]:
    """One encode inside the box of each component, placed into the image."""
    boxes = enumerate(ndimage.find_objects(labels, max_label=count), 1)
    size = (labels.shape[0], labels.shape[1])
    parts = ((encode(labels[ys, xs] == k), ys.start, xs.start) for k, (ys, xs) in boxes)
    return [
        rle.from_spans(rle.shift(rle.spans(code), code["size"][0], top, left, size[0]), size)
        for code, top, left in parts
    ]


def one_pass(labels: np.ndarray, count: int) -> list[rle.Rle]:
    """One pass over the labels."""
    return encode_components(labels, range(1, count + 1))


def seconds(way: Callable[[np.ndarray, int], object], labels: np.ndarray, count: int) -> float:
    """Processor seconds of one call."""
    began = time.process_time()
    way(labels, count)
    return time.process_time() - began


def peak(way: Callable[[np.ndarray, int], object], labels: np.ndarray, count: int) -> int:
    """Highest number of bytes that one call holds at a time."""
    tracemalloc.start()
    way(labels, count)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the square image in pixels")
    parser.add_argument("--pairs", type=int, default=7, help="timings of each way")
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    options = parser.parse_args()
    for count in COUNTS:
        path = RESULTS / f"components-{count}-{options.size}.json"
        if path.exists() and not options.force:
            print(f"{path.name} exists")
            continue
        labels = scene(count, options.size)
        if not plain(labels, count) == one_pass(labels, count) == boxed(labels, count):
            raise RuntimeError(f"the codes of {count} components differ")
        pairs = [[seconds(way, labels, count) for way in (plain, boxed, one_pass)] for _ in range(options.pairs)]
        theirs, box, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [pair[0] / pair[2] for pair in pairs]
        held = peak(one_pass, labels, count)
        record = {
            "benchmark": "speed-rle",
            "method": f"{count} component{'s' * (count > 1)}",
            "size": [options.size, options.size],
            "components": count,
            "baseline": "encode(labels == number) for each component",
            "ratio": round(statistics.median(ratios), 2),
            "ratio_lowest": round(min(ratios), 2),
            "ratio_highest": round(max(ratios), 2),
            "memory_ratio": round(peak(plain, labels, count) / held, 2),
            "peak_bytes": held,
            "seconds": round(ours, 6),
            "baseline_seconds": round(theirs, 6),
            "box_seconds": round(box, 6),
            "pairs": options.pairs,
            "threads": 1,
            "load": round(os.getloadavg()[0], 2),
            "device": "cpu-1",
            "machine": processor(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "commit": commit(Path(__file__).parent),
            "date": date.today().isoformat(),
        }
        write_json(path, record)
        print(f"{count} components: {record['ratio']} times as fast, {1e3 * ours:.2f} ms")


if __name__ == "__main__":
    main()
