"""Pascal VOC: maps with the boxes beside them, and boxes alone."""

import xml.etree.ElementTree as etree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from tests.data.writers.contract import CLASSES, WriterContract, instances_of, label_map

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.polygons import fill_box, instances
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.writers import WRITERS, write
from fewlabel.data.writers.voc import palette


class TestContract(WriterContract):
    format = "voc"
    overlaps = False
    ignores = True


def picture(height: int = 20, width: int = 31) -> Image:
    pixels = np.arange(3 * height * width, dtype=np.float32).reshape(3, height, width) % 251
    return Image("x", pixels, "uint8", 8)


def boxes_of(*boxes: tuple[float, float, float, float]) -> Instances:
    filled = [fill_box(box, (20, 31)) for box in boxes]
    return instances(
        (20, 31), [rle for rle, _ in filled], [n % 2 for n in range(len(boxes))], [box for _, box in filled]
    )


def test_files(tmp_path):
    labels = label_map(3, 20, 31, 4)
    truth = instances_of(labels)
    write(WRITERS["voc"], tmp_path / "out", CLASSES, [("train", Labelled(picture(), truth))])
    numbers, indexes = (Pillow.open(tmp_path / f"out/Segmentation{kind}/x.png") for kind in ("Object", "Class"))
    assert numbers.mode == indexes.mode == "P"
    assert indexes.getpalette()[:12] == [
        0,
        0,
        0,
        128,
        0,
        0,
        0,
        128,
        0,
        128,
        128,
        0,
    ]  # VOC's black, maroon, green, olive
    np.testing.assert_array_equal(np.asarray(numbers), labels)
    np.testing.assert_array_equal(np.asarray(indexes), np.where(labels, (labels - 1) % 3 + 1, 0))
    root = etree.parse(tmp_path / "out/Annotations/x.xml").getroot()
    assert [root.findtext(f"size/{side}") for side in ("height", "width", "depth")] == ["20", "31", "3"]
    assert [item.findtext("name") for item in root.iter("object")] == [CLASSES[k] for k in truth.classes]
    for item, box in zip(root.iter("object"), truth.boxes.astype(int).tolist(), strict=True):
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == [str(box[0] + 1), str(box[1] + 1), str(box[2]), str(box[3])]
    assert (tmp_path / "out/labelmap.txt").read_text().splitlines()[1:3] == ["background:0,0,0::", "cat:128,0,0::"]
    assert find_layout(tmp_path / "out").format == "voc"
    # without class maps the boxes beside the maps tell the classes
    for path in (tmp_path / "out/SegmentationClass").iterdir():
        path.unlink()
    got = open_folder(tmp_path / "out").labelled("x").instances
    assert got.rles == truth.rles and got.classes.tolist() == truth.classes.tolist()


corner = st.floats(0, 31, width=32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(corner, corner, corner, corner), max_size=4), st.integers(0, 4))
def test_boxes_alone(tmp_path_factory, corners, split):
    boxes = [(min(a, c), min(b, d, 20), max(a, c), min(max(b, d), 20)) for a, b, c, d in corners]
    truth, hard = boxes_of(*boxes[split:]), boxes_of(*boxes[:split])
    out = tmp_path_factory.mktemp("voc") / "out"
    sample = Labelled(picture(), truth, hard if len(hard) else None)
    summary = write(WRITERS["voc"], out, CLASSES, [("test", sample)], boxes_only=True)
    data = open_folder(out)
    got = data.labelled("x")
    assert data.boxes_only and data.test_ids == ("x",) and not summary.lost
    for wanted, found in ((truth, got.instances), (hard, got.ignored or boxes_of())):
        assert found.classes.tolist() == wanted.classes.tolist()
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-4)


def test_ignored_regions_that_are_no_boxes(tmp_path):
    ring = np.ones((20, 31), bool)
    ring[5:9, 5:9] = False
    sample = Labelled(picture(), boxes_of((1, 1, 4, 4)), Instances.from_masks(ring[None]))
    summary = write(WRITERS["voc"], tmp_path / "out", CLASSES, [("train", sample)], boxes_only=True)
    assert summary.lost == {"ignored regions": 1}
    assert open_folder(tmp_path / "out").labelled("x").ignored is None


def test_what_the_format_cannot_hold(tmp_path):
    numbers = np.zeros((20, 31), np.int64)
    numbers.ravel()[:255] = np.arange(1, 256)
    for labels, names, word in (
        (instances_of(numbers), CLASSES, "'x' has 255 objects, but Pascal VOC's maps number 254"),
        (boxes_of(), ("a:b",), "class 'a:b' cannot stand in"),
        (boxes_of(), [str(n) for n in range(255)], "255 classes"),
        (boxes_of((1, 1, 2, 2)), ("\x01",), "cannot hold|cannot stand"),
    ):
        with pytest.raises(DataError, match=word):
            write(WRITERS["voc"], tmp_path / "out", names, [("train", Labelled(picture(), labels))])
        assert not (tmp_path / "out").exists()


def test_palette_is_that_of_the_development_kit():
    colours = palette()
    for index, colour in (
        (0, (0, 0, 0)),
        (7, (128, 128, 128)),
        (8, (64, 0, 0)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ):
        assert tuple(colours[index]) == colour
    assert len({tuple(colour) for colour in colours.tolist()}) == 256
