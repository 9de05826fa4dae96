"""The run folder: which stages are done, with which inputs, and the manifests that say so."""

import datetime
import os
import platform
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

import fewlabel
from fewlabel import __version__
from fewlabel.core.errors import FewlabelError, RunError
from fewlabel.core.files import read_json, sha256_file, sha256_json, write_json
from fewlabel.training import ranks

Stage = Literal["check", "split", "teach", "label", "synthetic", "train", "smaller", "baselines", "eval", "report"]


@dataclass(frozen=True)
class Plan:
    """The stages of a method.

    Attributes:
        needs: The stages that each one rests on directly, in an order in which each comes after those it needs.
        rooms: Rooms whose source code decides a stage's result.
        costly: Stages whose results are never replaced without being told to.
    """

    needs: Mapping[Stage, tuple[Stage, ...]]
    rooms: Mapping[Stage, tuple[str, ...]]
    costly: frozenset[Stage]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return tuple(self.needs)

    def until(self, last: Stage) -> list[Stage]:
        """The stages that a stage rests on, directly or not, in order, and the stage itself last."""
        wanted = {last}
        for stage in reversed(self.stages):
            if stage in wanted:
                wanted.update(self.needs[stage])
        return [stage for stage in self.stages if stage in wanted]


SCALPEL = Plan(
    needs={
        "check": (),
        "split": ("check",),
        "teach": ("split",),
        "label": ("teach",),
        "synthetic": (),
        "train": ("label", "synthetic"),
        "baselines": ("split", "synthetic"),
        "eval": ("train", "baselines"),
        "report": ("eval",),
    },
    rooms={
        "check": ("core", "data"),
        "split": ("core", "data"),
        "teach": ("core", "data", "training", "sam", "scalpel"),
        "label": ("core", "data", "training", "sam", "scalpel", "labels"),
        "synthetic": ("core", "data", "training", "students"),
        "train": ("core", "data", "training", "students", "labels"),
        "baselines": ("core", "data", "training", "students"),
        "eval": ("core", "data", "students", "metrics"),
        "report": ("core", "data", "students", "scalpel", "report"),
    },
    costly=frozenset({"teach", "label", "synthetic", "train", "baselines"}),
)

S4M = Plan(
    needs={
        "check": (),
        "split": ("check",),
        "teach": ("split",),
        "train": ("teach",),
        "smaller": ("train",),
        "baselines": ("split",),
        "eval": ("train", "smaller", "baselines"),
        "report": ("eval",),
    },
    rooms={
        "check": ("core", "data"),
        "split": ("core", "data"),
        **dict.fromkeys(("teach", "train", "smaller", "baselines"), ("core", "data", "training", "sam", "s4m")),
        "eval": ("core", "data", "s4m", "metrics"),
        "report": ("core", "data", "s4m", "report"),
    },
    costly=frozenset({"teach", "train", "smaller", "baselines"}),
)

MANIFEST = "manifest.json"  # written last: a stage is done when it is there
STARTED = "started.json"  # written first: says which inputs a half-done stage was begun with


