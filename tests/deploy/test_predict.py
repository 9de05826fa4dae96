"""A folder of real files through an exported model, read back by pycocotools."""

import csv
import json
import os

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Picture
from pycocotools.coco import COCO

from fewlabel.core.errors import DataError, ModelError
from fewlabel.core.masks import components
from fewlabel.core.radiometry import standardise
from fewlabel.core.types import Image
from fewlabel.data.pixels import read_image, read_mask
from fewlabel.deploy.overlay import COLOUR
from fewlabel.deploy.predict import predict_boxes, predict_folder
from fewlabel.deploy.predictions import find_images
from fewlabel.deploy.runtime import OnnxStudent

SPOTS = {
    "eight": ((70, 93), [(20, 30), (50, 60)]),
    "sixteen": ((41, 55), [(9, 41)]),
    "wide/colour": ((64, 130), [(30, 100)]),
    "blank": ((33, 47), []),
}


@pytest.fixture
def folder(tmp_path, make_scene):
    """8-bit PNG, 16-bit TIFF, colour JPEG in a subfolder, an image of one value; and files to pass over."""
    root = tmp_path / "images"
    (root / "wide").mkdir(parents=True)
    scenes = {name: make_scene(*size, spots) for name, (size, spots) in SPOTS.items()}
    Picture.fromarray((scenes["eight"] * 255).astype(np.uint8)).save(root / "eight.png")
    tifffile.imwrite(root / "sixteen.tif", (scenes["sixteen"] * 16383).astype(np.uint16))
    colour = np.repeat((scenes["wide/colour"] * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    Picture.fromarray(colour).save(root / "wide" / "colour.jpg", quality=95)
    Picture.fromarray(np.full((33, 47), 90, np.uint8)).save(root / "blank.png")
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"not an image")
    return root


def test_round_trip(folder, spot_onnx, spot_net, tmp_path, capsys):
    out = tmp_path / "out"
    summary = predict_folder(spot_onnx, folder, out)
    assert (summary.images, summary.targets, summary.rejected) == (4, 4, ())
    coco = COCO(str(out / "predictions.json"))
    by_name = {image["name"]: image for image in coco.dataset["images"]}
    assert set(by_name) == set(SPOTS)
    for name, (size, spots) in SPOTS.items():
        record = by_name[name]
        assert (record["height"], record["width"]) == size
        mask = read_mask(out / "masks" / f"{name}.png")
        assert mask.shape == size
        with Picture.open(out / "overlays" / f"{name}.png") as picture:
            assert picture.mode == "RGB" and picture.size == size[::-1]
        labels, count = components(mask)
        assert count == len(spots) and all(mask[spot] for spot in spots)

        path = next(folder.rglob(record["file_name"]))
        grey = torch.from_numpy(standardise(read_image(path).grey()))
        with torch.no_grad():
            probability = torch.sigmoid(spot_net(grey[None, None]))[0, 0].numpy()
        assert np.array_equal(mask, probability > 0.6)

        annotations = coco.loadAnns(coco.getAnnIds(imgIds=record["id"]))
        assert len(annotations) == count
        for number, annotation in enumerate(annotations, start=1):
            part = labels == number
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert np.array_equal(coco.annToMask(annotation).astype(bool), part)
            rows, columns = np.nonzero(part)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box and annotation["area"] == part.sum()
            assert annotation["score"] == pytest.approx(probability[part].mean(), abs=1e-5)
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "target"}]
    results = coco.loadRes([{**entry} for entry in coco.dataset["annotations"]])
    assert len(results.dataset["annotations"]) == 4
    assert not (out / "rejected.csv").exists()


def test_nothing_found_is_a_valid_file(spot_onnx, folder, tmp_path, capsys):
    summary = predict_folder(spot_onnx, folder / "blank.png", tmp_path / "out")
    assert (summary.images, summary.targets) == (1, 0)
    coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert len(coco.dataset["images"]) == 1 and coco.dataset["annotations"] == []


