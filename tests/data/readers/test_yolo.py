"""YOLO's labels: layouts as they are published and exported, polygons and boxes, and everything that can be wrong."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as oracle
from tests.data.readers.contract import SIZES, ReaderContract, objects, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.yolo import YoloDataset

HEIGHT, WIDTH = 10, 20
BOX = "1 0.3 0.55 0.2 0.3"  # x 4 to 8, y 4 to 7
TRIANGLE = "0 0.1 0.1 0.9 0.1 0.5 0.9"


def add(root: Path, place: str, text: str | bytes | None = None, label: str | None = None) -> None:
    """An image and, with a text, its label file in labels/ instead of images/."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(random.Random(place).getrandbits(32)).integers(0, 255, (HEIGHT, WIDTH))
    Pillow.fromarray(values.astype(np.uint8)).save(path)
    if text is not None:
        file = (root / (label or place.replace("images/", "labels/"))).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)


def names(root: Path, text: str = "names: [cat, dog]\ntrain: images/train\nval: images/val\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(text)
    return root


def one(root: Path, text: str | bytes) -> YoloDataset:
    names(root, "names: [cat, dog]\ntrain: images\n")
    add(root, "images/a.png", text)
    return YoloDataset(root)


def refuses(root: Path, *words: str, id: str | None = None) -> None:
    with pytest.raises(DataError) as caught:
        data = YoloDataset(root)
        if id is not None:
            data.labelled(id)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)


def test_polygons_by_the_coco_rasteriser(tmp_path):
    data = one(tmp_path, f"{TRIANGLE}\n1 0.5 0.5 0.75 0.5 0.75 1 0.5 1\n")
    made = data.labelled("a").instances
    flat = [[2, 1, 18, 1, 10, 9], [10, 5, 15, 5, 15, 10, 10, 10]]
    wanted = oracle.decode(oracle.frPyObjects([[float(v) for v in f] for f in flat], HEIGHT, WIDTH)).astype(bool)
    np.testing.assert_array_equal(made.masks(), wanted.transpose(2, 0, 1))
    assert made.classes.tolist() == [0, 1] and not data.boxes_only


def test_boxes_stay_exact(tmp_path):
    data = one(tmp_path, f"{BOX}\r\n0 0.5 0.5 0.123 0.457\n\n")
    made = data.labelled("a").instances
    assert data.boxes_only and made.classes.tolist() == [1, 0]
    np.testing.assert_allclose(made.boxes, [[4, 4, 8, 7], [8.77, 2.715, 11.23, 7.285]], rtol=1e-6)
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[4:7, 4:8] = True
    np.testing.assert_array_equal(made.masks()[0], wanted)
    one(tmp_path, f"{BOX}\n{TRIANGLE}")
    data = YoloDataset(tmp_path)
    assert not data.boxes_only and len(data.labelled("a").instances) == 2


def test_a_sixth_column_of_every_box(tmp_path):
    made = one(tmp_path, f"{BOX} 0.87\n{BOX} 0.5").labelled("a").instances
    np.testing.assert_allclose(made.boxes, [[4, 4, 8, 7]] * 2, rtol=1e-6)
    assert one(tmp_path, f"{BOX} 17").boxes_only
    one(tmp_path, f"{BOX}\n{BOX} 0.87")
    refuses(tmp_path, "labels/a.txt, line 2: it has 6 columns", id="a")
    one(tmp_path, f"{TRIANGLE} 0.87")
    refuses(tmp_path, "a.txt, line 1: it has 8 columns", id="a")


def test_missing_and_empty_label_files(tmp_path):
    names(tmp_path)
    add(tmp_path, "images/train/a.png", "")
    add(tmp_path, "images/train/b.png")
    add(tmp_path, "images/val/c.png", BOX)
    data = open_folder(tmp_path)
    assert data.format == "yolo" and "data.yaml" in find_layout(tmp_path).reason
    assert (data.train_ids, data.test_ids) == (("a", "b"), ("c",))
    assert [data.has_mask(id) for id in "abc"] == [True, False, True] and len(data.labelled("a").instances) == 0


def test_as_roboflow_exports_it(tmp_path):
    """Paths in data.yaml are one folder off, and a test part is named that need not be there."""
    names(tmp_path, "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']")
    add(tmp_path, "train/images/x.rf.123.jpg", BOX)
    add(tmp_path, "valid/images/y.jpg", BOX)
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("x.rf.123",), ("y",)) and data.has_mask("x.rf.123")
    add(tmp_path, "test/images/z.jpg", BOX)
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("x.rf.123", "y"), ("z",))


