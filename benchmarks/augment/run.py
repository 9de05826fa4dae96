"""Training crops by fewlabel's `crop_batch` and by kornia: time for one batch, and tiny targets lost.

    python benchmarks/augment/run.py [--pairs 30] [--batches 60] [--force]

Both take the same 8 grey images of 512 x 512 pixels and give 8 crops of 256 x 256: a window at a scale of 0.75 to 1.33,
flips and quarter turns, gamma, contrast, brightness and noise, for image and mask together. kornia's set is
RandomResizedCrop, RandomHorizontalFlip, RandomVerticalFlip, RandomRotation90, RandomGamma, RandomContrast,
RandomBrightness and RandomGaussianNoise in one AugmentationSequential, with its own way with masks (nearest pixel).
The two are timed in turn, in pairs, in one process and thread, by processor time; `ratio` is the median over the pairs.

`lost` counts square targets of 1 and 2 pixels a side that lie wholly in the window but have no pixel in the crop's
mask, of `targets` that lie in it. Writes one JSON under benchmarks/augment/results/; it is not measured again without
--force.
"""

import argparse
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import kornia  # noqa: E402  the thread limits have to be set before numpy starts its pools
import kornia.augmentation as K  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.augment import AugmentConfig, Patch, crop_at, crop_batch, cut, objects_at, place_crop  # noqa: E402

RESULT = Path(__file__).parent / "results" / "crops-256.json"
SIDE, CROP, BATCH, TARGETS = 512, 256, 8, 40
CONFIG = AugmentConfig(target_probability=0, scale_probability=1)


def patches(seed: int, size: int) -> list[Patch]:
    """Images of noise with targets of `size` x `size` pixels that do not touch, in maps of their numbers."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(BATCH):
        numbers, made = np.zeros((SIDE, SIDE), np.int32), 0
        while made < TARGETS:
            top, left = rng.integers(2, SIDE - size - 2, 2)
            if not numbers[top - 2 : top + size + 2, left - 2 : left + size + 2].any():
                made += 1
                numbers[top : top + size, left : left + size] = made
        image = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
        found.append(Patch(image, numbers > 0, np.ones_like(image), objects=numbers))
    return found


def pipeline() -> K.AugmentationSequential:
    """A set of kornia with the ranges of `AugmentConfig`; intensities are in 0..1, six standard deviations apart."""
    areas = ((CROP / CONFIG.scale_high / SIDE) ** 2, (CROP / CONFIG.scale_low / SIDE) ** 2)
    contrast, gamma = (tuple(np.exp([-width, width]).tolist()) for width in (CONFIG.gain, CONFIG.gamma))
    return K.AugmentationSequential(
        K.RandomResizedCrop((CROP, CROP), scale=areas, ratio=(1.0, 1.0), p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomRotation90(times=(0, 3), p=1.0),
        K.RandomGamma(gamma, p=1.0),
        K.RandomContrast(contrast, p=1.0),
        K.RandomBrightness((1 - CONFIG.offset / 6, 1 + CONFIG.offset / 6), p=1.0),
        K.RandomGaussianNoise(std=CONFIG.noise / 12, p=1.0),
        data_keys=["input", "mask"],
        same_on_batch=False,
    )


def tensors(batch: list[Patch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in 0..1 and maps of numbers, float32 (B, 1, H, W)."""
    images = np.stack([np.asarray(patch.image) for patch in batch])[:, None] / 6 + 0.5
    numbers = np.stack([np.asarray(patch.objects) for patch in batch])[:, None].astype(np.float32)
    return torch.from_numpy(images.clip(0, 1)), torch.from_numpy(numbers)


def lost_by_ours(size: int, batches: int) -> tuple[int, int]:
    """Targets in the windows, and those of them that the crops do not show."""
    targets = lost = 0
    for seed in range(batches):
        rng = np.random.default_rng([seed, 1])
        for patch in patches(seed, size):
            place = place_crop(patch, CROP, rng, CONFIG)
            _, target, weight, _ = crop_at(patch, CROP, place)
            counts = np.bincount(cut(np.asarray(patch.objects), *place[:3]).ravel(), minlength=TARGETS + 1)
            inside = np.flatnonzero(counts[1:] == size**2) + 1
            shown = np.unique(objects_at(patch, CROP, place, target, weight)[0] * target)
            targets, lost = targets + len(inside), lost + len(np.setdiff1d(inside, shown))
    return targets, lost


def lost_by_kornia(size: int, batches: int) -> tuple[int, int]:
    """As `lost_by_ours`; which targets lie in the window is told by its corners, which kornia records."""
    targets = lost = 0
    aug = pipeline()
    for seed in range(batches):
        torch.manual_seed(seed)
        images, numbers = tensors(patches(seed, size))
        _, masks = aug(images, numbers)
        boxes = aug._params[0].data["src"]  # (B, 4, 2): corners x, y of the windows, the last pixel included
        for corners, before, after in zip(boxes, numbers[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
            (x0, y0), (x1, y1) = corners.amin(0).int().tolist(), corners.amax(0).int().tolist()
            counts = np.bincount(before[y0 : y1 + 1, x0 : x1 + 1].astype(int).ravel(), minlength=TARGETS + 1)
            inside = np.flatnonzero(counts[1:] == size**2) + 1
            targets, lost = targets + len(inside), lost + len(np.setdiff1d(inside, np.unique(after.astype(int))))
    return targets, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="timings of each way")
    parser.add_argument("--batches", type=int, default=60, help="batches in which lost targets are counted")
    parser.add_argument("--force", action="store_true", help="measure again")
    options = parser.parse_args()
    if RESULT.exists() and not options.force:
        print(f"{RESULT.name} exists")
        return
    torch.set_num_threads(1)
    batch, aug = patches(0, 2), pipeline()
    images, numbers = tensors(batch)
    times = []
    for seed in range(-3, options.pairs):  # the first ones warm up
        began = time.process_time()
        crop_batch(batch, CROP, np.random.default_rng(seed + 3), CONFIG)
        middle = time.process_time()
        aug(images, numbers)
        times.append((middle - began, time.process_time() - middle))
    pairs = times[3:]
    ratios = [theirs / ours for ours, theirs in pairs]
    counts = {}
    for size in (1, 2):
        for name, way in (("fewlabel", lost_by_ours), ("kornia", lost_by_kornia)):
            targets, lost = way(size, options.batches)
            counts[f"{name}, {size} x {size}"] = {"targets": targets, "lost": lost}
    record = {
        "benchmark": "speed-augment",
        "method": "crop_batch",
        "size": [CROP, CROP],
        "batch": BATCH,
        "baseline": "kornia's AugmentationSequential with the same set",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
        "seconds": round(statistics.median(ours for ours, _ in pairs), 5),
        "baseline_seconds": round(statistics.median(theirs for _, theirs in pairs), 5),
        "pairs": options.pairs,
        "crops": BATCH * options.batches,
        "lost": counts,
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "device": "cpu-1",
        "machine": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "kornia": kornia.__version__,
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(RESULT, record)
    print(f"{record['ratio']} times as fast as kornia ({record['seconds']} s a batch); {counts}")


if __name__ == "__main__":
    main()
