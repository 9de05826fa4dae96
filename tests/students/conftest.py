"""What all trainings of students promise."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewlabel.data.augment import Patch
from fewlabel.data.pool import Draw

Train = Callable[[Path, Draw], nn.Module]


@pytest.fixture
def resumed_equals_whole(tmp_path: Path) -> Callable[[Train, Draw, int], nn.Module]:
    """Check that a training stopped in a draw and called again ends with the bits of one that was not stopped.

    The check takes the training, ``(folder, draw) -> trained model``, what it draws from, and the number of the draw
    in which the process is told to stop; it returns the uninterrupted model, trained in the folder "whole".
    """

    def check(train: Train, draw: Draw, stop_at: int) -> nn.Module:
        steps = iter(range(100))

        def stopping(n: int, rng: np.random.Generator) -> list[Patch]:
            if next(steps) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(n, rng)

        whole = train(tmp_path / "whole", draw)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", stopping)
        resumed = train(tmp_path / "cut", draw)
        pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        return whole

    return check
