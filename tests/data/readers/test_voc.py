"""Pascal VOC: boxes counted from 1, maps with borders, lists, and folders that only borrow its XML files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers.contract import SIZES, ReaderContract, objects, pictures, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.voc import CLASSES

NAMES = ("cat", "dog")


def box(name: str, x0: float, y0: float, x1: float, y1: float, extra: str = "") -> str:
    """An <object>; the corners are as VOC writes them."""
    return (
        f"<object><name>{name}</name><pose>Left</pose>{extra}"
        f"<bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
    )


def annotate(path: Path, *items: str, size: tuple[int, int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>x.jpg</filename>{told}{''.join(items)}</annotation>\n")


def boxes(id: str) -> list[str]:
    """The objects of the contract as boxes: the first column that is inside, counted from 1, and the last."""
    masks, classes = objects(id)
    found = []
    for mask, kind in zip(masks, classes, strict=True):
        ys, xs = np.nonzero(mask)
        found.append(box(NAMES[kind], xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1))
    return found


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Pillow.fromarray(values.astype(np.uint8))
    picture.putpalette([channel for index in range(256) for channel in (index * 7 % 256, 255 - index, index)])
    picture.save(path)


def lists(folder: Path, **parts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, ids in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(ids) + "\n")


def refuses(root: Path, *words: str, id: str = "a") -> None:
    with pytest.raises(DataError) as caught:
        open_folder(root, "voc").labelled(id)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


class TestBoxes(ReaderContract):
    """XML files only."""

    format = "voc"

    def make(self, root):
        save_pictures(root / "JPEGImages")
        for id in "ab":
            annotate(root / f"Annotations/{id}.xml", *boxes(id), size=SIZES[id])
        lists(root / "ImageSets/Main", train="ac", val="b", trainval="abc", cat_train="ab")
        return root

    def damage(self, root):
        path = root / "Annotations/a.xml"
        path.write_bytes(path.read_bytes()[:200])

    def test_parts(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",)) and data.boxes_only
        np.testing.assert_array_equal(data.labelled("a").instances.boxes, self.truth("a").boxes)
        assert data.labelled("a").ignored is None


class TestMaps(ReaderContract):
    """Maps of objects and classes in VOCdevkit/VOC2012, with a list of names."""

    format = "voc"

    def make(self, root):
        home = root / "VOCdevkit/VOC2012"
        save_pictures(home / "JPEGImages")
        for id in "ab":
            masks, classes = objects(id)
            numbers, indexes = np.zeros(SIZES[id]), np.zeros(SIZES[id])
            for number, (mask, kind) in enumerate(zip(masks, classes, strict=True), 1):
                numbers[mask], indexes[mask] = number, kind + 1
            numbers[-1] = indexes[0] = 255  # either map may say that a pixel is ignored
            save(home / f"SegmentationObject/{id}.png", numbers)
            save(home / f"SegmentationClass/{id}.png", indexes)
        annotate(home / "Annotations/c.xml", box("cat", 1, 1, 4, 4))  # no labels for who wants masks
        (home / "labelmap.txt").write_text("# label:color\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n")
        lists(home / "ImageSets/Segmentation", train="ac", val="b")
        lists(home / "ImageSets/Main", train="abc")
        return root

    def damage(self, root):
        save(root / "VOCdevkit/VOC2012/SegmentationClass/a.png", np.zeros((9, 9)))

    def test_border_is_ignored(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",)) and not data.boxes_only
        border = np.zeros(SIZES["a"], bool)
        border[[0, -1]] = True
        np.testing.assert_array_equal(data.labelled("a").ignored.semantic(), border)


class TestBesideImages(ReaderContract):
    """XML files in the folders of the images, as labelling tools write them."""

    format = "voc"

    def make(self, root):
        save_pictures(root)
        for id in "ab":
            annotate(root / f"{id}.xml", *boxes(id), size=(0, 0))
        return root

    def damage(self, root):
        annotate(root / "a.xml", *boxes("a"), size=(31, 20))


@pytest.mark.parametrize(
    ("corners", "edges", "area"),
    [
        ((1, 1, 3, 2), (0, 0, 3, 2), 6),  # counted from 1, the last pixel is in
        ((5, 5, 5, 5), (4, 4, 5, 5), 1),
        ((0, 0, 31, 20), (0, 0, 31, 20), 620),  # tools that count from 0: cut at the image
        ((1, 1, 40, 40), (0, 0, 31, 20), 620),
        ((2.25, 1, 4.75, 3.5), (1.25, 0, 4.75, 3.5), 4 * 3),  # middles from 1.5 to 4.5 and 0.5 to 2.5
    ],
)
def test_boxes_count_from_one_and_include_their_last_pixel(tmp_path, corners, edges, area):
    save_pictures(tmp_path / "JPEGImages")
    annotate(tmp_path / "Annotations/a.xml", box("cat", *corners))
    instances = open_folder(tmp_path).labelled("a").instances
    assert instances.boxes.tolist() == [list(edges)] and instances.areas().tolist() == [area]


def test_difficult_objects_are_ignored(tmp_path):
    save_pictures(tmp_path / "JPEGImages")
    annotate(
        tmp_path / "Annotations/a.xml",
        box("dog", 1, 1, 3, 3, "<difficult>1</difficult>"),
        box("cat", 5, 5, 8, 8, "<truncated>1</truncated><difficult>0</difficult>"),
        box("cat", 11, 5, 12, 8),
    )
    annotate(tmp_path / "Annotations/b.xml")
    data = open_folder(tmp_path)
    sample = data.labelled("a")
    assert data.classes == ("cat", "dog") and sample.instances.classes.tolist() == [0, 0]
    assert sample.ignored.classes.tolist() == [1] and sample.ignored.boxes.tolist() == [[0, 0, 3, 3]]
    empty = data.labelled("b")
    assert len(empty.instances) == 0 and empty.ignored is None
    assert (data.train_ids, data.test_ids) == (("a", "b", "c"), ())


def test_classes_of_maps(tmp_path):
    """VOC's own indexes where nothing lists others; without class maps the n-th <object> is object n."""
    save_pictures(tmp_path / "JPEGImages")
    numbers = np.zeros(SIZES["a"])
    numbers[2:5, 2:5], numbers[2:5, 8:10], numbers[5, 2:5] = 1, 3, 255
    save(tmp_path / "SegmentationObject/a.png", numbers)
    kinds = [box(name, 1, 1, 2, 2) for name in ("zebra", "yak", "ant")]
    annotate(tmp_path / "Annotations/a.xml", *kinds)
    data = open_folder(tmp_path)
    sample = data.labelled("a")
    assert data.classes == ("ant", "yak", "zebra") and sample.instances.classes.tolist() == [2, 0]
    assert sample.instances.areas().tolist() == [9, 6] and sample.ignored.areas().tolist() == [3]
    annotate(tmp_path / "Annotations/a.xml", *kinds[:2])
    refuses(tmp_path, "Annotations/a.xml has 2 objects", "holds the number 3")
    (tmp_path / "Annotations/a.xml").unlink()
    refuses(tmp_path, "SegmentationObject/a.png tells no classes", "add SegmentationClass/a.png")
    save(tmp_path / "SegmentationClass/a.png", np.where(numbers == 3, 20, np.where(numbers == 1, 1, numbers)))
    data = open_folder(tmp_path)
    assert data.classes == CLASSES and data.labelled("a").instances.classes.tolist() == [0, 19]
    assert CLASSES[14] == "person" and list(CLASSES) == sorted(CLASSES) and len(CLASSES) == 20
    (tmp_path / "SegmentationObject/a.png").unlink()
    assert open_folder(tmp_path).labelled("a").instances.areas().tolist() == [9, 6]
    save(tmp_path / "SegmentationClass/a.png", np.where(numbers == 3, 21, 0))
    refuses(tmp_path, "SegmentationClass/a.png holds the index 21", "1..20")