@dataclass(frozen=True)
class RunFolder:
    """A folder with one recipe's results, one folder for each stage.

    Attributes:
        path: The folder.
        plan: The stages of its method.
    """

    path: Path
    plan: Plan = SCALPEL

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
            Hexadecimal SHA-256 over settings, the fingerprints of the stages it needs, and the code of its rooms.

        Raises:
            RunError: A stage that it needs is not done.
        """
        before = {}
        for need in self.plan.needs[stage]:
            manifest = self.manifest(need)
            if manifest is None:
                raise RunError(f"Stage {stage!r} of {self.path} needs stage {need!r}, which is not done; run it first.")
            before[need] = manifest["fingerprint"]
        return sha256_json(
            {"stage": stage, "config": config, "needs": before, "code": code_hash(self.plan.rooms[stage])}
        )

    def run_stage(
        self,
        stage: Stage,
        fingerprint: str,
        work: Callable[[Path], None],
        *,
        settings: dict[str, Any],
        recipe: Any,
        redo: bool = False,
    ) -> bool:
        """Do a stage unless it is done.

        A stage that was begun with the same fingerprint goes on in its folder; `work` finds there what it had written.
        Results of other settings are replaced where that costs nothing but seconds: neither the stage nor a stage
        behind it is among the plan's costly ones.

        Args:
            stage: The stage.
            fingerprint: Hash of all it depends on.
            work: Fills the folder it is given.
            settings: JSON value of the settings and inputs that the stage reads, by name; kept, so that a later refusal
                can say which of them differs.
            recipe: JSON value of the whole recipe, kept in the manifest.
            redo: Replace results of other settings, whatever they cost.

        Returns:
            Whether there was something to do.

        Raises:
            RunError: The folder holds costly results, finished or not, that other settings made.
            FewlabelError: The work cannot be done; a stage that is cheap, or made nothing yet, leaves nothing behind.
        """
        folder = self.stage(stage)
        started = {"stage": stage, "fingerprint": fingerprint, "settings": settings}
        before = ranks.first_only(lambda: self._begin(stage, started, redo))
        if before is None:
            return False
        reset_peak()
        try:
            with self._clock(folder / STARTED, started, before) as spent:
                if stage in self.plan.costly:
                    work(folder)
                else:
                    ranks.first_only(lambda: work(folder))
        except FewlabelError:
            made = [path for path in folder.rglob("*") if path.is_file() and path.name != STARTED]
            if (stage not in self.plan.costly or not made) and ranks.is_first():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        ranks.first_only(lambda: self._finish(stage, started, recipe, spent()))
        return True

    def _begin(self, stage: Stage, started: dict[str, Any], redo: bool) -> float | None:
        """Make a stage's folder ready; the seconds that were spent in it before, None where the stage is done."""
        folder, fingerprint = self.stage(stage), started["fingerprint"]
        found = next((read_json(path) for name in (MANIFEST, STARTED) if (path := folder / name).is_file()), None)
        if found is not None and found["fingerprint"] != fingerprint:
            if not redo and self.costly(stage):
                raise RunError(
                    f"Stage {stage!r} in {self.path} was made with other settings, data or code"
                    f"{_hint(found.get('settings'), started['settings'])}; choose another run folder with --out, or"
                    " give --redo to replace this stage and all after it."
                )
            shutil.rmtree(folder)
            found = None
        if found is not None and all((folder / name).is_file() for name in found.get("outputs", [MANIFEST])):
            return None
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            found = {"seconds": 0.0}
            write_json(folder / STARTED, {**started, **found})
        (folder / MANIFEST).unlink(missing_ok=True)
        return float(found["seconds"])

    def _finish(self, stage: Stage, started: dict[str, Any], recipe: Any, seconds: float) -> None:
        """Write the manifest, after which the stage is done."""
        folder = self.stage(stage)
        outputs = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STARTED)
        manifest = {
            "stage": stage,
            "fingerprint": started["fingerprint"],
            "version": __version__,
            "seconds": round(seconds, 1),
            "peak_rss_mb": peak_rss_mb(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "settings": started["settings"],
            "recipe": recipe,
            "outputs": {str(path.relative_to(folder)): sha256_file(path) for path in outputs},
        }
        write_json(folder / MANIFEST, manifest)
        (folder / STARTED).unlink(missing_ok=True)

    def costly(self, stage: Stage) -> bool:
        """Whether replacing a stage would throw away hours: its own, or those of a stage behind it."""
        behind = [later for later in self.plan.stages if stage in self.plan.until(later)]
        return any(later in self.plan.costly and self.stage(later).is_dir() for later in behind)

    @contextmanager
    def _clock(self, path: Path, started: dict[str, Any], before: float) -> Iterator[Callable[[], float]]:
        """Count seconds over interrupted sessions; what a SIGKILL takes away is not counted."""
        began = time.monotonic()

        def spent() -> float:
            return before + time.monotonic() - began

        try:
            yield spent
        except BaseException:
            if not ranks.is_first():
                raise
            write_json(path, started | {"seconds": round(spent(), 1)})
            raise


def _hint(before: Any, now: Any) -> str:
    """Which setting differs, for a sentence; nothing where what was made did not keep its settings."""
    if before is None:
        return ""
    found = list(_differences(before, now, ""))
    if not found:
        return " (its own settings are the same: the code, or a stage before it, has changed)"
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f" ({found[0]}{more})"


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    """Each value that differs between two JSON values, as `key.key was A, is B`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        yield f"{name} was {before!r}, is {now!r}"


@cache
def code_hash(rooms: tuple[str, ...]) -> str:
    """SHA-256 over the source files of some rooms, so that changed code is noticed between two releases as well."""
    package = Path(fewlabel.__file__).parent
    files = [path for room in rooms for path in sorted((package / room).rglob("*.py"))]
    return sha256_json({str(path.relative_to(package)): sha256_file(path) for path in files})


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start a new reading of the highest resident memory, where the system can (Linux)."""
    with suppress(OSError):
        RESET.write_text("5")


def peak_rss_mb() -> int:
    """Highest resident memory of this process in MiB: since `reset_peak` on Linux, since its start elsewhere."""
    if STATUS.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return round(int(found[1]) / 1024)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(usage / (1024 * 1024 if platform.system() == "Darwin" else 1024))  # macOS counts bytes


def machine() -> str:
    """Operating system, processor type, number of usable cores, Python and torch versions in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads,"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )
