"""YOLO's labels that are written: polygons with holes and parts, and boxes."""

import numpy as np
import pytest
import yaml
from tests.data.readers.test_yolo import BOX, add, names
from tests.data.writers.contract import CLASSES, WriterContract, instances_of, samples
from tests.data.writers.test_coco import blank

from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances, Labelled
from fewlabel.data.readers import open_folder
from fewlabel.data.writers import WRITERS, convert, write


class TestPolygons(WriterContract):
    format = "yolo"

    def test_the_yaml_names_folders_beside_it(self, tmp_path):
        self.write(tmp_path / "out", samples(tmp_path / "from"))
        value = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
        assert value["names"] == dict(enumerate(CLASSES)) and value["train"] == "images/train"
        assert value["val"] == value["test"] == "images/test"
        assert not (tmp_path / "out/labels/train/float.txt").exists()
        assert (tmp_path / "out/labels/train/colour.txt").read_text() == ""

    def test_a_ring_is_one_polygon(self, tmp_path):
        labels = np.ones((8, 9), np.int64)
        labels[3:5, 3:6] = 0
        self.write(tmp_path / "out", [("train", Labelled(blank("a", 8, 9), instances_of(labels)))])
        lines = (tmp_path / "out/labels/train/a.txt").read_text().splitlines()
        assert len(lines) == 1 and lines[0].startswith("0 0 0 ")


class TestBoxes(WriterContract):
    format = "yolo-boxes"
    reader = "yolo"
    boxes = True
    tolerance = 1e-4

    def test_masks_are_counted_as_lost(self, tmp_path):
        items = samples(tmp_path / "from")
        summary = self.write(tmp_path / "out", items)
        assert summary.lost == {"masks of objects": summary.objects}
        assert open_folder(tmp_path / "out").boxes_only

    def test_objects_that_cover_each_other(self, tmp_path):
        masks = np.zeros((2, 8, 10), bool)
        masks[0, 1:6, 2:7] = masks[1, 4:8, 5:9] = True
        wanted = Instances.from_masks(masks, classes=[1, 1])
        self.write(tmp_path / "out", [("train", Labelled(blank("a", 8, 10), wanted))])
        got = self.open(tmp_path / "out").labelled("a").instances
        np.testing.assert_array_equal(got.masks(), masks)


def test_boxes_stay_boxes(tmp_path):
    names(tmp_path / "in", "names: [cat, dog]\ntrain: images\n")
    add(tmp_path / "in", "images/a.png", f"{BOX}\n0 0.5 0.5 0.123 0.457")
    data = open_folder(tmp_path / "in")
    for format in ("yolo", "yolo-boxes", "coco"):
        summary = convert(data, tmp_path / format, format)
        again = open_folder(tmp_path / format)
        assert again.boxes_only and not summary.lost and again.train_ids == ("a",), format
        np.testing.assert_allclose(
            again.labelled("a").instances.boxes, data.labelled("a").instances.boxes, rtol=0, atol=1e-5
        )
        assert again.labelled("a").instances.rles == data.labelled("a").instances.rles


def test_names_that_yaml_takes_for_something_else(tmp_path):
    classes = ("no", "1.5", "null", "été: #1", "- x")
    write(WRITERS["yolo"], tmp_path / "out", classes, [("train", Labelled(blank("a", 8, 9), Instances((8, 9))))])
    assert open_folder(tmp_path / "out").classes == classes
    for wrong, words in (
        ((), "of its own"),
        (("a", "a"), "of its own"),
        (("a", " "), "of its own"),
        (("a\nb",), "print"),
    ):
        for format in ("yolo", "yolo-boxes", "coco"):
            with pytest.raises(DataError, match=words):
                write(WRITERS[format], tmp_path / "other", wrong, [])


def test_what_cannot_be_converted(tmp_path):
    names(tmp_path / "in", "names: [cat, dog]\ntrain: images\n")
    add(tmp_path / "in", "images/a.png", BOX)
    data = open_folder(tmp_path / "in")
    with pytest.raises(DataError, match="no data format 'tfrecord' to write; choose one of"):
        convert(data, tmp_path / "out", "tfrecord")
    for out in (tmp_path / "in/out", tmp_path / "in"):
        with pytest.raises(DataError, match="lies within the data set"):
            convert(data, out, "yolo")
    add(tmp_path / "in", "images/b.png", "5 0 0 0")
    with pytest.raises(DataError, match=r"b.txt, line 1"):
        convert(open_folder(tmp_path / "in"), tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()