def test_damaged_annotation_beside_maps(tmp_path):
    """Maps tell everything, yet a broken XML file beside them is an error of its image, and of no other."""
    TestMaps().make(tmp_path)
    home = tmp_path / "VOCdevkit/VOC2012"
    annotate(home / "Annotations/a.xml", *boxes("a"), size=SIZES["a"])
    whole = (home / "Annotations/a.xml").read_bytes()
    data = open_folder(tmp_path)
    assert len(data.labelled("a").instances) == 2
    (home / "Annotations/a.xml").write_bytes(whole[:200])
    data = open_folder(tmp_path)
    with pytest.raises(DataError, match=r"Annotations/a.xml cannot be read as XML .*\.$"):
        data.labelled("a")
    assert len(data.labelled("b").instances) == 1
    (home / "SegmentationObject/a.png").unlink()  # class maps alone
    with pytest.raises(DataError, match=r"Annotations/a.xml cannot be read as XML"):
        open_folder(tmp_path).labelled("a")


def test_the_test_part_is_held_out_where_it_has_labels(tmp_path):
    save_pictures(tmp_path / "JPEGImages")
    lists(tmp_path / "ImageSets/Main", train="a", val="b", trainval="ab", test="c")
    for id in "ab":
        annotate(tmp_path / f"Annotations/{id}.xml", *boxes(id))
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("a",), ("b",))
    annotate(tmp_path / "Annotations/c.xml")
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("a", "b"), ("c",))
    lists(tmp_path / "ImageSets/Main", trainval="cb", test="a")
    for part in ("train", "val"):
        (tmp_path / f"ImageSets/Main/{part}.txt").unlink()
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("c", "b"), ("a",))
    lists(tmp_path / "ImageSets/Main", trainval=["c", "ghost"])
    with pytest.raises(DataError, match=r"trainval.txt, line 2: 'ghost' has no file"):
        open_folder(tmp_path)
    assert [problem.id for problem in open_folder(tmp_path, strict=False).problems] == ["ghost"]


