"""The run folder: which stages are done, with which inputs, and the manifests that say so."""

import datetime
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fewlabel import __version__
from fewlabel.core.errors import RunError
from fewlabel.core.files import read_json, sha256_file, sha256_json, write_json

Stage = Literal["check", "split", "teach", "label", "synthetic", "train", "baselines", "eval", "report"]
NEEDS: dict[Stage, tuple[Stage, ...]] = {
    "check": (),
    "split": ("check",),
    "teach": ("split",),
    "label": ("teach",),
    "synthetic": (),
    "train": ("label", "synthetic"),
    "baselines": ("split", "synthetic"),
    "eval": ("train", "baselines"),
    "report": ("eval",),
}
STAGES: tuple[Stage, ...] = tuple(NEEDS)  # an order in which each stage comes after those it needs

MANIFEST = "manifest.json"  # written last: a stage is done when it is there
STARTED = "started.json"  # written first: says which inputs a half-done stage was begun with


def plan(until: Stage) -> list[Stage]:
    """The stages that a stage rests on, directly or not, in order, and the stage itself last."""
    wanted = {until}
    for stage in reversed(STAGES):
        if stage in wanted:
            wanted.update(NEEDS[stage])
    return [stage for stage in STAGES if stage in wanted]


@dataclass(frozen=True)
class RunFolder:
    """A folder with one recipe's results, one folder for each stage.

    Attributes:
        path: The folder.
    """

    path: Path

    def stage(self, stage: Stage) -> Path:
        """Folder of a stage."""
        return self.path / stage

    def manifest(self, stage: Stage) -> dict[str, Any] | None:
        """Manifest of a finished stage, else None."""
        path = self.stage(stage) / MANIFEST
        return read_json(path) if path.is_file() else None

    def fingerprint(self, stage: Stage, config: Any) -> str:
        """Hash of all that a stage's result depends on.

        Args:
            stage: The stage.
            config: JSON value of the settings and inputs that the stage itself reads.

        Returns:
            Hexadecimal SHA-256 over settings, the fingerprints of the stages it needs, and the version of fewlabel.

        Raises:
            RunError: A stage that it needs is not done.
        """
        before = {}
        for need in NEEDS[stage]:
            manifest = self.manifest(need)
            if manifest is None:
                raise RunError(f"Stage {stage!r} of {self.path} needs stage {need!r}, which is not done; run it first.")
            before[need] = manifest["fingerprint"]
        return sha256_json({"stage": stage, "config": config, "needs": before, "version": __version__})

    def run_stage(self, stage: Stage, fingerprint: str, work: Callable[[Path], None], *, redo: bool = False) -> bool:
        """Do a stage unless it is done.

        A stage that was begun with the same fingerprint goes on in its folder; `work` finds there what it had written.

        Args:
            stage: The stage.
            fingerprint: Hash of all it depends on.
            work: Fills the folder it is given.
            redo: Remove results of other settings instead of refusing to touch them.

        Returns:
            Whether there was something to do.

        Raises:
            RunError: The folder holds results, finished or not, that other settings made.
        """
        folder = self.stage(stage)
        found = next((read_json(path) for name in (MANIFEST, STARTED) if (path := folder / name).is_file()), None)
        if found is not None and found["fingerprint"] != fingerprint:
            if not redo:
                raise RunError(
                    f"Stage {stage!r} in {self.path} was made with other settings, data or version of fewlabel; choose"
                    " another run folder with --out, or give --redo to replace this stage and all after it."
                )
            shutil.rmtree(folder)
            found = None
        if found is not None and (folder / MANIFEST).is_file():
            return False
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / STARTED, {"stage": stage, "fingerprint": fingerprint, "seconds": 0.0})
            found = {"seconds": 0.0}
        with self._clock(folder, stage, fingerprint, found["seconds"]) as spent:
            work(folder)
        outputs = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STARTED)
        manifest = {
            "stage": stage,
            "fingerprint": fingerprint,
            "version": __version__,
            "seconds": round(spent(), 1),
            "peak_rss_mb": peak_rss_mb(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "outputs": {str(path.relative_to(folder)): sha256_file(path) for path in outputs},
        }
        write_json(folder / MANIFEST, manifest)
        (folder / STARTED).unlink()
        return True

    @contextmanager
    def _clock(self, folder: Path, stage: Stage, fingerprint: str, before: float) -> Iterator[Callable[[], float]]:
        """Count seconds over interrupted sessions; what a SIGKILL takes away is not counted."""
        began = time.monotonic()

        def spent() -> float:
            return before + time.monotonic() - began

        try:
            yield spent
        except BaseException:
            write_json(folder / STARTED, {"stage": stage, "fingerprint": fingerprint, "seconds": round(spent(), 1)})
            raise


def peak_rss_mb() -> int:
    """Highest resident memory of this process so far, in MiB."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return round(usage / (1024 * 1024 if platform.system() == "Darwin" else 1024))


def machine() -> str:
    """Operating system, processor type, number of usable cores, Python and torch versions in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads,"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )
