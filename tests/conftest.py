"""Shared test settings: one thread, and where the real data sets lie."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test is skipped, saying so, where it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"real data sets are not at {DATA}; set FEWLABEL_DATA to their folder")
    return DATA
