"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
PLAIN_SECONDS = 10.0  # between plain lines
WARM_UP = 3  # reports before the clock starts: first steps fill caches, choose kernels and start workers


class Remaining:
    """Estimate of the time left, from the pace since the warm-up; a first slow step does not count for all others."""

    def __init__(self, total: int) -> None:
        """Start without an estimate.

        Args:
            total: Number of items.
        """
        self.total = total
        self._reports = 0
        self._since: tuple[int, float] | None = None  # items done and the clock at the end of the warm-up

    def update(self, done: int, now: float) -> float | None:
        """Take in one report.

        Args:
            done: Items done so far.
            now: Clock in seconds, any origin.

        Returns:
            Seconds left; None while there is nothing to tell them from.
        """
        self._reports += 1
        if self._since is None:
            if self._reports >= WARM_UP:
                self._since = (done, now)
            return None
        before, then = self._since
        return (now - then) / (done - before) * (self.total - done) if done > before else None


def duration(seconds: float) -> str:
    """Seconds as `41s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def progress(label: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show progress of a piece of work on standard error.

    Args:
        label: What is being done.
        total: Number of items.
        start: Items that were done before, by an earlier run.

    Yields:
        `advance(done, note)`, to be called with the number of finished items and a short note such as the loss.
    """
    remaining = Remaining(total)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=start, left="", note="")

            def move(done: int, note: str = "") -> None:
                left = remaining.update(done, time.monotonic())
                bar.update(task, completed=done, left="" if left is None else f"{duration(left)} left", note=note)

            yield move
        return
    began = spoken = time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal spoken
        now = time.monotonic()
        left = remaining.update(done, now)
        if now - spoken < PLAIN_SECONDS and done < total:
            return
        spoken = now
        parts = [f"{label}: {done}/{total}"]
        if done >= total:
            parts.append(f"{duration(now - began)} in all")
        elif left is not None:
            parts.append(f"{duration(left)} left")
        print(", ".join([*parts, note] if note else parts), file=sys.stderr, flush=True)

    yield advance


def track(iterable: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate while showing progress.

    Args:
        iterable: The items.
        label: What is being done to them.
        total: Their number; `len(iterable)` when absent.

    Yields:
        The items.
    """
    count = total if total is not None else len(iterable)  # type: ignore[arg-type]  # callers without len give total
    with progress(label, count) as advance:
        for done, item in enumerate(iterable, start=1):
            yield item
            advance(done, "")
