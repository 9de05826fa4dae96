"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
PLAIN_SECONDS = 10.0  # between plain lines


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
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=start, note="")

            def move(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield move
        return
    began = spoken = time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken < PLAIN_SECONDS and done < total:
            return
        spoken = now
        left = (now - began) / max(done - start, 1) * (total - done)
        ending = f"{duration(now - began)} in all" if done >= total else f"{duration(left)} left"
        print(f"{label}: {done}/{total}, {ending}{', ' + note if note else ''}", file=sys.stderr, flush=True)

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
