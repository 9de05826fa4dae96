"""Where a measurement was made: the machine, and the state of the code."""

import os
import platform
import subprocess
from pathlib import Path

# What a measurement writes must not mark the code behind it as changed.
RESULTS = (":(top)", ":(top,exclude)benchmarks/*/results/*", ":(top,exclude)docs", ":(top,exclude)README.md")


def processor() -> str:
    """The processor's name, where the system tells it, and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def commit(folder: Path) -> str:
    """Which code a folder of a git checkout holds.

    Args:
        folder: Any folder of the checkout.

    Returns:
        Short hash of the commit; with `-dirty` where a file differs from it or is new, leaving out the benchmarks'
        results, docs and README.md, which measurements write; "unknown" outside a checkout or without git.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    name = git("rev-parse", "--short", "HEAD")
    changes = git("status", "--porcelain", "--", *RESULTS)
    return "unknown" if name is None else name + ("-dirty" if changes else "")
