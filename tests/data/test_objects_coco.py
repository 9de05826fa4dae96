"""COCO data sets of synthetic objects: read back by pycocotools, the reference implementation."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from fewlabel.core.errors import DataError
from fewlabel.data.synth.objects import ObjectsConfig, catalogue_for, render
from fewlabel.data.synth.objects_coco import write_coco_dataset


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("style", ["generic", "fluorescence"])
def test_pycocotools_reads_the_very_masks(tmp_path, style):
    folder = write_coco_dataset(tmp_path / "set", 3, seed=4, style=style, classes=5, size=(96, 128))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations.json")
    catalogue = catalogue_for(np.random.default_rng([4, 0, 1]), style, ObjectsConfig(), 5)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [kind.name for kind in catalogue.kinds]
    total = 0
    for k, image in enumerate(coco.loadImgs(coco.getImgIds())):
        scene = render(np.random.default_rng([4, k, 2]), (96, 128), catalogue=catalogue)
        pixels = np.asarray(Image.open(folder / "images" / image["file_name"]))
        assert np.array_equal(pixels, scene.pixels.transpose(1, 2, 0))
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(scene.classes)
        labels = np.zeros((96, 128), np.int32)
        for number, annotation in enumerate(annotations, 1):
            mask = coco.annToMask(annotation).astype(bool)
            labels[mask] = number
            assert annotation["category_id"] == scene.classes[number - 1] + 1
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert np.array_equal(labels, scene.labels)
        total += len(annotations)
    assert total > 5


def test_same_call_same_bytes_and_a_longer_set_starts_alike(tmp_path):
    first, again, longer = (
        write_coco_dataset(tmp_path / name, count, seed=1, size=48) for name, count in (("a", 2), ("b", 2), ("c", 3))
    )
    assert files(first) == files(again)
    pictures = {name: data for name, data in files(longer).items() if name in files(first) and name.suffix == ".png"}
    assert pictures == {name: data for name, data in files(first).items() if name.suffix == ".png"}
    short, long = (json.loads((folder / "annotations.json").read_text()) for folder in (first, longer))
    assert long["annotations"][: len(short["annotations"])] == short["annotations"]
    assert files(first) != files(write_coco_dataset(tmp_path / "d", 2, seed=2, size=48))


def test_a_folder_in_use_and_bad_numbers_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_coco_dataset(tmp_path / "x", 1, seed=0)
    with pytest.raises(DataError, match="images >= 1"):
        write_coco_dataset(tmp_path / "y", 0, seed=0)
    with pytest.raises(DataError, match="choose 1 to 20 classes"):
        write_coco_dataset(tmp_path / "y", 1, seed=0, classes=50)
    assert not (tmp_path / "y").exists()
