"""Label Studio's tasks, their geometry against the masks: the format has no reader here."""

import json
import xml.etree.ElementTree as etree
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.writers.contract import CLASSES, instances_of, label_map, samples

from fewlabel.core.errors import DataError
from fewlabel.core.masks import decode
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.polygons import fill_box, instances, rasterise
from fewlabel.data.writers import WRITERS, write


def tasks(out, items, **options):
    """Write and read the file of tasks; returns it and what was lost."""
    summary = write(WRITERS["labelstudio"], out, CLASSES, items, **options)
    return json.loads((out / "tasks.json").read_text(encoding="utf-8")), summary


def picture(height: int, width: int) -> Image:
    return Image("x", np.zeros((1, height, width), np.float32), "uint8", 8)


def even_odd(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill a polygon: a pixel is inside if a ray from its middle to the left crosses an odd number of edges."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (min(y0, y1) <= ys) & (ys < max(y0, y1))
            inside ^= crosses & (x0 + (ys - y0) * (x1 - x0) / (y1 - y0) < xs)
    return inside


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 21), st.integers(1, 21), st.integers(0, 5))
def test_polygons_are_the_masks(tmp_path_factory, seed, height, width, objects):
    truth = instances_of(label_map(seed, height, width, objects))
    out = tmp_path_factory.mktemp("ls") / "out"
    [task], _ = tasks(out, [("train", Labelled(picture(height, width), truth))])
    results = task["annotations"][0]["result"]
    assert [item["value"]["polygonlabels"] for item in results] == [[CLASSES[kind]] for kind in truth.classes]
    for item, rle in zip(results, truth.rles, strict=True):
        assert (item["original_width"], item["original_height"], item["type"]) == (width, height, "polygonlabels")
        points = np.array(item["value"]["points"])
        assert points.min() >= 0 and points.max() <= 100 + 1e-9
        pixels = points / 100 * (width, height)
        np.testing.assert_array_equal(even_odd(pixels.round(6), (height, width)), decode(rle))
        assert rasterise([pixels], (height, width)) == rle


def test_rectangles(tmp_path):
    rle, box = fill_box((1.25, 2, 7.75, 15), (20, 40))
    sample = Labelled(picture(20, 40), instances((20, 40), [rle], [2], [box]))
    [task], _ = tasks(tmp_path / "out", [("train", sample)], boxes_only=True)
    [item] = task["annotations"][0]["result"]
    assert item["type"] == "rectanglelabels" and item["value"] == {
        **{"x": 3.125, "y": 10.0, "width": 16.25, "height": 65.0, "rotation": 0},
        "rectanglelabels": ["traffic light"],
    }
    assert etree.parse(tmp_path / "out/config.xml").find("RectangleLabels/Label").get("value") == "cat"


def test_files(tmp_path):
    items = samples(tmp_path / "from")
    found, summary = tasks(tmp_path / "out", items)
    assert (summary.images, summary.labelled) == (5, 4)
    view = etree.parse(tmp_path / "out/config.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == list(CLASSES)
    assert view.find("PolygonLabels").get("toName") == view.find("Image").get("name") == "image"
    for task, (part, sample) in zip(found, items, strict=True):
        assert (task["data"]["id"], task["data"]["part"]) == (sample.image.id, part)
        place = unquote(task["data"]["image"]).removeprefix("/data/local-files/?d=")
        assert (tmp_path / "out" / place).is_file()
        assert ("annotations" in task) == isinstance(sample, Labelled)
    assert found[1]["annotations"] == [{"result": []}]  # seen, and nothing there


def test_labels_of_models_are_predictions(tmp_path):
    masks = np.zeros((3, 9, 9), bool)
    masks[0, 1:4, 1:4] = masks[2, 5:, 5:] = True
    masks[0, 2, 2] = False
    labels = Instances.from_masks(masks, classes=[0, 1, 1], scores=[0.5, 0.25, 0.75], source="student", round=2)
    sample = Labelled(picture(9, 9), labels, Instances.from_masks(~masks[:1]))
    [task], summary = tasks(tmp_path / "out", [("train", sample)])
    [prediction] = task["predictions"]
    assert "annotations" not in task and prediction["model_version"] == "student, round 2"
    assert [item["score"] for item in prediction["result"]] == [0.5, 0.75] and prediction["score"] == 0.5
    assert len({item["id"] for item in prediction["result"]}) == 2
    assert summary.lost == {
        "ignored regions": 1,
        "objects without a pixel": 1,
        "holes of objects, which Label Studio shows as filled": 1,
    }


def test_a_failure_leaves_nothing(tmp_path):
    items = samples(tmp_path / "from")
    with pytest.raises(DataError, match="comes twice"):
        tasks(tmp_path / "out", [items[0], items[0]])
    assert not (tmp_path / "out").exists()
