"""COCO files that are written: the COCO tools read them, and exact boxes stay."""

import json

import numpy as np
from pycocotools.coco import COCO
from tests.data.readers.test_coco import coco, save_grey
from tests.data.writers.contract import CLASSES, WriterContract, instances_of, label_map, samples

from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.readers import open_folder
from fewlabel.data.writers import WRITERS, convert, write
from fewlabel.data.writers.coco import CocoWriter


def blank(id: str, height: int, width: int) -> Image:
    return Image(id, np.arange(height * width, dtype=np.float32).reshape(1, height, width) % 251, "uint8", 8)


class TestContract(WriterContract):
    format = "coco"
    ignores = True

    def test_the_coco_tools_read_it(self, tmp_path):
        items = samples(tmp_path / "from")
        self.write(tmp_path / "out", items)
        known = COCO(tmp_path / "out/annotations/instances_train.json")
        assert [category["name"] for category in known.loadCats(known.getCatIds())] == list(CLASSES)
        wanted = items[0][1]
        masks = [known.annToMask(annotation) for annotation in known.loadAnns(known.getAnnIds(imgIds=[1]))]
        np.testing.assert_array_equal(np.array(masks, bool), wanted.instances.masks())

    def test_polygons_unless_there_is_a_hole(self, tmp_path):
        masks = np.zeros((2, 9, 9), bool)
        masks[0, 1:3, 1:3] = masks[0, 5:7, 5:7] = True
        masks[1, 4:9, 0:5] = True
        masks[1, 6, 2] = False
        sample = Labelled(blank("a", 9, 9), Instances.from_masks(masks))
        self.write(tmp_path / "out", [("train", sample)])
        found = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())["annotations"]
        assert found[0]["segmentation"] == [[1, 1, 3, 1, 3, 3, 1, 3], [5, 5, 7, 5, 7, 7, 5, 7]]
        assert sum(found[1]["segmentation"]["counts"]) == 81 and found[1]["area"] == 24
        assert found[1]["bbox"] == [0, 4, 5, 5]

    def test_no_file_is_left_over(self, tmp_path):
        self.write(tmp_path / "out", samples(tmp_path / "from"))
        assert sorted(path.name for path in (tmp_path / "out/annotations").iterdir()) == [
            "image_info_train.json",
            "instances_test.json",
            "instances_train.json",
        ]


def test_unlabelled_test_images_stay_test_images(tmp_path):
    items = [("train", Labelled(blank("a", 8, 9), Instances((8, 9)))), ("test", Unlabelled(blank("b", 8, 9)))]
    write(WRITERS["coco"], tmp_path / "out", CLASSES, items)
    data = open_folder(tmp_path / "out")
    assert (data.train_ids, data.test_ids, data.has_mask("b")) == (("a",), ("b",), False)


def test_boxes_stay_exact(tmp_path):
    save_grey(tmp_path / "in/images/a.png")
    shapes = [{"image_id": 1, "bbox": [1.3, 2.7, 3.1, 4.9]}, {"image_id": 1, "bbox": [5, 5, 0.25, 0.125]}]
    coco(tmp_path / "in/instances.json", ["a.png"], shapes)
    data = open_folder(tmp_path / "in")
    summary = convert(data, tmp_path / "out", "coco")
    again = open_folder(tmp_path / "out")
    assert again.boxes_only and not summary.lost and summary.objects == 2
    wanted, got = data.labelled("a").instances, again.labelled("a").instances
    np.testing.assert_array_equal(got.boxes, wanted.boxes)
    assert got.rles == wanted.rles


def test_an_object_without_a_pixel_is_counted(tmp_path):
    sample = Labelled(blank("a", 8, 9), Instances.from_masks(np.zeros((1, 8, 9), bool)))
    summary = write(WRITERS["coco"], tmp_path / "out", CLASSES, [("train", sample)])
    assert summary.lost == {"objects without a pixel": 1}
    assert len(open_folder(tmp_path / "out").labelled("a").instances) == 0


def test_annotations_are_not_held(tmp_path):
    """They are put on disk as they come, and are no part of what is written in the end."""
    job = CocoWriter(tmp_path, CLASSES)
    labels = instances_of(label_map(1, 24, 24, 5))
    for count in (1, 2, 3):
        job.add("train", Labelled(blank(f"{count}", 24, 24), labels))
        (waiting,) = (tmp_path / "annotations").iterdir()
        assert len(waiting.read_text().splitlines()) == count * len(labels)
    job.finish()
    assert [path.name for path in (tmp_path / "annotations").iterdir()] == ["instances_train.json"]
    assert len(COCO(tmp_path / "annotations/instances_train.json").anns) == 3 * len(labels)
