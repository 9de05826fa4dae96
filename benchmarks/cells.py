"""Cells of a grid that take minutes to hours: each in a process of its own, measured once, side by side.

A grid's script calls itself with `--cell JSON` for each cell, so that one that dies takes no other with it. Cells that
share a stage, such as a teacher, do it once, in a folder of their own, and copy it.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fewlabel.core.files import write_json
from fewlabel.core.provenance import commit, processor
from fewlabel.pipeline.folder import RunFolder, Stage
from fewlabel.pipeline.staged import StagedRun


class Cell(Protocol):
    """One measurement: a dataclass of plain values with a name that no other has."""

    @property
    def name(self) -> str:
        """Name of the record, without its ending."""
        ...


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def shared(run: StagedRun, folder: Path, stages: tuple[Stage, ...], target: RunFolder) -> None:
    """Do stages in a folder that several cells use, and copy them to a cell's."""
    with alone(folder):
        replace(run, path=folder).execute(stages[-1])
        for stage in stages:
            if target.manifest(stage) is None:
                shutil.copytree(folder / stage, target.stage(stage), dirs_exist_ok=True)


def changes_of(cell: Any, root: Path) -> tuple[str, ...]:
    """What every grid's cells change in a recipe: data, share, seeds and name."""
    return (
        f"data.root={json.dumps(str(root.resolve()))}",
        f"split.fraction={cell.fraction}",
        f"seed={cell.seed}",
        f"split.seed={cell.seed}",
        f"name={cell.name}",
    )


def measured(manifests: Sequence[dict[str, Any]], device: str, script: Path) -> dict[str, Any]:
    """What every record says of how it was measured.

    Args:
        manifests: Of the stages that the method needs.
        device: Where the networks trained.
        script: The grid's script, for the commit.
    """
    return {
        "seconds": round(sum(manifest["seconds"] for manifest in manifests), 1),
        "peak_rss_mb": max(manifest["peak_rss_mb"] for manifest in manifests),
        "device": f"cpu-{os.cpu_count()}" if device == "cpu" else device,
        "machine": processor(),
        "torch": manifests[0]["machine"].rsplit(" ", 1)[-1],
        "commit": commit(script.parent),
        "date": manifests[0]["date"],
    }


def options_of(parser: argparse.ArgumentParser, runs: Path) -> None:
    """Add the options that every grid has."""
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets' folders")
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--fractions", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side, one thread each")
    parser.add_argument("--runs", type=Path, default=runs, help="where the run folders go")
    parser.add_argument("--results", type=Path, help="where the records go; the benchmark's results by default")
    parser.add_argument("--device", default="cpu", help="where the networks train and label")
    parser.add_argument("--set", action="append", default=[], help="further changes to the recipe")
    parser.add_argument("--force", action="store_true", help="measure cells anew that have a record")
    parser.add_argument("--list", action="store_true", help="only say which cells have a record")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # one cell as JSON, in this very process


def chosen(cells: Sequence[Any], **wanted: Sequence[Any] | None) -> list[Any]:
    """The cells whose attributes are among the wanted values; None wants them all."""
    return [
        cell for cell in cells if all(values is None or getattr(cell, key) in values for key, values in wanted.items())
    ]


def carry_out(
    script: Path,
    options: argparse.Namespace,
    cells: Sequence[Cell],
    measure: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]],
) -> None:
    """Do what the options ask for, and exit.

    Args:
        script: The grid's script, which is called again for each cell.
        options: Those of `options_of`, with `results` set.
        cells: The wanted cells.
        measure: Of one cell, from its values to its name and its record.
    """
    if options.cell:
        import torch

        torch.set_num_threads(1)
        name, record = measure(json.loads(options.cell))
        write_json(options.results / f"{name}.json", record)
        return
    if options.list:
        for cell in cells:
            print(f"{'recorded' if (options.results / f'{cell.name}.json').is_file() else 'not run ':9s} {cell.name}")
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        sys.exit(max(pool.map(lambda cell: _in_a_process(script, cell, options), cells), default=0))


def _in_a_process(script: Path, cell: Cell, options: argparse.Namespace) -> int:
    """Measure one cell in a process of its own, with one thread."""
    if (options.results / f"{cell.name}.json").is_file() and not options.force:
        return 0
    log = options.runs / "logs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), "--data", str(options.data), "--runs", str(options.runs)]
    command += ["--results", str(options.results), "--device", options.device, "--cell", json.dumps(vars(cell))]
    for change in options.set:
        command += ["--set", change]
    with log.open("a") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    print(f"{cell.name}: {'done' if status == 0 else f'ended with status {status}, see {log}'}", flush=True)
    return status
