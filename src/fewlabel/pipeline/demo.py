"""The main job in minutes, on rendered infrared scenes: no data, no download, no network."""

from importlib.resources import as_file, files
from pathlib import Path

from fewlabel.core.errors import RunError
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.pipeline.run import Run
from fewlabel.recipe import load_recipe, with_root

TRAIN, TEST, SIZE, SEED = 60, 30, 128, 7


def run_demo(out: Path, *, device: str = "cpu") -> None:
    """Render a small data set, then run the embedded demo recipe on it.

    Args:
        out: Run folder; the images go to `OUT/data/DEMO`.
        device: Where the networks train and label.

    Raises:
        RunError: `out` is a folder of something else.
    """
    data = out / "data" / "DEMO"
    if out.is_dir() and any(out.iterdir()) and not (out / "data").is_dir():
        raise RunError(f"{out} is not empty and holds no demo; give another folder with --out.")
    if not data.is_dir():
        write_dataset(data, train=TRAIN, test=TEST, seed=SEED, size=SIZE)
    with as_file(files("fewlabel") / "recipes" / "demo.yaml") as path:
        recipe = with_root(load_recipe(path), data)
    Run(recipe, out, device=device).execute("report")
