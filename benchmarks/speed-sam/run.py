"""Encoding speed of SAM models in bfloat16 and compiled, beside float32 in eager mode.

    python benchmarks/speed-sam/run.py [--models nano sam-vit-b sam2.1-tiny] [--device cpu] [--batch 1] [--seconds 10]
    python benchmarks/speed-sam/run.py --device cuda --batch 8 --peak 790    # share of an H200's bf16 peak

Each way encodes the same batch in turns with the baseline, so that a busy machine slows both alike; `ratio` is the
median baseline time divided by the way's median, by the clock on an accelerator and in processor seconds of this
process on a CPU. Compilation and two warm-up calls are left out and reported as `compile_seconds`.

nano-SAM has trained weights: `mask_agreement` is the IoU of its masks with those of the baseline, of one click on each
target of `--images` training images of NUAA-SIRST (folder FEWLABEL_DATA, default ../shared/data), over all targets
together. The other models are built at their published sizes with random weights, whose masks mean nothing; of them
`feature_error` alone is given: the norm of the difference of the features by the norm of the baseline's.
`tera_per_second` counts multiplications and additions of matrix products, convolutions and attention (torch's counter),
`share_of_peak` that by `--peak` in TFLOP/s.

Writes one JSON per cell under benchmarks/speed-sam/results/; a cell that exists is not measured again without --force.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewlabel.core.files import write_json
from fewlabel.core.masks import components
from fewlabel.core.provenance import commit, processor
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.sam.cache import to_input
from fewlabel.sam.catalogue import find
from fewlabel.sam.families import load
from fewlabel.sam.family import FAMILIES
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.prompts import central_point
from fewlabel.sam.speed import quicken
from fewlabel.training.checkpoint import weights_sha256

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
WAYS = {"bf16": ("bf16", False), "compile": ("fp32", True), "bf16-compile": ("bf16", True)}


def build(name: str, device: str) -> PromptableSegmenter:
    """nano-SAM with its weights, any other model at its published size with random ones."""
    if name == "nano":
        return load("nano").to(device)
    import transformers

    entry, kinds = find(name), {"sam": "Sam", "sam2": "Sam2", "sam_hq": "SamHQ"}
    if entry is None or entry.family not in kinds:
        raise SystemExit(f"{name} is not measured; choose a SAM, SAM-HQ or SAM 2 of `fewlabel sam list`")
    config = getattr(transformers, f"{kinds[entry.family]}Config")()
    encoder = config.vision_config
    # The library's 1e-10 for SAM makes features of 1e-20: no precision shows in them, and subnormal numbers are slow.
    encoder.initializer_range = 0.02
    if entry.family == "sam":
        width, depth = entry.encoder
        every = depth // 4
        encoder.hidden_size, encoder.num_hidden_layers = width, depth
        encoder.num_attention_heads = {768: 12, 1024: 16, 1280: 16}[width]
        encoder.global_attn_indexes, encoder.mlp_dim = list(range(every - 1, depth, every)), 4 * width
    elif name not in ("sam2-tiny", "sam2.1-tiny", "sam-hq-vit-b"):
        raise SystemExit(f"{name}: only the library's default size of this family is measured; choose sam2.1-tiny")
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[entry.family].model_class)(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    if abs(found - entry.parameters) > 0.02 * entry.parameters:
        raise SystemExit(f"{name} was built with {found} parameters, published are {entry.parameters}")
    return PromptableSegmenter(model, entry.family, name).eval().requires_grad_(False).to(device)


def clock(device: str) -> float:
    """Seconds: by the clock once an accelerator has caught up, else of this process on its processors."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def paired(baseline: Callable[[], Any], way: Callable[[], Any], device: str, seconds: float) -> tuple[float, float]:
    """Median seconds of both, taken in turns for about `seconds` each and at least three times."""
    times: tuple[list[float], list[float]] = ([], [])
    while sum(times[0]) < seconds or len(times[0]) < 3:
        for kept, call in zip(times, (baseline, way), strict=True):
            began = clock(device)
            call()
            kept.append(clock(device) - began)
    return median(times[0]), median(times[1])


