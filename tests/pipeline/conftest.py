"""A recipe small enough to run whole in a test: tiny scenes, few steps, real networks."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fewlabel.data.synth.dataset import write_dataset


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and three test scenes of 48 x 48 pixels in the SIRST layout."""
    folder = tmp_path_factory.mktemp("data") / "TINY"
    write_dataset(folder, train=12, test=3, seed=5, size=48)
    return folder


def tiny_values(root: Path) -> dict[str, Any]:
    """Values of a recipe that runs in seconds."""
    return {
        "name": "tiny",
        "data": {"root": str(root)},
        "split": {"fraction": 0.5, "validation_share": 0.2},
        "teacher": {"sam": "nano"},
        "teach": {"steps": 2, "batch": 1, "log_every": 1},
        "label": {"views": "one"},
        "student": {
            "network": "unet",
            "training": {"steps": 3, "batch": 2, "crop": 32, "log_every": 1},
            "synthetic_steps": 2,
            "compare": ["labels-only", "synthetic-pretrained", "all-labels"],
        },
    }


@pytest.fixture
def recipe_file(scenes: Path, tmp_path: Path) -> Path:
    """The tiny recipe as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(scenes)))
    return path