def test_a_corrupt_image_stops_the_run_and_leaves_nothing(spot_onnx, folder, tmp_path):
    content = (folder / "eight.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.png"):
        predict_folder(spot_onnx, folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_keep_going_lists_what_was_left_out(spot_onnx, folder, tmp_path):
    content = (folder / "eight.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.tif").write_bytes(b"")
    summary = predict_folder(spot_onnx, folder, tmp_path / "out", keep_going=True)
    assert summary.images == 4 and len(summary.rejected) == 2
    with (tmp_path / "out" / "rejected.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == ["cut", "empty"]
    assert [row["file"] for row in rows] == [str(folder / "cut.png"), str(folder / "empty.tif")]
    assert all(row["reason"] for row in rows)
    assert not (tmp_path / "out" / "masks" / "cut.png").exists()


def test_no_readable_image_is_an_error(spot_onnx, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="None of 1 images can be read"):
        predict_folder(spot_onnx, tmp_path / "images", tmp_path / "out", keep_going=True)
    assert not (tmp_path / "out").exists()


def test_an_earlier_prediction_is_replaced_whole(spot_onnx, folder, tmp_path):
    out = tmp_path / "out"
    predict_folder(spot_onnx, folder, out)
    predict_folder(spot_onnx, [folder / "eight.png"], out)
    assert [path.name for path in (out / "masks").rglob("*.png")] == ["eight.png"]
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 1


@pytest.mark.parametrize("foreign", ["thesis.docx", "masks/mine.png"])
def test_a_folder_with_other_files_is_refused(spot_onnx, folder, tmp_path, foreign):
    out = tmp_path / "out"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("precious")
    with pytest.raises(DataError, match="which no prediction wrote"):
        predict_folder(spot_onnx, folder, out)
    assert (out / foreign).read_text() == "precious"


def test_the_output_may_not_hold_the_images(spot_onnx, folder, tmp_path):
    predict_folder(spot_onnx, folder, tmp_path / "out")
    with pytest.raises(DataError, match="lies in the output folder"):
        predict_folder(spot_onnx, tmp_path / "out" / "masks", tmp_path / "out")
    with pytest.raises(DataError, match="is a file, expected an output folder"):
        predict_folder(spot_onnx, folder, folder / "eight.png")


def test_names(tmp_path):
    for name in ("a.png", "a.tif", "b.PNG", "sub/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = find_images(tmp_path)
    assert {str(path.relative_to(tmp_path)): name for path, name in names.items()} == {
        "a.png": "a.png",
        "a.tif": "a.tif",
        "b.PNG": "b",
        "sub/a.png": "sub/a",
    }
    with pytest.raises(DataError, match="Two of the given files are named"):
        find_images([tmp_path / "a.png", tmp_path / "sub" / "a.png"])
    with pytest.raises(DataError, match="neither a folder nor a file"):
        find_images(tmp_path / "none")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        find_images(tmp_path / "nothing")


def test_gain_and_offset_do_not_matter(spot_onnx, make_scene, tmp_path):
    """The same scene at 8-bit-like and 16-bit-like gain gives the same mask, as the sensor's units must not matter."""
    picture = (make_scene(50, 60, [(20, 30)]) * 1000).astype(np.uint16)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "low.tif", picture)
    tifffile.imwrite(tmp_path / "images" / "high.tif", (picture.astype(np.int64) * 40 + 5000).astype(np.uint16))
    predict_folder(spot_onnx, tmp_path / "images", tmp_path / "out")
    low, high = (read_mask(tmp_path / "out" / "masks" / f"{name}.png") for name in ("low", "high"))
    assert low.any() and np.array_equal(low, high)


def test_a_detector_writes_boxes_and_no_masks(folder, boxes_onnx, tmp_path):
    out = tmp_path / "out"
    summary = predict_folder(boxes_onnx, folder, out)
    assert (summary.images, summary.targets) == (4, 4)
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "predictions.json"]
    coco = COCO(str(out / "predictions.json"))
    assert coco.dataset["info"]["threshold"] == 0.6
    for record in coco.dataset["images"]:
        size, spots = SPOTS[record["name"]]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=record["id"]))
        boxes = sorted(annotation["bbox"] for annotation in annotations)
        assert boxes == sorted([column - 1, row - 1, 3, 3] for row, column in spots)
        assert all("segmentation" not in annotation and annotation["area"] == 9 for annotation in annotations)
        assert all(0.6 < annotation["score"] <= 1 for annotation in annotations)
        with Picture.open(out / "overlays" / f"{record['name']}.png") as picture:
            shown = np.asarray(picture)
        assert shown.shape == (*size, 3)
        red = (shown == COLOUR).all(2)
        expected = np.zeros(size, bool)
        for row, column in spots:
            expected[row - 3 : row + 4, column - 3 : column + 4] = True
            expected[row - 2 : row + 3, column - 2 : column + 3] = False
        np.testing.assert_array_equal(red, expected)
    results = coco.loadRes([{**entry} for entry in coco.dataset["annotations"]])
    assert len(results.dataset["annotations"]) == 4


