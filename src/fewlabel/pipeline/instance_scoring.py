"""How good the networks of a run of instance segmentation are, and which of them ships."""

import math
from pathlib import Path
from typing import Any

from fewlabel.core.files import read_json, write_json
from fewlabel.core.progress import track
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.instance_stages import class_count, score, trained_network
from fewlabel.recipe import InstanceMethod, InstanceRecipe
from fewlabel.s4m.network import InstanceSegmenter

COLUMNS = (
    ("AP %", "AP", 7),
    ("AP50 %", "AP50", 7),
    ("AP75 %", "AP75", 7),
    ("small", "AP_small", 7),
    ("medium", "AP_medium", 7),
    ("large", "AP_large", 7),
    ("bound.", "boundary_AP", 7),
)
"""Heading, key and width of the columns of the terminal's score table."""


def method_folder(folder: RunFolder, method: InstanceMethod) -> Path:
    """Where the network of a method is."""
    stage = {"fewlabel": "train", "smaller": "smaller"}.get(method, "baselines")
    return folder.stage(stage) / method  # type: ignore[arg-type]


def load_network(recipe: InstanceRecipe, folder: RunFolder, method: InstanceMethod, classes: int) -> InstanceSegmenter:
    """A trained network of a run, in eval mode."""
    config = recipe.smaller if method == "smaller" and recipe.smaller is not None else recipe.network
    return trained_network(recipe, config, classes, method_folder(folder, method))


def evaluate(
    recipe: InstanceRecipe, dataset: Dataset, split: Split, folder: RunFolder, out: Path, *, device: str = "cpu"
) -> None:
    """Score every network on the test list; writes scores.json, numbers that are not known as null.

    Without a test list no network is scored, which the score table says.
    """
    classes = class_count(dataset)
    scores: dict[str, Any] = {}
    for method in recipe.methods if split.test else ():
        network = load_network(recipe, folder, method, classes).to(device)
        scores[method] = score(network, dataset, track(split.test, f"test {method}"), recipe.eval.side).compute()
    write_json(out / "scores.json", _known({"methods": scores, "classes": list(dataset.classes)}))


def _known(value: Any) -> Any:
    """The same JSON value with null in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def score_table(folder: Path) -> str:
    """The score table of an eval stage as plain text, at most 100 characters wide."""
    content = read_json(folder / "scores.json")
    if not content["methods"]:
        return "no test images, so no network was scored"
    head = " ".join(f"{heading:>{width}s}" for heading, _, width in COLUMNS)
    lines = [f"{'method':24s} {head}   (test list)"]
    for name, row in content["methods"].items():
        cells = (f"{'–' if row[key] is None else f'{row[key]:.1f}':>{width}s}" for _, key, width in COLUMNS)
        lines.append(f"{name:24s} {' '.join(cells)}")
    return "\n".join(lines)