def test_images_beside_annotations(tmp_path):
    save_pictures(tmp_path / "images/day")
    annotate(tmp_path / "annotations/day/a.xml", *boxes("a"))
    layout = find_layout(tmp_path)
    assert layout.format == "voc" and "Pascal VOC's XML files, such as a.xml" in layout.reason
    data = open_folder(tmp_path)
    assert data.train_ids == ("day__a", "day__b", "day__c") and len(data.labelled("day__a").instances) == 2
    (tmp_path / "annotations/day/a.xml").write_text("<kml/>")
    assert find_layout(tmp_path).format == "plain"


def test_annotations_that_cannot_be_used(tmp_path):
    save_pictures(tmp_path / "JPEGImages")
    path = tmp_path / "Annotations/a.xml"
    for text, *words in (
        (box("cat", 4, 4, 2, 6), "object 2", "negative width"),
        (box("cat", 400, 4, 402, 6), "object 2", "lies outside its image of 20 x 31"),
        (box("cat", "four", 4, 5, 6), "<xmin> of object 2 is 'four'"),
        (box("cat", 4, 4, "inf", 6), "<xmax> of object 2 is 'inf'"),
        ("<object><name>cat</name></object>", "object 2 has no <bndbox>"),
        (box("", 4, 4, 5, 6), "object 2 is called ''"),
        ("<object>", "mismatched tag"),
        ("<size><width>wide</width><height>3</height></size>", "<width> is 'wide'"),
    ):
        annotate(path, box("dog", 1, 1, 2, 2), text)
        refuses(tmp_path, "Annotations/a.xml", *words)
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    refuses(tmp_path, "declares a document type")
    annotate(path, box("dog", 1, 1, 2, 2), size=(31, 20))
    refuses(tmp_path, "annotation", "is 31 x 20 pixels", "20 x 31")
    annotate(path, box("dog", 1, 1, 2, 2))
    (tmp_path / "classes.txt").write_text("cat\n")
    refuses(tmp_path, "object 1 is called 'dog', which is none of the 1 classes")
    path.rename(tmp_path / "Annotations/z.xml")
    refuses(tmp_path, "no XML file or map that is named like one of its images")


def test_two_data_sets_in_one_kit(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        save_pictures(tmp_path / year / "JPEGImages")
        annotate(tmp_path / year / "Annotations/a.xml", *boxes("a"))
    data = open_folder(tmp_path / "VOC2007")
    assert data.train_ids == ("a", "b", "c")
    np.testing.assert_array_equal(data.image("a").pixels[0], pictures()["a"])
    assert find_layout(tmp_path).format != "voc"
