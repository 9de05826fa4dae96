"""`fewlabel pretrain`: train the embedded nano-SAM anew, or train its decoder alone."""

from pathlib import Path
from typing import Annotated

import typer

from fewlabel.cli.common import Device, Threads, prepare, stoppable
from fewlabel.core.errors import RunError


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for log, checkpoints and weights.")] = Path(
        "runs/nano-sam"
    ),
    preset: Annotated[str, typer.Option("--preset", help="Recipe: cpu for one core, gpu for large batches.")] = "cpu",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps; the recipe's by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    start: Annotated[str | None, typer.Option("--start", help="nano, or a folder of weights to go on from.")] = None,
    frozen_encoder: Annotated[
        bool,
        typer.Option("--frozen-encoder", help="Train only what prompts and masks need; goes with --start and --pool."),
    ] = False,
    pool: Annotated[int | None, typer.Option("--pool", min=1, help="Scenes in that pool.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps the pool's features from epoch to epoch.")
    ] = None,
    cache_gb: Annotated[
        float | None, typer.Option("--cache-gb", help="Bound on the cache, in 10^9 bytes; 10 by default.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that render scenes.")] = 0,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Train nano-SAM on rendered infrared scenes and objects with SAM's recipe."""
    if frozen_encoder != (pool is not None):
        raise RunError(
            f"{'--frozen-encoder' if frozen_encoder else f'--pool {pool}'} was given without "
            f"{'--pool' if frozen_encoder else '--frozen-encoder'}, but a frozen encoder sees a pool of scenes and a "
            "training one sees new scenes only; give both, as in --frozen-encoder --start nano --pool 1000, or neither."
        )
    if cache is None and cache_gb is not None:
        raise RunError(f"--cache-gb {cache_gb:g} was given without --cache; name the cache's folder, or leave it out.")
    chosen = prepare(threads, device)
    from fewlabel.core.files import read_json
    from fewlabel.sam.pretrain import TRAINING, configure, pretrain
    from fewlabel.training.loop import WEIGHTS

    config = configure(preset, steps=steps, pool=pool)
    finished = (out / WEIGHTS).exists()
    with stoppable():
        options = {} if cache_gb is None else {"cache_gb": cache_gb}
        result = pretrain(config, out, seed=seed, device=chosen, workers=workers, start=start, cache=cache, **options)
    hits = read_json(result.folder / TRAINING).get("hit_rate")
    rate = "" if hits is None else f", {100 * hits:.1f} % of the features were in the cache"
    done = "already done, " if finished else ""
    print(f"nano-SAM: {done}{result.steps} steps in {result.seconds:.0f} s{rate}, weights in {result.folder}")