def clicks(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training images `(1, C, H, W)` in [0, 1] and one central click on each target `(1, P, 1, 2)`."""
    dataset = SirstDataset(DATA / "NUAA-SIRST")
    found = []
    for id_ in dataset.train_ids[:count]:
        sample = dataset.labelled(id_)
        labels, number = components(sample.instances.semantic())
        points = [central_point(labels == index) for index in range(1, number + 1)]
        found.append((to_input(sample.image)[None], torch.from_numpy(np.stack(points))[None, :, None]))
    return found


@torch.inference_mode()
def agreement(
    first: PromptableSegmenter, second: PromptableSegmenter, cases: list[tuple[torch.Tensor, torch.Tensor]], device: str
) -> float:
    """IoU of two models' single masks, over all targets of all cases together."""
    both = either = 0
    for image, points in cases:
        image, points = image.to(device), points.to(device)
        masks = [s.decode(s.encode(image), points, multimask=False)[0] > 0 for s in (first, second)]
        both += int((masks[0] & masks[1]).sum())
        either += int((masks[0] | masks[1]).sum())
    return both / either


@torch.inference_mode()
def measure(name: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """One cell."""
    device, batch = options.device, options.batch
    plain, quick = build(name, device), build(name, device)
    precision, compiled = WAYS[way]
    quicken(quick, precision, compile=compiled)
    images = torch.rand(batch, 3, plain.frame, plain.frame, generator=torch.Generator().manual_seed(0)).to(device)
    with FlopCounterMode(display=False) as counter:
        exact = plain.encode(images).features
    began = time.perf_counter()
    for _ in range(2):
        rounded = quick.encode(images).features
    clock(device)
    started = time.perf_counter() - began
    baseline, ours = paired(lambda: plain.encode(images), lambda: quick.encode(images), device, options.seconds)
    error = max(float((a - b).norm() / a.norm()) for a, b in zip(exact, rounded, strict=True))
    rate = counter.get_total_flops() / ours / 1e12
    record: dict[str, Any] = {
        "benchmark": "speed-sam-encoder",
        "method": f"{name}-{way}",
        "baseline": f"{name} in float32, eager",
        "ratio": round(baseline / ours, 3),
        "images_per_second": round(batch / ours, 3),
        "baseline_images_per_second": round(batch / baseline, 3),
        "batch": batch,
        "frame": plain.frame,
        "tera_per_second": round(rate, 4),
        "feature_error": float(f"{error:.3g}"),
        "weights": f"nano-SAM's, {weights_sha256(plain)[:12]}" if name == "nano" else "random",
    }
    if compiled:
        record["compile_seconds"] = round(started, 1)
    if options.peak:
        record |= {"peak_tera_per_second": options.peak, "share_of_peak": round(rate / options.peak, 4)}
    if name == "nano":
        cases = clicks(options.images)
        record["mask_agreement"] = round(agreement(plain, quick, cases, device), 5)
        record["targets"] = sum(points.shape[1] for _, points in cases)
    if device != "cpu":
        record["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return record | {
        "device": f"cpu-{torch.get_num_threads()}" if device == "cpu" else torch.cuda.get_device_name(),
        "machine": processor(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__.split("+")[0],
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "sam-vit-b", "sam2.1-tiny"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    parser.add_argument("--seconds", type=float, default=10.0, help="about this long for each of the two of a pair")
    parser.add_argument("--images", type=int, default=60, help="images whose masks are compared")
    parser.add_argument("--peak", type=float, help="the device's peak in TFLOP/s, for the share of it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="measure cells anew that have a record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = "cpu" if options.device == "cpu" else torch.cuda.get_device_name().replace(" ", "-").lower()
    for name in options.models:
        for way in options.ways:
            path = options.out / f"{name}-{way}-{kind}.json"
            if path.exists() and not options.force:
                print(f"{path.name}: measured before")
                continue
            record = measure(name, way, options)
            write_json(path, record)
            print({key: record[key] for key in ("method", "ratio", "images_per_second", "feature_error")}, flush=True)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
