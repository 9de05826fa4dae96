"""Memory and time of a large image, by tiles and as a whole.

    python benchmarks/tiles/run.py [--side 10240] [--rounds 3] [--force]

Makes a tiled, deflated uint16 TIFF of noise with bright discs in a scratch folder and segments it in three ways, each
in a process of its own, in turn:

* `whole`: read_image, standardise, threshold, components of the whole mask: the baseline;
* `bands`: windows of the file, moments in one pass, blended tiles by rows of tiles, components of the bands;
* `stitch`: windows of the file, the same moments, instances of each tile, stitched.

The segmenter is a threshold, so that time and memory are those of the frame around it. All ways have to give the same
instances, byte for byte. `growth_mb` is the highest resident memory less that before the start (libraries loaded), in
MiB. Writes one JSON per way under benchmarks/tiles/results/; one that exists is not measured again without --force.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import tifffile  # noqa: E402

from fewlabel.core.banded import banded_instances  # noqa: E402
from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.core.radiometry import standardise  # noqa: E402
from fewlabel.core.types import Instances  # noqa: E402
from fewlabel.data.moments import grey_moments, standardised_rows  # noqa: E402
from fewlabel.data.pixels import read_image  # noqa: E402
from fewlabel.data.stitch import over_crops  # noqa: E402
from fewlabel.data.tiles import Crop, bands  # noqa: E402
from fewlabel.data.windows import open_windows  # noqa: E402

RESULTS = Path(__file__).parent / "results"
FILE_TILE = 256  # side of the file's tiles
TILE, OVERLAP = 512, 64  # side of the segmenter's tiles; the discs are smaller than the overlap
CUT = 5.0  # standard deviations above the mean
DISC = 41  # largest disc, pixels across


def write_scene(path: Path, side: int, discs: int) -> None:
    """Write a square image tile by tile: noise, and discs anywhere, also across the borders of tiles."""
    rng = np.random.default_rng(0)
    centres, radii = rng.integers(0, side, (discs, 2)), rng.integers(1, DISC // 2 + 1, discs)

    def parts() -> Iterator[np.ndarray]:
        for top in range(0, side, FILE_TILE):
            for left in range(0, side, FILE_TILE):
                part = rng.integers(900, 1101, (FILE_TILE, FILE_TILE), dtype=np.uint16)
                for (y, x), radius in zip(centres - (top, left), radii, strict=True):
                    if abs(y - FILE_TILE / 2) < FILE_TILE / 2 + DISC and abs(x - FILE_TILE / 2) < FILE_TILE / 2 + DISC:
                        rows, columns = np.ogrid[:FILE_TILE, :FILE_TILE]
                        part[np.hypot(rows - y, columns - x) <= radius] += 3000
                yield part

    tifffile.imwrite(
        path,
        parts(),
        shape=(side, side),
        dtype=np.uint16,
        tile=(FILE_TILE, FILE_TILE),
        compression="zlib",
        compressionargs={"level": 1},
        metadata=None,
    )


def whole(path: Path) -> Instances:
    """The image in memory, as for small ones."""
    return Instances.from_semantic(standardise(read_image(path).grey()) > CUT)


def by_bands(path: Path) -> Instances:
    """Probabilities blended over tiles, and components, by rows of tiles."""
    reader = open_windows(path)
    rows = standardised_rows(reader, grey_moments(reader))

    def predict(tiles: np.ndarray) -> np.ndarray:
        return (tiles > CUT).astype(np.float32)

    values = bands(rows, *reader.size, predict, TILE, OVERLAP, batch=1)
    return banded_instances(((part > 0.5, part) for _, part in values), reader.size)


def by_stitching(path: Path) -> Instances:
    """Instances of each tile, merged."""
    reader = open_windows(path)
    moments = grey_moments(reader)

    def find(crop: Crop) -> Instances:
        return Instances.from_semantic(moments.standardise(reader.read(*crop)[0]) > CUT)

    return over_crops(reader.size, find, TILE, OVERLAP)


WAYS: dict[str, Callable[[Path], Instances]] = {"whole": whole, "bands": by_bands, "stitch": by_stitching}


def resident() -> tuple[float, float]:
    """Resident memory of this process now, and at most so far, in MiB.

    From Linux's own books where there are any: getrusage's peak survives exec, so in a child it starts at the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return used, used


def measure(way: str, path: Path) -> dict[str, float | str]:
    """Segment a file in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--way", way, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr}")
    result: dict[str, float | str] = json.loads(done.stdout)
    return result


def child(way: str, path: Path) -> None:
    """Segment a file and print what it took."""
    before, began, clock = resident()[0], time.process_time(), time.perf_counter()
    found = WAYS[way](path)
    busy, wall, peak = time.process_time() - began, time.perf_counter() - clock, resident()[1]
    text = json.dumps([found.to_json()[key] for key in ("counts", "boxes")])
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(
        json.dumps(
            {
                "seconds": busy,
                "wall_seconds": wall,
                "growth_mb": peak - before,
                "peak_rss_mb": peak,
                "instances": len(found),
                "digest": digest,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_240, help=f"side of the image in pixels, whole {FILE_TILE}s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.way[0], Path(options.way[1]))
        return
    paths = {way: RESULTS / f"{way}-{options.side}.json" for way in ("bands", "stitch")}
    if all(path.exists() for path in paths.values()) and not options.force:
        print("both records exist")
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "scene.tif"
        write_scene(file, options.side, discs=options.side**2 // 50_000)
        size = file.stat().st_size
        runs = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, results in runs.items():
                results.append(measure(way, file))
                print(way, results[-1])
    if len({result["digest"] for results in runs.values() for result in results}) != 1:
        raise RuntimeError("the ways found different instances")
    middle = {
        way: {key: statistics.median(result[key] for result in results) for key in ("seconds", "wall_seconds")}
        | {key: max(result[key] for result in results) for key in ("growth_mb", "peak_rss_mb")}
        for way, results in runs.items()
    }
    for way, path in paths.items():
        ours, theirs = middle[way], middle["whole"]
        record = {
            "benchmark": "speed-tiles",
            "method": way,
            "size": [options.side, options.side],
            "file": f"uint16 TIFF, tiles of {FILE_TILE}, deflate, {size} bytes",
            "tile": TILE,
            "overlap": OVERLAP,
            "instances": runs[way][0]["instances"],
            "baseline": "the whole image in memory",
            "ratio": round(theirs["seconds"] / ours["seconds"], 3),
            "memory_ratio": round(theirs["growth_mb"] / ours["growth_mb"], 2),
            "seconds": round(ours["seconds"], 2),
            "wall_seconds": round(ours["wall_seconds"], 2),
            "baseline_seconds": round(theirs["seconds"], 2),
            "growth_mb": round(ours["growth_mb"], 1),
            "baseline_growth_mb": round(theirs["growth_mb"], 1),
            "peak_rss_mb": round(ours["peak_rss_mb"], 1),
            "rounds": options.rounds,
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
        print(f"{way}: {record['growth_mb']} MiB, {record['memory_ratio']} times less; time ratio {record['ratio']}")


if __name__ == "__main__":
    main()
