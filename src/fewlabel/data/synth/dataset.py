"""Writing synthetic infrared scenes as a data set on disk, in the layout of the public SIRST sets."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from fewlabel.core.errors import DataError
from fewlabel.core.files import replace_folder, write_text
from fewlabel.data.synth.infrared import InfraredConfig, render


def write_dataset(
    folder: Path,
    train: int,
    test: int,
    seed: int,
    size: tuple[int, int] | int = 256,
    config: InfraredConfig | None = None,
) -> Path:
    """Render scenes and write them as `images/ID.tiff` (16-bit grey), `masks/ID.png` (0 / 255) and two id lists.

    The lists are `img_idx/train_NAME.txt` and `img_idx/test_NAME.txt` with NAME = the folder's name. Image k depends
    on `seed` and k alone, so a longer data set starts with the same images, and the same call writes the same bytes.
    The folder appears complete or not at all.

    Args:
        folder: where to write; must not exist yet or be empty.
        train: number of training images, at least 1.
        test: number of test images, 0 or more.
        seed: non-negative seed.
        size: (height, width) or one side, in pixels.
        config: ranges of the renderer.

    Returns:
        The folder.

    Raises:
        DataError: the folder holds something already, or a number is out of range.
    """
    folder = Path(folder)
    if train < 1 or test < 0 or seed < 0:
        raise DataError(f"A synthetic data set needs train >= 1, test >= 0 and seed >= 0; got {train}, {test}, {seed}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; name a new folder for the synthetic data set or remove this one.")
    ids = [f"scene_{k:05d}" for k in range(train + test)]
    with replace_folder(folder) as fresh:
        for part in ("images", "masks"):
            (fresh / part).mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(ids):
            scene = render(np.random.default_rng([seed, k]), size, config)
            _write_tiff(fresh / "images" / f"{name}.tiff", scene.radiance)
            Image.fromarray(((scene.labels > 0) * 255).astype(np.uint8)).save(fresh / "masks" / f"{name}.png")
        for part, members in (("train", ids[:train]), ("test", ids[train:])):
            write_text(fresh / "img_idx" / f"{part}_{folder.name}.txt", "".join(f"{name}\n" for name in members))
    return folder


def _write_tiff(path: Path, counts: np.ndarray) -> None:
    """One 16-bit grey TIFF without date or software tags, so that equal pixels give equal bytes."""
    tifffile.imwrite(path, counts, photometric="minisblack", software=False, metadata=None, compression=None)
