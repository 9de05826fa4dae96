"""Being asked to stop, without being stopped in the middle of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGINT only fill the list; a second one acts as it did before.

    Python delivers signals to the main thread alone, so elsewhere the list stays empty.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def note(kind: int, frame: FrameType | None) -> None:
        arrived.append(kind)
        restore()

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield arrived
    finally:
        restore()
