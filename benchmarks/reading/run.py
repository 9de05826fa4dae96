"""Speed from files to training crops: read, decode, label, standardise, crop and vary, in images per second.

    python benchmarks/reading/run.py [--images 300] [--size 256] [--force]

Two processes of one thread do the work side by side, each on its own half of a data set in the SIRST layout (images and
masks of rendered infrared scenes), through the calls of a training. Every image is decoded anew for every crop; the
files are in the memory of the operating system. `images_per_second` is the sum of both processes' images per second of
processor time, so that a busy machine does not blur it; `wall_seconds` is what the clock said.

Cells: the file formats, and `decode-…` for images alone, without masks and crops. Writes one JSON per cell under
benchmarks/reading/results/; a cell that exists is not measured again without --force.
"""

import argparse
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import PIL  # noqa: E402
import tifffile  # noqa: E402
import torch  # noqa: E402
from PIL import Image as Pillow  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.augment import AugmentConfig, crop_batch  # noqa: E402
from fewlabel.data.pool import loaders  # noqa: E402
from fewlabel.data.readers import open_folder  # noqa: E402
from fewlabel.data.synth import infrared  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PROCESSES = 2
BATCH = 8
CELLS = {
    "png-8": (".png", 8),
    "png-16": (".png", 16),
    "tiff-16": (".tif", 16),
    "npy-16": (".npy", 16),
    "jpeg-8": (".jpg", 8),
}


def write_set(root: Path, ending: str, bits: int, images: int, size: int) -> None:
    """A data set of rendered scenes, 14-bit values in files of 16 bits, or their upper 8 bits."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(images):
        scene = infrared.render(np.random.default_rng([0, number]), size)
        values = scene.radiance if bits == 16 else (scene.radiance >> 6).astype(np.uint8)
        path = root / "images" / f"{number:04d}{ending}"
        if ending == ".tif":
            tifffile.imwrite(path, values)
        elif ending == ".npy":
            np.save(path, values)
        else:
            Pillow.fromarray(values).save(path)
        Pillow.fromarray(255 * (scene.labels > 0).astype(np.uint8)).save(root / "masks" / f"{number:04d}.png")


def crops(root: Path, half: int, size: int) -> tuple[int, float]:
    """Images and processor seconds of one process: each image of its half is loaded and gives one crop."""
    torch.set_num_threads(1)
    dataset = open_folder(root, "sirst")
    members = loaders(dataset, dataset.train_ids[half::PROCESSES])
    rng, config = np.random.default_rng(half), AugmentConfig()
    crop_batch([load() for load in members[:BATCH]], size, rng, config)  # what is done once only
    busy = time.process_time()
    for start in range(0, len(members), BATCH):
        crop_batch([load() for load in members[start : start + BATCH]], size, rng, config)
    return len(members), time.process_time() - busy


def images(root: Path, half: int, size: int) -> tuple[int, float]:
    """As `crops`, but images are decoded and nothing more."""
    dataset = open_folder(root, "sirst")
    ids = dataset.train_ids[half::PROCESSES]
    dataset.image(ids[0])
    busy = time.process_time()
    for id in ids:
        dataset.image(id)
    return len(ids), time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="images per cell")
    parser.add_argument("--size", type=int, default=256, help="side of the square images and crops in pixels")
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for name, (ending, bits) in CELLS.items():
            root = Path(scratch) / name
            for cell, work in ((name, crops), (f"decode-{name}", images)):
                path = RESULTS / f"{cell}-{options.size}.json"
                if path.exists() and not options.force:
                    print(f"{path.name} exists")
                    continue
                if not root.exists():
                    write_set(root, ending, bits, options.images, options.size)
                list(pool.map(images, [root] * PROCESSES, range(PROCESSES), [0] * PROCESSES))  # both processes are up
                wall = time.perf_counter()
                parts = list(pool.map(work, [root] * PROCESSES, range(PROCESSES), [options.size] * PROCESSES))
                wall = time.perf_counter() - wall
                record: dict[str, object] = {
                    "benchmark": "speed-reading",
                    "method": cell,
                    "size": [options.size, options.size],
                    "images": sum(count for count, _ in parts),
                    "images_per_second": round(sum(count / seconds for count, seconds in parts), 1),
                    "seconds": round(sum(seconds for _, seconds in parts), 3),
                    "wall_seconds": round(wall, 3),
                    "processes": PROCESSES,
                    "threads": 1,
                    "load": round(os.getloadavg()[0], 2),
                    "device": f"cpu-{PROCESSES}",
                    "machine": processor(),
                    "python": platform.python_version(),
                    "numpy": np.__version__,
                    "pillow": PIL.__version__,
                    "tifffile": tifffile.__version__,
                    "torch": torch.__version__,
                    "commit": commit(Path(__file__).parent),
                    "date": date.today().isoformat(),
                }
                write_json(path, record)
                print(f"{cell}: {record['images_per_second']} images/s on {PROCESSES} cores")


if __name__ == "__main__":
    main()
