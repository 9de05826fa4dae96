"""Images that are predicted by tiles give what the whole image gives."""

import json

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import Radiometry
from fewlabel.data.pixels import read_image
from fewlabel.deploy import large
from fewlabel.deploy.export import export_student
from fewlabel.deploy.predict import predict_folder, predict_image
from fewlabel.deploy.runtime import OnnxStudent


def pointwise(path, **metadata):
    """A student that looks at one pixel, so that tiling can change nothing but rounding."""
    network = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        network.weight.fill_(4.0)
        network.bias.fill_(-24.0)
    return export_student(network, path, name="points", metadata=metadata)


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LARGE", 100_000)
    rng = np.random.default_rng(3)
    values = rng.normal(2000, 20, (410, 1290)).astype(np.uint16)
    for row, column in ((0, 0), (120, 1020), (250, 130), (409, 1289), (1, 1100)):
        values[max(row - 2, 0) : row + 3, max(column - 3, 0) : column + 3] += 400
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "wide.tif", values, tile=(128, 128))
    return tmp_path / "in" / "wide.tif"


def test_tiles_give_what_the_whole_gives(picture, tmp_path):
    student = OnnxStudent(pointwise(tmp_path / "model.onnx"))
    mask, found = predict_image(student, read_image(picture))
    reader = large.large_image(picture)
    assert reader is not None
    tiled, instances = large.predict_large(student, reader)
    assert len(found) == 5
    np.testing.assert_array_equal(tiled, mask)
    assert instances.rles == found.rles and instances.source == "student"
    np.testing.assert_allclose(instances.scores, found.scores, atol=1e-5)


def test_folder_writes_masks_and_targets_of_large_images(picture, tmp_path):
    tifffile.imwrite(picture.with_name("small.tif"), np.arange(600, dtype=np.uint16).reshape(20, 30))
    summary = predict_folder(pointwise(tmp_path / "model.onnx"), picture.parent, tmp_path / "out")
    assert (summary.images, summary.rejected) == (2, ())
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    sizes = {image["name"]: (image["height"], image["width"]) for image in coco["images"]}
    assert sizes == {"small": (20, 30), "wide": (410, 1290)}
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["small.png", "wide.png"]
    assert [path.name for path in (tmp_path / "out" / "overlays").iterdir()] == ["small.png"]


def test_only_files_with_windows_are_tiled(picture, tmp_path):
    assert large.large_image(picture.with_suffix(".png")) is None
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((20, 30), np.uint16))
    assert large.large_image(tmp_path / "small.tif") is None


def test_radiometry_that_needs_the_whole_image_is_refused(picture, tmp_path):
    student = OnnxStudent(pointwise(tmp_path / "m.onnx", radiometry=Radiometry(policy="percentile")))
    reader = large.large_image(picture)
    with pytest.raises(DataError, match=r"410 x 1290 pixels is predicted by tiles, but the radiometry 'percentile'"):
        large.predict_large(student, reader)
