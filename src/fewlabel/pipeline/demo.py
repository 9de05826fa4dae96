"""The main job in minutes, on rendered infrared scenes: no data, no download, no network."""

from importlib.resources import as_file, files
from pathlib import Path

from fewlabel.core.errors import RunError
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.data.synth.infrared import InfraredConfig
from fewlabel.pipeline.run import Run
from fewlabel.recipe import Recipe, load_recipe, of_method, with_root

TRAIN, TEST, SIZE, SEED = 80, 40, 256, 7

SCENES = InfraredConfig(
    kinds=dict.fromkeys(("cumulus", "terrain", "sea", "buildings", "mixture", "fields"), 1.0),
    psf=(1.2, 1.8),
    read_noise=(0.004, 0.016),
    stripes=1.5,
    distractors=0.5,
)
"""What the demo's images are rendered from: blurrier, noisier and more cluttered than the renderer's defaults.

The teacher's own scenes keep the defaults. Otherwise it would be taught on the very distribution that it labels.
"""

CAVEAT = (
    f"The demo's images are rendered, {SIZE} x {SIZE} pixels each, and so are the scenes that nano-SAM, the teacher and"
    " the pre-trained students learned from: by the same renderer, though the demo's are blurrier, noisier and more"
    " cluttered. That favours fewlabel over labels-only, and synthetic-pretrained most of all. It is one seed, few"
    " steps and a small test list: it shows the way, not the gain. Results on recorded images are in the README."
)


def run_demo(out: Path, *, device: str = "cpu") -> None:
    """Render a small data set, run the embedded demo recipe on it, and say what its figures are worth.

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
        write_dataset(data, train=TRAIN, test=TEST, seed=SEED, size=SIZE, config=SCENES)
    with as_file(files("fewlabel") / "recipes" / "demo.yaml") as path:
        recipe = with_root(of_method(load_recipe(path), Recipe, "The demo"), data)
    Run(recipe, out, device=device).execute("report")
    print(CAVEAT)
