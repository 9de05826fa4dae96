"""The page that shows what training will see."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fewlabel.cli import app
from fewlabel.core.errors import DataError
from fewlabel.data.augment import AugmentConfig, Patch, crop_batch
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.pipeline.preview import CROPS, SCENES, preview_folder, row_of
from fewlabel.students.train import StudentConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "scalpel-sirst.yaml"


def test_crops_are_those_of_training():
    rng = np.random.default_rng(1)
    image = rng.standard_normal((60, 50)).astype(np.float32)
    target = np.zeros((60, 50), bool)
    target[20:23, 30:32] = True
    patch = Patch(image, target, np.ones_like(image), "one")
    config = StudentConfig(crop=32, augment=AugmentConfig())
    row = row_of(patch, config, np.random.default_rng(5), whole=True)
    batch = crop_batch([patch] * CROPS, 32, np.random.default_rng(5), config.augment)
    assert row.whole is not None and row.whole.targets == 1
    for view, image, target in zip(row.crops, batch.images, batch.targets, strict=True):
        np.testing.assert_array_equal(view.image, image[0])
        np.testing.assert_array_equal(view.target, target[0] > 0)


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "scenes", train=3, test=2, seed=0, size=48)


def test_folder(folder, tmp_path):
    preview_folder(folder, tmp_path / "page.html", images=2, seed=0)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 2 * (1 + CROPS) and page.count("data:image/png;base64,") == 2 * (1 + CROPS)
    assert "http" not in page.replace("http-equiv", "") and "target_probability" in page
    preview_folder(folder, tmp_path / "again.html", images=2, seed=0)
    assert (tmp_path / "again.html").read_text() == page
    preview_folder(folder, tmp_path / "other.html", images=2, seed=1)
    assert (tmp_path / "other.html").read_text() != page


def test_large_images_are_shown_by_their_crops_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fewlabel.pipeline.preview.SHOWN", 10)
    preview_folder(folder, tmp_path / "page.html", images=2, seed=0)
    assert (tmp_path / "page.html").read_text().count("<figure>") == 2 * CROPS


def test_recipe_adds_its_scenes_and_shows_no_test_image(folder, tmp_path):
    out = tmp_path / "page.html"
    sets = [f"data.root={folder}", "student.training.crop=32", "student.training.augment.turns=false"]
    arguments = ["preview", str(RECIPE), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *(part for change in sets for part in ("--set", change))])
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert page.count("<figure>") == 3 * (1 + CROPS) + SCENES * CROPS
    shown = set(re.findall("<h3><code>(.*?)</code></h3>", page))
    tested = set((folder / "img_idx" / "test_scenes.txt").read_text().split())
    assert tested and not shown & tested
    assert "<td>False</td>" in page and "32 × 32 pixels" in page


def test_nothing_to_show(folder, tmp_path):
    for mask in (folder / "masks").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="no labelled training image"):
        preview_folder(folder, tmp_path / "page.html", images=2, seed=0)
    assert not (tmp_path / "page.html").exists()
    result = CliRunner().invoke(app, ["preview", str(folder), "--set", "seed=1"])
    assert result.exit_code != 0 and "belongs to a recipe" in str(result.exception)