@pytest.mark.parametrize(
    "text",
    [
        "names: {1: dog, 0: cat}",
        "names:\n  0: cat\n  1: dog",
        "names: [cat, dog]\nnc: 2",
        '{"names": ["cat", "dog"],\n"nc": 2}',
    ],
)
def test_names(tmp_path, text):
    more = "" if text.startswith("{") else "\ntrain: images"
    names(tmp_path, text + more)
    add(tmp_path, "images/a.png", BOX)
    assert YoloDataset(tmp_path).classes == ("cat", "dog")


def test_path_counts_where_nothing_lies_beside(tmp_path):
    add(tmp_path / "sets/pets", "images/train/a.png", BOX)
    add(tmp_path / "sets/pets", "images/val/b.png", BOX)
    more = "\ntrain: images/train\nval: images/val\nnames: [cat, dog]"
    names(tmp_path / "configs", "path: ../sets/pets" + more)
    data = open_folder(tmp_path / "configs" / "data.yaml")
    assert (data.format, data.train_ids, data.test_ids, data.has_mask("a")) == ("yolo", ("a",), ("b",), True)
    names(tmp_path / "sets/pets", "path: /datasets/pets" + more)
    assert YoloDataset(tmp_path / "sets/pets").train_ids == ("a",)


def test_lists_of_images(tmp_path):
    names(tmp_path, "names: [cat, dog]\ntrain: train.txt\nval: [lists/val.txt, images/more]")
    for place in ("images/a.png", "images/b.png", "images/more/c.png"):
        add(tmp_path, place, BOX)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf./images/a.png\r\n\r\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val.txt").write_text("../images/b.png")
    data = YoloDataset(tmp_path)
    assert (data.train_ids, data.test_ids) == (("a",), ("b", "more__c")) and data.has_mask("more__c")
    for line in ("images/ghost.png", "/etc/passwd", "../../../../etc/passwd", "x" * 5000, "images/a\0b"):
        (tmp_path / "train.txt").write_text(line)
        refuses(tmp_path, "train.txt, line 1", "is no file below")
    (tmp_path / "train.txt").write_text("images/a.png\nimages/b.png")
    refuses(tmp_path, "images/b.png is in train and in val")
    (tmp_path / "train.txt").write_text("images/a.png\nimages/a.png")
    refuses(tmp_path, "images/a.png is twice in train")
    assert [problem.id for problem in YoloDataset(tmp_path, strict=False).problems] == ["a"]


def test_val_that_is_train_holds_nothing_out(tmp_path):
    """As coco128.yaml has it; to score on training images would be wrong."""
    names(tmp_path, "names: [cat, dog]\ntrain: images/train\nval: images/train\n")
    add(tmp_path, "images/train/a.png", BOX)
    assert (YoloDataset(tmp_path).train_ids, YoloDataset(tmp_path).test_ids) == (("a",), ())


