"""Images that are predicted by tiles give what the whole image gives."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Picture
from torch import nn

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD, Image
from fewlabel.data import pixels
from fewlabel.data.pixels import read_image
from fewlabel.data.windows import TiffWindows
from fewlabel.deploy import large
from fewlabel.deploy.export import export_student
from fewlabel.deploy.predict import predict_folder, predict_image
from fewlabel.deploy.runtime import OnnxStudent

CUTS = {  # radiometry and the value above which the student calls a pixel a target
    "standard": (STANDARD, 6.0),
    "fixed": (Radiometry(policy="fixed", low=1800, high=2600), 0.0),
    "min-max": (Radiometry(policy="min-max"), 0.0),
    "percentile": (Radiometry(policy="percentile"), 6.0),
    "clahe": (Radiometry(policy="clahe"), 1.6),
}


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory):
    """Exported students that look at one pixel, so that tiling can change nothing but rounding; each is made once."""
    folder = tmp_path_factory.mktemp("models")

    def made(policy="standard"):
        path = folder / f"{policy}.onnx"
        if path.exists():
            return path
        radiometry, cut = CUTS[policy]
        network = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            network.weight.fill_(4.0)
            network.bias.fill_(-4.0 * cut)
        return export_student(network, path, name="points", metadata={"radiometry": radiometry})

    return made


@pytest.fixture
def picture(tmp_path, monkeypatch):
    """A tiled TIFF of uint16 that counts as too large to be held."""
    monkeypatch.setattr(large, "LARGE", 100_000)
    monkeypatch.setattr(large, "HELD", 100_000)
    rng = np.random.default_rng(3)
    values = rng.normal(2000, 20, (410, 1290)).astype(np.uint16)
    for row, column in ((0, 0), (120, 1020), (250, 130), (409, 1289), (1, 1100)):
        values[max(row - 2, 0) : row + 3, max(column - 3, 0) : column + 3] += 400
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "wide.tif", values, tile=(128, 128))
    return tmp_path / "in" / "wide.tif"


def rewritten(picture, kind):
    """The same values in another kind of file."""
    values = tifffile.imread(picture)
    picture.unlink()
    path = picture.with_suffix("." + kind.split()[0])
    if kind == "npy":
        np.save(path, values)
    elif kind == "tif packed":  # windows of it cannot be read
        Picture.fromarray(values).save(path, compression="packbits")
    elif kind == "jpg":
        Picture.fromarray((values // 10).astype(np.uint8)).save(path, quality=95)
    elif kind == "bmp":
        Picture.fromarray((values // 10).astype(np.uint8)).save(path)
    else:
        Picture.fromarray(values).save(path)
    return path


def agree(student, opened, whole):
    """Tiles against one pass of the network; returns the number of targets."""
    mask, found = predict_image(student, whole)
    tiled, instances = large.predict_large(student, opened)
    np.testing.assert_array_equal(tiled, mask)
    assert instances.rles == found.rles and instances.source == "student"
    np.testing.assert_allclose(instances.scores, found.scores, atol=1e-5)
    return len(found)


@pytest.mark.parametrize("policy", ["standard", "fixed", "min-max"])
@pytest.mark.parametrize("kind", ["tif", "npy"])
def test_windows_give_what_the_whole_gives(picture, pointwise, kind, policy):
    path = picture if kind == "tif" else rewritten(picture, kind)
    student = OnnxStudent(pointwise(policy))
    opened = large.open_image(path, "wide")
    assert not isinstance(opened, Image)
    assert agree(student, opened, read_image(path)) == 5


@pytest.mark.parametrize("policy", CUTS)
def test_images_in_memory_take_any_radiometry(picture, pointwise, policy):
    opened = large.open_image(rewritten(picture, "png"), "wide")
    assert isinstance(opened, Image) and large.is_large(opened)
    found = agree(OnnxStudent(pointwise(policy)), opened, opened)
    assert found == 5 or policy == "clahe"


@pytest.mark.parametrize("policy", ["percentile", "clahe"])
def test_radiometry_that_needs_the_whole_image_is_refused(picture, pointwise, policy):
    student = OnnxStudent(pointwise(policy))
    reader = large.open_image(picture, "wide")
    with pytest.raises(DataError, match=rf"410 x 1290 pixels is predicted by windows .* radiometry '{policy}'.*100000"):
        large.predict_large(student, reader)


@pytest.mark.parametrize(
    ("kind", "held"),
    [("tif", True), ("tif packed", False), ("npy", True), ("png", False), ("jpg", False), ("bmp", False)],
)
def test_the_network_never_sees_a_large_image_whole(picture, pointwise, tmp_path, monkeypatch, kind, held):
    path = picture if kind == "tif" else rewritten(picture, kind)
    if held:  # too large for one pass, but not to be held
        monkeypatch.setattr(large, "HELD", 410 * 1290)
    shapes, decoded, run, decode = [], [], OnnxStudent.logits, pixels.decode

    def watched(self, images):
        shapes.append(images.shape)
        return run(self, images)

    def counted(*args, **kwargs):
        decoded.append(args)
        return decode(*args, **kwargs)

    monkeypatch.setattr(OnnxStudent, "logits", watched)
    monkeypatch.setattr(pixels, "decode", counted)
    model = pointwise()
    shapes.clear()
    assert predict_folder(model, path, tmp_path / "out").targets == 5
    assert shapes == [(1, 1, large.TILE, large.TILE)] * 2 and len(decoded) == 1
    with Picture.open(tmp_path / "out" / "overlays" / "wide.png") as overlay:
        assert overlay.size == (1290, 410)


def test_a_small_image_is_seen_as_a_whole(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LARGE", 410 * 1290)
    opened = large.open_image(rewritten(picture, "png"), "wide")
    assert not large.is_large(opened) and large.is_large(replace(opened, pixels=np.zeros((1, 411, 1290), np.float32)))


def test_folder_writes_masks_and_targets_of_large_images(picture, pointwise, tmp_path):
    tifffile.imwrite(picture.with_name("small.tif"), np.arange(600, dtype=np.uint16).reshape(20, 30))
    summary = predict_folder(pointwise(), picture.parent, tmp_path / "out")
    assert (summary.images, summary.rejected) == (2, ())
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    sizes = {image["name"]: (image["height"], image["width"]) for image in coco["images"]}
    assert sizes == {"small": (20, 30), "wide": (410, 1290)}
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["small.png", "wide.png"]
    assert [path.name for path in (tmp_path / "out" / "overlays").iterdir()] == ["small.png"]


def test_only_files_too_large_to_hold_are_opened_by_windows(picture, tmp_path):
    assert isinstance(large.open_image(picture, "wide"), TiffWindows)
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((20, 30), np.uint16))
    for path in (tmp_path / "small.tif", rewritten(picture, "tif packed")):
        opened, expected = large.open_image(path, "an id"), read_image(path, "an id")
        assert isinstance(opened, Image) and np.array_equal(opened.pixels, expected.pixels)
        assert replace(opened, pixels=expected.pixels) == expected


@pytest.mark.parametrize("kind", ["png", "tif packed"])
def test_the_limit_counts_for_what_is_decoded_as_a_whole(picture, monkeypatch, kind):
    most = 410 * 1290
    assert not isinstance(large.open_image(picture, "wide", max_pixels=1), Image)
    path = rewritten(picture, kind)
    with pytest.raises(DataError, match=f"more than the limit of {most - 1}: .*raise max_pixels"):
        large.open_image(path, "wide", max_pixels=most - 1)
    # As if the usual limit were below this image's size.
    monkeypatch.setitem(read_image.__kwdefaults__, "max_pixels", most - 1)
    monkeypatch.setattr(large, "MAX_PIXELS", most - 1)
    assert large.open_image(path, "wide", max_pixels=most).size == (410, 1290)
    with pytest.raises(DataError, match=f"more than the limit of {most - 1}"):
        large.open_image(path, "wide", max_pixels=most - 1)
