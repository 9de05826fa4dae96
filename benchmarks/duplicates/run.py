"""Which hash finds near duplicates: the check's pHash against the average and the difference hash, on all pairs.

    python benchmarks/duplicates/run.py [--force]

Data sets below FEWLABEL_DATA (default ../shared/data). For each hash and bound on the bits that may differ: how many
test images have a twin among the training images, how many pairs were found, and how many of these show one scene by a
reference that looks at details only: a correlation above 0.9 of the high-passed 64 x 64 image. Both other hashes reduce
the image by area to 8 x 8 (a bit where a pixel is above the mean) and 8 x 9 (where it is above its right neighbour).
Writes results/<data set>.json. The check's bound was chosen on these sets, so this is no independent test of it.
"""

import argparse
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from fewlabel.core.files import write_json
from fewlabel.core.provenance import commit, processor
from fewlabel.data.duplicates import NEAR
from fewlabel.data.fingerprints import perceptual_hash
from fewlabel.data.readers import open_folder

DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
RESULTS = Path(__file__).parent / "results"
SETS = ("NUAA-SIRST", "NUDT-SIRST", "DSB2018")
BITS = (0, 2, 4, 6, 10, 14)
SCENE = 0.9  # correlation of details above which two images show one scene


def reduced(grey: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The image at another size by area, float64 (rows, columns)."""
    return np.asarray(Pillow.fromarray(grey).resize((columns, rows), Pillow.Resampling.BOX), np.float64)


def packed(bits: np.ndarray) -> int:
    """64 bits as an integer."""
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def average_hash(grey: np.ndarray) -> int:
    """Which of 8 x 8 areas are above their mean."""
    small = reduced(grey, 8, 8)
    return packed(small > small.mean())


def difference_hash(grey: np.ndarray) -> int:
    """Which of 8 x 8 areas are above the one to their right."""
    small = reduced(grey, 8, 9)
    return packed(small[:, :-1] > small[:, 1:])


HASHES: dict[str, Callable[[np.ndarray], int]] = {
    "pHash (the check's)": perceptual_hash,
    "average hash": average_hash,
    "difference hash": difference_hash,
}


def details(grey: np.ndarray) -> np.ndarray:
    """The image's fine structure at 64 x 64, clipped at three deviations, of mean 0 and length 1, as a vector."""
    small = reduced(grey, 64, 64)
    fine = ndimage.gaussian_filter(small - ndimage.gaussian_filter(small, 6), 1)
    values = np.clip(fine / max(1.4826 * float(np.median(np.abs(fine))), 1e-12), -3, 3).ravel()
    values -= values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-12))


def measure(name: str) -> dict[str, Any]:
    """Count twins of one data set by every hash and bound."""
    dataset = open_folder(DATA / name)
    ids = (*dataset.train_ids, *dataset.test_ids)
    tested = np.array([False] * len(dataset.train_ids) + [True] * len(dataset.test_ids))
    greys = [np.ascontiguousarray(dataset.image(id).grey(), np.float32) for id in ids]
    fine = np.stack([details(grey) for grey in greys])
    first, second = np.triu_indices(len(ids), 1)
    alike = (fine @ fine.T)[first, second] > SCENE
    across = tested[first] != tested[second]
    found: dict[str, dict[str, dict[str, int]]] = {}
    for hash_name, hash_of in HASHES.items():
        codes = np.array([hash_of(grey) for grey in greys], np.uint64)
        apart = np.bitwise_count(codes[first] ^ codes[second])
        found[hash_name] = {}
        for bits in BITS:
            near = apart <= bits
            twins = np.unique(np.concatenate([first[near & across], second[near & across]]))
            found[hash_name][str(bits)] = {
                "test_images_with_a_training_twin": int(tested[twins].sum()),
                "pairs": int(near.sum()),
                "pairs_of_one_scene": int((near & alike).sum()),
            }
    return {
        "benchmark": "duplicates",
        "dataset": name,
        "train": len(dataset.train_ids),
        "test": len(dataset.test_ids),
        "pairs": len(first),
        "pairs_of_one_scene": int(alike.sum()),
        "bound_of_the_check": NEAR,
        "found": found,
        "device": "cpu-1",
        "machine": processor(),
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="measure again what has a result already")
    options = parser.parse_args()
    for name in SETS:
        path = RESULTS / f"{name}.json"
        if not path.exists() or options.force:
            record = measure(name)
            write_json(path, record)
            print(name, record["pairs_of_one_scene"], record["found"])


if __name__ == "__main__":
    main()
