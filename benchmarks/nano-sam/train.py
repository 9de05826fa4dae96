"""Pre-train nano-SAM within a budget of time, and measure what came out: one command for one machine.

    python benchmarks/nano-sam/train.py OUT --device cuda --workers 15 --seconds 450 [--call-seconds 450]

A schedule that follows the clock could not be made again, so the clock is read only once: training runs for
`--probe-seconds` at a steady rate in a folder that is thrown away, and the number of steps is set to what fits
into `--seconds` at that rate. From there on it is `fewlabel pretrain` with that many steps; the number is kept in
`plan.json` in the run folder.

Where one call may not last as long as the training, `--call-seconds` stops it in good order: weights are published as
they are, and the same command goes on from the checkpoint.

OUT receives `config.json`, `model.safetensors` and `training.json` (a folder to be loaded as a model, or embedded by
copying the three files), `log.jsonl`, and the figures on the rendered hold-out scenes (`synthetic-*.json`, by run.py).
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402  the thread limits have to be set before numpy starts its pools

from fewlabel.core.files import read_json, write_json  # noqa: E402
from fewlabel.sam.pretrain import PRESETS, PretrainConfig, configure, pretrain, publish  # noqa: E402
from fewlabel.sam.pretrain_batches import AHEAD  # noqa: E402
from fewlabel.training.log import LOG, read_log  # noqa: E402

HERE = Path(__file__).parent
RESERVE = 0.97  # share of the budget that the steps are to take: checkpoints and a busy machine take the rest


@contextmanager
def stopped_when(due: Callable[[], bool]) -> Iterator[None]:
    """Send this process SIGTERM, which ends a training in good order, as soon as `due` says so; then carry on."""
    over = threading.Event()

    def interrupt(kind: int, frame: FrameType | None) -> None:  # where no training listens: before and after it
        raise KeyboardInterrupt

    def watch() -> None:
        while not over.wait(0.2):
            if due():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, interrupt)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if watcher.is_alive():  # somebody else's signal
            raise
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def rate(config: PretrainConfig, seed: int, device: str, workers: int, start: str | None, seconds: float) -> float:
    """Steps per second of a training, measured for `seconds` once the batches made in advance are spent."""
    endless = config.model_copy(update={"steps": 1_000_000, "log_every": 4})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def steady() -> list[dict[str, float]]:
            return [line for line in read_log(folder / LOG) if line["step"] > AHEAD * workers]

        def due() -> bool:
            lines = steady()
            return len(lines) >= 2 and lines[-1]["seconds"] - lines[0]["seconds"] >= seconds

        with stopped_when(due):
            pretrain(endless, folder, seed, device, workers=workers, start=start)
        first, *_, last = steady()
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


def plan(run: Path, config: PretrainConfig, options: argparse.Namespace) -> PretrainConfig:
    """The options with the number of steps that fits the budget; an earlier call's plan is kept."""
    path = run / "plan.json"
    if not path.exists():
        measured = rate(config, options.seed, options.device, options.workers, options.start, options.probe_seconds)
        steps = max(1, int(RESERVE * measured * options.seconds))
        write_json(path, {"steps_per_second": round(measured, 3), "seconds": options.seconds, "steps": steps})
    chosen = read_json(path)
    print(f"{chosen['steps']} steps: {chosen['steps_per_second']} a second for {chosen['seconds']} s", flush=True)
    return config.model_copy(update={"steps": chosen["steps"]})


def measure(out: Path, images: int) -> None:
    """The published weights on the rendered hold-out scenes, both kinds at once."""
    command = [
        sys.executable,
        str(HERE / "run.py"),
        "--model",
        str(out),
        "--images",
        str(images),
        "--results",
        str(out),
    ]
    kinds = ("synthetic-infrared", "synthetic-objects")
    running = [subprocess.Popen([*command, "--force", "--sets", kind]) for kind in kinds]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("run.py failed")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-train"), help="run folder, with the checkpoint")
    parser.add_argument("--preset", choices=list(PRESETS), default="gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--seconds", type=float, default=450, help="budget of the training over all calls")
    parser.add_argument("--call-seconds", type=float, help="stop this call's training then")
    parser.add_argument("--probe-seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="weights to go on from: nano or a folder")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--images", type=int, default=60, help="hold-out scenes of each kind; 0 measures nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = configure(options.preset, batch=options.batch, precision=options.precision)
    config = plan(options.run, config, options)
    limit = time.monotonic() + (options.call_seconds or float("inf"))
    with stopped_when(lambda: time.monotonic() > limit and bool(read_log(options.run / LOG))):
        pretrain(config, options.run, options.seed, options.device, workers=options.workers, start=options.start)
    facts = publish(options.run, options.out)
    shutil.copyfile(options.run / LOG, options.out / LOG)
    print({name: facts[name] for name in ("steps", "finished", "seconds", "total")}, flush=True)
    if options.images:
        measure(options.out, options.images)


if __name__ == "__main__":
    main()
