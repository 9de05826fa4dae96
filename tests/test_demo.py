"""The demo as a newcomer runs it: in time, in memory, without a network. Minutes of CPU, so run by `make test-slow`."""

import resource
import socket
import time
from pathlib import Path

import pytest
import torch

from fewlabel.pipeline.demo import run_demo


@pytest.mark.slow
def test_demo_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.set_num_threads(2)
    began = time.monotonic()
    try:
        run_demo(tmp_path / "demo")
    finally:
        torch.set_num_threads(1)
    assert time.monotonic() - began < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 1024 * 1024
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
