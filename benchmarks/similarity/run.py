"""Time and peak memory of SAM's targets for structural distillation, beside the straightforward way.

    nice python benchmarks/similarity/run.py [--prompts 128] [--rounds 3] [--force]

Both ways make the rows of one image: for each one-point prompt, the cosines of the decoder's image tokens with the
token of the prompted cell. `ours` sends prompts through the prompt encoder and the two-way transformer in chunks and
keeps their rows (`fewlabel.sam.tokens`). The baseline decodes all prompts at once into masks, takes the tokens on their
way, and compares them. The network has SAM 2.1-tiny's published size (64 x 64 tokens of 256 channels) and random
weights, the image embedding is of random numbers, and encoding an image is no part of the measurement.

Every measurement has a process of its own, the ways take turns, one thread. `ratio` is the baseline's processor seconds
by ours, the median over rounds; `memory_ratio` the same of peak memory (VmHWM) above what the process held before:
interpreter, libraries, weights and embedding. `memory_ratio_process` includes these. `error` is the largest difference
of a cosine between the two.

Writes benchmarks/similarity/results/sam2.1-tiny-PROMPTS.json; what has a record is not measured again without --force.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402  the thread limits have to be set before its pools start
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from fewlabel.core.files import write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.pipeline.folder import peak_rss_mb, reset_peak  # noqa: E402
from fewlabel.sam.promptable import Embedding, PromptableSegmenter  # noqa: E402
from fewlabel.sam.tokens import CHUNK_NUMBERS, anchors, similarity_rows  # noqa: E402

RESULTS = Path(__file__).parent / "results"
WAYS = ("baseline", "ours")
SIDE, CHANNELS, FRAME = 64, 256, 1024


@torch.no_grad()
def straightforward(segmenter: PromptableSegmenter, embedding: Embedding, points: Tensor) -> Tensor:
    """Rows `(B, P, n)` from one pass of the whole decoder over all prompts."""
    seen: list[Tensor] = []
    decoder = segmenter.model.mask_decoder
    handle = decoder.transformer.register_forward_hook(lambda _module, _inputs, output: seen.append(output[1]))
    segmenter.decode_low(embedding, points[:, :, None], multimask=False)
    handle.remove()
    tokens = F.normalize(seen[0].reshape(*points.shape[:2], *seen[0].shape[-2:]), dim=-1)
    cells = anchors(segmenter.frame_of(embedding.size), points, SIDE)
    chosen = tokens.gather(2, cells[..., None, None].expand(-1, -1, 1, tokens.shape[-1]))
    return (chosen @ tokens.mT)[:, :, 0]


def measure(way: str, prompts: int, seed: int, rows: Path) -> dict[str, float]:
    """One way in this process: processor seconds, MiB at its peak and before it; the rows are saved."""
    from transformers import Sam2Config, Sam2Model

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    segmenter = PromptableSegmenter(Sam2Model(Sam2Config()), "sam2", "sam2.1-tiny").eval().requires_grad_(False)
    shapes = [(CHANNELS >> 3, 4 * SIDE), (CHANNELS >> 2, 2 * SIDE), (CHANNELS, SIDE)]
    embedding = Embedding([torch.randn(1, channels, side, side) for channels, side in shapes], (FRAME, FRAME))
    points = torch.rand(1, prompts, 2) * FRAME
    function = similarity_rows if way == "ours" else straightforward
    function(segmenter, embedding, points[:, :1])  # the first call sets buffers up
    reset_peak()
    before, began = peak_rss_mb(), time.process_time()
    found = function(segmenter, embedding, points)
    seconds, peak = time.process_time() - began, peak_rss_mb()
    torch.save(found, rows)
    return {"seconds": seconds, "before": before, "peak": peak}


def compare(prompts: int, rounds: int) -> dict[str, Any]:
    """Both ways in turns, each time in a new process."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            paths = {way: Path(folder) / f"{way}-{seed}.pt" for way in WAYS}
            for way, path in paths.items():
                command = [sys.executable, __file__, "--way", way, "--rows", str(path)]
                command += ["--prompts", str(prompts), "--seed", str(seed)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[way].append(json.loads(output.splitlines()[-1]))
                print(seed, way, found[way][-1], flush=True)
            one, other = (torch.load(path) for path in paths.values())
            errors.append(float((one - other).abs().max()))

    def ratio(value: str, less: str | None = None) -> float:
        pairs = zip(found["baseline"], found["ours"], strict=True)
        amounts = [[run[value] - (run[less] if less else 0) for run in pair] for pair in pairs]
        return round(median(slow / quick for slow, quick in amounts), 2)

    peaks = {way: median(run["peak"] - run["before"] for run in found[way]) for way in WAYS}
    return {
        "ratio": ratio("seconds"),
        "memory_ratio": ratio("peak", "before"),
        "memory_ratio_process": ratio("peak"),
        "error": max(errors),
        "seconds": round(median(run["seconds"] for run in found["ours"]), 2),
        "baseline_seconds": round(median(run["seconds"] for run in found["baseline"]), 2),
        "peak_mb": peaks["ours"],
        "baseline_peak_mb": peaks["baseline"],
        "before_mb": median(run["before"] for run in found["ours"]),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="measure again what has a record")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # what this file asks of its own processes
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.prompts, options.seed, options.rows)))
        return
    path = RESULTS / f"sam2.1-tiny-{options.prompts}.json"
    if path.exists() and not options.force:
        print(f"{path.name}: measured before")
        return
    load = os.getloadavg()[0]
    record = {
        "benchmark": "speed-similarity",
        "method": f"rows in chunks, {options.prompts} prompts",
        "baseline": "all prompts at once through the whole decoder, same weights",
        **compare(options.prompts, options.rounds),
        "prompts": options.prompts,
        "chunk": CHUNK_NUMBERS // (SIDE * SIDE * CHANNELS),
        "tokens": f"{SIDE} x {SIDE} x {CHANNELS}",
        "sam": "sam2.1-tiny's size, random weights",
        "threads": 1,
        "load": round(load, 2),
        "device": "cpu-1",
        "machine": processor(),
        "torch": torch.__version__.split("+")[0],
        "commit": commit(Path(__file__).parent),
        "date": date.today().isoformat(),
    }
    write_json(path, record)
    print({key: record[key] for key in ("ratio", "memory_ratio", "memory_ratio_process", "error")})


if __name__ == "__main__":
    main()
