"""Plain progress lines where there is no terminal."""

import pytest

from fewlabel.core.progress import duration, track


def test_track_yields_everything_and_says_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([3, 1, 2], "counting")) == [3, 1, 2]
    assert "counting: 3/3" in capsys.readouterr().err


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 3599, 7262)] == ["0s", "59s", "1m00s", "59m59s", "2h01m"]