def test_masks_of_an_earlier_prediction_go_when_boxes_come(folder, spot_onnx, boxes_onnx, tmp_path):
    predict_folder(spot_onnx, folder, tmp_path / "out")
    predict_folder(boxes_onnx, folder, tmp_path / "out")
    assert not (tmp_path / "out" / "masks").exists()


def test_boxes_need_a_detector(spot_onnx, make_scene):
    image = Image("one", make_scene(40, 40, [(9, 9)])[None].astype(np.float32))
    with pytest.raises(ModelError, match="gives masks, expected a detector"):
        predict_boxes(OnnxStudent(spot_onnx), image)


@pytest.fixture
def latin(folder):
    """A readable image and a subfolder of one, whose names are in Latin-1."""
    content = (folder / "eight.png").read_bytes()
    for name in (b"caf\xe9.png", b"\xe9t\xe9/eight.png"):
        path = folder / os.fsdecode(name)
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        except OSError:
            pytest.skip("this file system refuses such names")
    return folder


@pytest.mark.parametrize("model", ["spot_onnx", "boxes_onnx"])
def test_a_name_that_is_not_utf8_is_refused_before_the_first_image(latin, model, tmp_path, request, capsys):
    with pytest.raises(DataError) as error:
        predict_folder(request.getfixturevalue(model), latin, tmp_path / "out")
    shown = str(latin) + r"/caf\udce9.png"
    assert str(error.value) == f"'{shown}' has a name that is not UTF-8: rename the file or its folder."
    assert not (tmp_path / "out").exists() and "predict" not in capsys.readouterr().err
    summary = predict_folder(request.getfixturevalue(model), latin, tmp_path / "out", keep_going=True)
    assert (summary.images, len(summary.rejected)) == (4, 2)
    with (tmp_path / "out" / "rejected.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [r"caf\udce9", r"\udce9t\udce9/eight"]
    assert rows[0]["file"] == shown and all("is not UTF-8" in row["reason"] for row in rows)
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert {image["name"] for image in coco["images"]} == set(SPOTS)


def test_a_folder_above_may_have_such_a_name(latin, spot_onnx, tmp_path):
    root = latin / os.fsdecode(b"\xe9t\xe9")
    (root / "cut.png").write_bytes(b"x")
    summary = predict_folder(spot_onnx, root, tmp_path / "out", keep_going=True)
    assert (summary.images, summary.targets) == (1, 2)
    assert (tmp_path / "out" / "masks" / "eight.png").exists()
    assert r"/\udce9t\udce9/cut.png" in (tmp_path / "out" / "rejected.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", ["spot_onnx", "boxes_onnx"])
def test_the_limit_of_pixels_is_the_callers(folder, model, tmp_path, request):
    model, most = request.getfixturevalue(model), 64 * 130
    assert predict_folder(model, folder, tmp_path / "out", max_pixels=most).images == 4
    with pytest.raises(
        DataError, match=r"colour\.jpg announces 64 x 130 pixels, more than the limit of 8319: .*max_pixels"
    ):
        predict_folder(model, folder, tmp_path / "out", max_pixels=most - 1)
    summary = predict_folder(model, folder, tmp_path / "out", max_pixels=41 * 55 - 1, keep_going=True)
    assert [path.name for path, _ in summary.rejected] == ["eight.png", "sixteen.tif", "colour.jpg"]