def test_classes_txt_and_folders(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\r\ntraffic light\n")
    for place in ("images/train/1/x.png", "images/val/1/x.png", "images/val/2.png"):
        add(tmp_path, place, BOX)
    add(tmp_path, "images/unlabelled/y.png")
    data = open_folder(tmp_path)
    assert data.format == "yolo" and data.classes == ("cat", "traffic light")
    assert data.train_ids == ("images__train__1__x", "y") and data.test_ids == ("images__val__1__x", "2")
    assert not data.has_mask("y")


def test_side_by_side(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog")
    add(tmp_path, "a.png", BOX)
    add(tmp_path, "b.png")
    data = open_folder(tmp_path)
    assert data.format == "yolo" and data.train_ids == ("a", "b") and [data.has_mask(i) for i in "ab"] == [True, False]
    assert data.labelled("a").instances.areas().tolist() == [12]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.1 0.2 0.3", "it has 4 columns"),
        ("0 0.1 0.2 0.3 x", "no number"),
        ("0 0.1 0.2 0.3 nan", "share of the image"),
        ("0 0.1 0.2 0.3 1e400", "share of the image"),
        ("0 12 14 30 40", "share of the image in 0..1: divide"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is none of the 2 that data.yaml names (0 to 1)"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is none"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is none"),
        ("cat 0.5 0.5 0.1 0.1", "no number"),
        ("0 0.5 0.5 -0.1 0.1", "negative width"),
        ("0 1.5 0.5 0.1 0.1", "lies outside its image"),
        (b"0 \xff\xfe", "not UTF-8"),
        (BOX.encode("utf-16"), "not UTF-8"),
    ],
)
def test_label_files_that_cannot_be_used(tmp_path, text, words):
    one(tmp_path, text)
    refuses(tmp_path, "labels/a.txt", words, id="a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat\ntrain: images", "damaged at line"),
        ("names: \ntrain: images", "no list"),
        ("names: []\ntrain: images", "names no class"),
        ("names: {1: cat}\ntrain: images", "otherwise than 0, 1, 2"),
        ("names: {a: cat}\ntrain: images", "otherwise than 0, 1, 2"),
        ("names: [cat, no]\ntrain: images", "name 1 is no text: put it in quotes"),
        ("names: [cat, cat]\ntrain: images", "'cat' stands there twice"),
        ("names: [cat, ' ']\ntrain: images", "name 1 is empty"),
        ("names: [cat]\nnc: 3\ntrain: images", "names 1 classes, but nc is 3"),
        ("names: [cat]\nkpt_shape: [17, 3]\ntrain: images", "key points"),
        ("names: [cat]\ntrain: nowhere", "train 'nowhere' does not exist"),
        ("names: [cat]\ntrain: /", "leads out of"),
        ("names: [cat]\ntrain: {a: 1}", "neither a path nor a list"),
        ("names: [cat]\ntrain: " + "x" * 9000, "does not exist"),
        ("names: [cat]\ntrain: " + "[\n" * 5000, "damaged"),
        ("x: &x {y: 1}\nnames: {<<: [*x, *x]}\ntrain: images", "damaged"),
        ("names: [cat]\nnc: [1]\ntrain: images", "nc is no whole number"),
        ("names: &a [*a]\ntrain: images", "name 0 is no text"),
        ("names: [cat]\ntrain: images\nx: !!python/object:os.system {}", "damaged"),
        ("names: [cat]\ntrain: images\n" + "#" * (1 << 18), "too long"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path, text, words):
    add(tmp_path, "images/a.png", BOX)
    names(tmp_path, text)
    assert find_layout(tmp_path).format == "yolo"
    refuses(tmp_path, "data.yaml", words)


def test_folders_that_are_no_data_set(tmp_path):
    refuses(tmp_path, "neither data.yaml nor classes.txt")
    add(tmp_path, "images/a.png", BOX)
    assert find_layout(tmp_path).format == "yolo"
    refuses(tmp_path, "neither data.yaml nor classes.txt", "add classes.txt")
    for name in "xy":
        (tmp_path / f"{name}.yaml").write_text("names: [cat]\ntrain: images")
    refuses(tmp_path, "several YAML files that name classes (x.yaml, y.yaml)")
    names(tmp_path)
    assert "data.yaml" in find_layout(tmp_path).reason
    for part in ("train", "val"):
        (tmp_path / "images" / part).mkdir()
    refuses(tmp_path, "holds no image")


class TestContract(ReaderContract):
    format = "yolo"

    def make(self, root):
        save_pictures(root / "images/train")
        (root / "images/val").mkdir()
        (root / "images/train/b.png").rename(root / "images/val/b.png")
        for part, id in (("train", "a"), ("val", "b")):
            (root / f"labels/{part}").mkdir(parents=True)
            (root / f"labels/{part}/{id}.txt").write_text("\n".join(self.lines(id)))
        names(root)
        return root

    def lines(self, id):
        height, width = SIZES[id]
        for mask, number in zip(*objects(id), strict=True):
            ys, xs = np.nonzero(mask)
            x0, x1, y0, y1 = xs.min() / width, (xs.max() + 1) / width, ys.min() / height, (ys.max() + 1) / height
            yield f"{number} {x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}"

    def damage(self, root):
        path = root / "labels/train/a.txt"
        path.write_bytes(path.read_bytes()[:-30])


class TestBoxes(TestContract):
    def lines(self, id):
        height, width = SIZES[id]
        for mask, number in zip(*objects(id), strict=True):
            ys, xs = np.nonzero(mask)
            x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
            box = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
            yield " ".join(map(str, (number, *box)))

    def damage(self, root):
        (root / "labels/train/a.txt").write_text("0 0.5")
