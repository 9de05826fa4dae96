"""The tutorials of docs/formats.md: each is run as it stands, on a data set of the layout that it is about."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers import (
    test_cityscapes,
    test_coco,
    test_cvat,
    test_labelme,
    test_masks,
    test_video,
    test_voc,
    test_yolo,
)
from tests.data.readers.contract import save_pictures

from fewlabel.data.readers import READERS
from fewlabel.data.synth.dataset import write_dataset

DOCS = Path(__file__).parents[1] / "docs"

# By format: the folder that the tutorial names, how it is made (three images of which two are labelled with three
# objects, one of them for testing, unless said otherwise), and what the tutorial has to print besides the format.
TUTORIALS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "coco": ("my-coco", test_coco.TestContract().make, "wrote 5 images, 2 of them labelled, with 3 objects"),
    "yolo": ("my-yolo", test_yolo.TestContract().make, "4 training and 1 test images, 3 with masks"),
    "voc": (".", test_voc.TestMaps().make, "4 training and 1 test images, 2 with masks"),  # makes VOCdevkit/VOC2012
    "cityscapes": ("cityscapes", test_cityscapes.TestContract().make, "instances_test.json"),
    "labelme": ("my-labelme", test_labelme.TestContract().make, "wrote 5 images, 2 of them labelled, with 3 objects"),
    "cvat": ("my-cvat", test_cvat.TestPolygonsAndMasks().make, "wrote 5 images, 2 of them labelled, with 3 objects"),
    "sirst": ("my-sirst", lambda root: write_dataset(root, 3, 1, seed=0, size=32), "5 training and 1 test images, 4"),
    "masks": ("nuclei", test_masks.TestInstanceMaps().make, "wrote 5 images, 2 of them labelled, with 3 objects"),
    "video": ("footage", test_video.make, "night__film__000011.png"),
    "plain": ("flight", lambda root: damaged(root), "c.png is empty"),
}


def damaged(root: Path) -> None:
    """Three images without labels; one has lost its bytes."""
    save_pictures(root)
    (root / "c.png").write_bytes(b"")


def blocks(text: str) -> dict[str, list[str]]:
    """The shell blocks of each section whose heading ends with a format in brackets."""
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    named = {found[1]: section for section in sections if (found := re.match(r".*\(`(\S+)`\)$", section, re.M))}
    return {name: re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S) for name, section in named.items()}


FOUND = blocks((DOCS / "formats.md").read_text(encoding="utf-8"))


def test_every_format_has_one_tutorial() -> None:
    assert {name: len(FOUND.get(name, ())) for name in READERS} == dict.fromkeys(READERS, 1)
    assert set(TUTORIALS) == set(READERS)


@pytest.mark.parametrize("format", READERS)
def test_tutorial_runs(format: str, tmp_path: Path) -> None:
    folder, make, wanted = TUTORIALS[format]
    make(tmp_path / folder)
    rng = np.random.default_rng(1)
    (tmp_path / "new").mkdir()
    for name in ("0007", "0008"):
        Pillow.fromarray(rng.integers(0, 255, (24, 32), dtype=np.uint8)).save(tmp_path / f"new/{name}.png")
    (script,) = FOUND[format]
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"format: {format}, because it " in done.stdout and wanted in done.stdout, done.stdout
