import hashlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from fewlabel.core.errors import DataError
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.data.synth.infrared import render


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def test_same_seed_gives_identical_bytes_and_another_seed_does_not(tmp_path):
    first = write_dataset(tmp_path / "a" / "demo", 3, 2, seed=4, size=48)
    second = write_dataset(tmp_path / "b" / "demo", 3, 2, seed=4, size=48)
    other = write_dataset(tmp_path / "c" / "demo", 3, 2, seed=5, size=48)
    assert digests(first) == digests(second)
    assert digests(first) != digests(other)
    assert len(digests(first)) == 12


def test_files_hold_the_rendered_scene(tmp_path):
    folder = write_dataset(tmp_path / "demo", 2, 1, seed=7, size=(40, 56))
    scene = render(np.random.default_rng([7, 1]), (40, 56))
    np.testing.assert_array_equal(tifffile.imread(folder / "images" / "scene_00001.tiff"), scene.radiance)
    mask = np.asarray(Image.open(folder / "masks" / "scene_00001.png"))
    np.testing.assert_array_equal(mask, np.where(scene.labels > 0, 255, 0))


def test_the_reader_reads_it(tmp_path):
    dataset = SirstDataset(write_dataset(tmp_path / "demo", 3, 2, seed=1, size=(40, 56)))
    assert dataset.name == "demo" and len(dataset.train_ids) == 3 and len(dataset.test_ids) == 2
    labelled = dataset.labelled(dataset.test_ids[0])
    scene = render(np.random.default_rng([1, 3]), (40, 56))
    assert labelled.image.dtype == "uint16"
    np.testing.assert_array_equal(labelled.image.pixels[0], scene.radiance.astype(np.float32))
    np.testing.assert_array_equal(labelled.instances.semantic(), scene.labels > 0)


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="exists already"):
        write_dataset(tmp_path, 1, 0, seed=0, size=32)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(("train", "test", "seed"), [(0, 1, 0), (1, -1, 0), (1, 0, -2)])
def test_impossible_numbers_are_refused(tmp_path, train, test, seed):
    with pytest.raises(DataError, match="train >= 1"):
        write_dataset(tmp_path / "demo", train, test, seed=seed, size=32)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="16x16"):
        write_dataset(tmp_path / "demo", 1, 0, seed=0, size=8)
    assert not (tmp_path / "demo").exists()
