"""Label maps: what one map per image can hold and what it loses."""

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.writers.contract import CLASSES, WriterContract, instances_of, label_map, samples

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.writers import WRITERS, write


class TestContract(WriterContract):
    format = "masks"
    overlaps = False
    ignores = True


def picture(height: int = 20, width: int = 31) -> Image:
    return Image("x", np.arange(height * width, dtype=np.float32).reshape(1, height, width), "float32", 32)


def test_files(tmp_path):
    labels = label_map(3, 20, 31, 4)
    summary = write(
        WRITERS["masks"], tmp_path / "out", ["cell"], [("train", Labelled(picture(), instances_of(labels, 1)))]
    )
    stored = np.asarray(Pillow.open(tmp_path / "out/instances/x.png"))
    assert stored.dtype == np.uint16 and not summary.lost
    np.testing.assert_array_equal(stored, labels)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("classes.json", "images", "instances", "train.txt")
    ]
    assert (tmp_path / "out/classes.json").read_text().split() == ["[", '"background",', '"cell"', "]"]
    assert find_layout(tmp_path / "out").format == "masks"
    assert open_folder(tmp_path / "out").classes == ("cell",)


def test_small_objects_stay_whole(tmp_path):
    masks = np.zeros((4, 20, 31), bool)
    masks[0, 5:7, 5:7] = masks[1, :10, :10] = masks[2, 5:7, 5:7] = True  # the last and the first are equal
    sample = Labelled(picture(), Instances.from_masks(masks, classes=[0, 1, 2, 2]))
    summary = write(WRITERS["masks"], tmp_path / "out", ["a", "b", "c"], [("train", sample)])
    got = open_folder(tmp_path / "out").labelled("x").instances
    assert got.classes.tolist() == [1, 2] and got.areas().tolist() == [96, 4]
    assert summary.lost == {
        "objects that a smaller one covers in part": 1,
        "objects that smaller ones cover wholly": 1,
        "objects without a pixel": 1,
    }


def test_objects_win_over_ignored_regions(tmp_path):
    objects, everything = np.zeros((2, 20, 31), bool), np.ones((1, 20, 31), bool)
    objects[0, 2:4, 2:4] = objects[1, 9:12, 9:12] = True
    sample = Labelled(picture(), Instances.from_masks(objects), Instances.from_masks(everything))
    for format in ("masks", "voc"):
        write(WRITERS[format], tmp_path / format, ["a"], [("train", sample)])
        got = open_folder(tmp_path / format).labelled("x")
        assert got.instances.areas().tolist() == [4, 9] and got.ignored.areas().tolist() == [620 - 13]


def test_boxes_become_rectangles(tmp_path):
    boxes = Instances.from_masks(np.ones((1, 20, 31), bool))
    summary = write(WRITERS["masks"], tmp_path / "o", ["a"], [("test", Labelled(picture(), boxes))], boxes_only=True)
    assert summary.lost == {"boxes, which become rectangles of pixels": 1}
    assert open_folder(tmp_path / "o").labelled("x").instances.areas().tolist() == [620]


def test_more_than_a_map_can_hold(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has 255 classes, but class maps hold 254: choose"):
        write(WRITERS["masks"], tmp_path / "o", [str(n) for n in range(255)], samples(tmp_path / "f"))
    monkeypatch.setattr("fewlabel.data.writers.masks.MOST", 3)  # 65536 objects would take a minute
    sample = Labelled(picture(), instances_of(label_map(3, 20, 31, 4)))
    with pytest.raises(DataError, match="'x' has 4 objects, but a 16-bit map numbers 3"):
        write(WRITERS["masks"], tmp_path / "o", CLASSES, [("train", sample)])
    assert not (tmp_path / "o").exists()
