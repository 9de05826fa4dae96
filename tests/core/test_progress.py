"""Progress: plain lines where there is no terminal, and the estimate of the time left."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core import progress as module
from fewlabel.core.progress import WARM_UP, Remaining, duration, progress, track


def test_track_yields_everything_and_says_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([3, 1, 2], "counting")) == [3, 1, 2]
    assert "counting: 3/3" in capsys.readouterr().err


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 3599, 7262)] == ["0s", "59s", "1m00s", "59m59s", "2h01m"]


@given(st.floats(0, 1000), st.floats(0.001, 100), st.integers(0, 50), st.integers(5, 200))
def test_slow_first_steps_do_not_raise_the_estimate(warm_up: float, pace: float, start: int, steps: int) -> None:
    """Steps of one pace after a warm-up of any length: the estimate is exact as soon as there is one."""
    remaining = Remaining(start + steps)
    for step in range(1, steps + 1):
        left = remaining.update(start + step, warm_up + step * pace)
        if step <= WARM_UP:
            assert left is None
        else:
            assert left == pytest.approx((steps - step) * pace, rel=1e-6, abs=1e-6)


def test_without_progress_there_is_no_estimate() -> None:
    remaining = Remaining(9)
    assert [remaining.update(2, second) for second in range(5)] == [None] * 5


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_minute_is_not_taken_for_the_pace(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """A first step of half a minute, then one a second: on both kinds of output the time left is right."""
    clock, stream = Clock(), io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(module.sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "120")
    with progress("work", 40) as advance:
        for step in range(1, 41):
            clock.now += 30.0 if step == 1 else 1.0
            advance(step, "loss 1")
    said = stream.getvalue()
    if terminal:
        assert "40/40" in said and "0s left loss 1" in said
    else:
        assert said.splitlines() == [
            "work: 1/40, loss 1",
            "work: 11/40, 29s left, loss 1",
            "work: 21/40, 19s left, loss 1",
            "work: 31/40, 9s left, loss 1",
            "work: 40/40, 1m09s in all, loss 1",
        ]
