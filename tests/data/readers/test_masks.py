"""Label maps, class maps and binary masks beside images."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from tests.data.readers.contract import SIZES, ReaderContract, objects, pictures, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.masks import MasksDataset


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Pillow.fromarray(values)
    if palette:
        picture.putpalette([channel for index in range(256) for channel in (index * 7 % 256, 255 - index, index)])
    picture.save(path)


def class_map(id: str) -> np.ndarray:
    indexes = np.zeros(SIZES[id], np.uint8)
    for mask, kind in zip(*objects(id), strict=True):
        indexes[mask] = kind + 1
    return indexes


def lists(root: Path) -> Path:
    (root / "train.txt").write_text("a\r\nc\r\n")
    (root / "test.txt").write_text("b.png\n")
    return root


def refuses(root: Path, *words: str, id: str | None = None) -> None:
    with pytest.raises(DataError) as caught:
        data = open_folder(root, "masks")
        data.labelled(id or data.train_ids[0])
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


class TestInstanceMaps(ReaderContract):
    """instances/ in 16 bits with gaps in the numbers; classes by labels/."""

    format = "masks"

    def make(self, root):
        save_pictures(root / "images")
        for id in "ab":
            numbers = np.zeros(SIZES[id], np.uint16)
            for number, mask in zip((700, 255), objects(id)[0], strict=False):
                numbers[mask] = number
            save(root / f"instances/{id}.png", numbers)
            save(root / f"labels/{id}.png", class_map(id))
        (root / "classes.txt").write_text("cat\ndog\n")
        return lists(root)

    def damage(self, root):
        path = root / "instances/a.png"
        path.write_bytes(path.read_bytes()[:60])

    def test_parts(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",))
        assert data.labelled("a").ignored is None


class TestClassMaps(ReaderContract):
    """Palette files in annotations/, names in classes.json, lists in img_idx/."""

    format = "masks"

    def make(self, root):
        save_pictures(root / "images")
        for id in "ab":
            save(root / f"annotations/{id}.png", class_map(id), palette=True)
        (root / "classes.json").write_text(json.dumps({"background": 0, "dog": 2, "cat": 1}))
        return root

    def damage(self, root):
        save(root / "annotations/a.png", np.full((20, 30), 1, np.uint8))


class TestBinary(ReaderContract):
    """masks/ alone; auto-detection calls such a folder sirst, which reads the same."""

    format = "masks"
    classes = ("target",)

    def make(self, root):
        save_pictures(root / "images")
        for id in "ab":
            save(root / f"masks/{id}.png", 255 * objects(id)[0].any(axis=0).astype(np.uint8))
        return root

    def truth(self, id):
        return Instances.from_masks(objects(id)[0])

    def damage(self, root):
        (root / "masks/a.png").write_bytes(b"no picture")

    def test_recognised(self, tmp_path):
        layout = find_layout(self.make(tmp_path / "set"))
        assert layout.format == "sirst" and "masks" in layout.others


class TestFoldersOfOneImage(ReaderContract):
    """stage1_train/ID/images/ID.png with one file per object, as BBBC038 has it."""

    format = "masks"
    classes = ("target",)

    def make(self, root):
        for id, picture in pictures().items():
            save(root / f"stage1_train/{id}/images/{id}.png", picture)
            if id in "ab":
                for number, mask in enumerate(objects(id)[0]):
                    save(root / f"stage1_train/{id}/masks/{number}f.png", 255 * mask.astype(np.uint8))
        return root

    def truth(self, id):
        return Instances.from_masks(objects(id)[0])

    def damage(self, root):
        save(root / "stage1_train/a/masks/1f.png", np.ones((3, 4), np.uint8))

    def test_files_of_objects_that_touch_or_are_empty(self, tmp_path):
        root = self.make(tmp_path / "set") / "stage1_train"
        touching = np.zeros((3, *SIZES["a"]), np.uint8)
        touching[0, 2:5, 2:5] = touching[1, 4:7, 4:7] = 255
        for number, mask in enumerate(touching):
            save(root / f"a/masks/{number}f.png", mask)
        (root / "test.txt").write_text("b")
        data = open_folder(root)
        assert data.labelled("a").instances.areas().tolist() == [9, 9]
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",))
        (root / "test.txt").write_text("z")
        refuses(root, "'z' has no file")


def test_an_object_in_pieces_stays_one(tmp_path):
    save(tmp_path / "images/x.png", np.full((8, 9), 7, np.uint8))
    numbers = np.zeros((8, 9), np.uint8)
    numbers[0, 0] = numbers[7, 8] = 9
    numbers[0, 1] = 4  # touches a piece of 9
    save(tmp_path / "instances/x.png", numbers)
    data = open_folder(tmp_path)
    assert data.classes == ("target",) and data.labelled("x").instances.areas().tolist() == [1, 2]
    tifffile.imwrite(tmp_path / "instances/x.tif", numbers.astype(np.uint32) + 70000)
    (tmp_path / "instances/x.png").unlink()
    assert open_folder(tmp_path).labelled("x").instances.areas().tolist() == [69, 1, 2]


def test_255_is_ignored_in_class_maps(tmp_path):
    save(tmp_path / "images/x.png", np.full((8, 9), 7, np.uint8))
    indexes = np.zeros((8, 9), np.uint8)
    indexes[1:4, 1:4], indexes[4, 1:4], indexes[0:2, 7:9] = 3, 255, 1
    save(tmp_path / "SegmentationClass/x.png", indexes)
    data = open_folder(tmp_path)
    sample = data.labelled("x")
    assert data.classes == ("class 1", "class 2", "class 3")
    assert sample.instances.classes.tolist() == [0, 2] and sample.instances.areas().tolist() == [4, 9]
    np.testing.assert_array_equal(sample.ignored.semantic(), indexes == 255)
    # an object that lies in an ignored region for the most part is ignored with all its pixels
    numbers = np.zeros((8, 9), np.uint8)
    numbers[1:4, 1:4], numbers[4, 1:4], numbers[3, 3] = 255, 2, 2
    save(tmp_path / "instances/x.png", numbers)
    sample = open_folder(tmp_path).labelled("x")
    assert sample.instances.classes.tolist() == [2] and sample.instances.areas().tolist() == [8]
    assert sample.ignored.areas().tolist() == [4]


def test_class_maps_of_0_and_255_are_binary(tmp_path):
    save_pictures(tmp_path / "images")
    for id in "ab":
        save(tmp_path / f"labels/{id}.png", 255 * objects(id)[0].any(axis=0).astype(np.uint8))
    data = open_folder(tmp_path)
    assert data.classes == ("target",) and len(data.labelled("a").instances) == 2
    (tmp_path / "classes.txt").write_text("_background_\nvessel\n")
    data = open_folder(tmp_path)
    assert data.classes == ("vessel",) and data.labelled("a").ignored is None
    save(tmp_path / "labels/b.png", (objects("b")[0].any(axis=0)).astype(np.uint8))  # one map with a class tells
    data = open_folder(tmp_path)
    assert len(data.labelled("a").instances) == 0 and len(data.labelled("b").instances) == 1
    assert data.labelled("a").ignored.areas().sum() == objects("a")[0].sum()


def test_folders_are_parts(tmp_path):
    for part in ("training", "validation", "test"):
        save_pictures(tmp_path / "images" / part)
        if part != "test":
            save(tmp_path / f"annotations/{part}/a.png", class_map("a"))
    data = open_folder(tmp_path)
    assert data.train_ids == ("training__a", "training__b", "training__c")
    assert data.test_ids == ("validation__a", "validation__b", "validation__c")  # the test part has no labels
    assert data.has_mask("training__a") and not data.has_mask("test__a")
    assert data.labelled("validation__a").instances.classes.tolist() == [0, 1]
    save(tmp_path / "annotations/test/a.png", class_map("a"))
    data = open_folder(tmp_path)
    assert data.test_ids == ("test__a", "test__b", "test__c") and len(data.train_ids) == 6


def test_lists_of_three_parts(tmp_path):
    root = TestInstanceMaps().make(tmp_path)
    for name, text in (("train", "c"), ("val", "a"), ("test", "b")):
        (root / f"{name}.txt").write_text(text)
    data = open_folder(root)
    assert (data.train_ids, data.test_ids) == (("c", "a"), ("b",))
    for folder in ("instances", "labels"):
        (root / folder / "b.png").unlink()
    data = open_folder(root)
    assert (data.train_ids, data.test_ids) == (("c",), ("a",))
    (root / "val.txt").write_text("a\nghost\n")
    refuses(root, "val.txt, line 2", "'ghost'")


def test_maps_that_cannot_be_used(tmp_path):
    root = TestInstanceMaps().make(tmp_path)
    save(root / "labels/a.png", class_map("a") * 3)
    refuses(root, "labels/a.png holds the index 3", "1..2")
    save(root / "labels/a.png", np.where(class_map("a") == 2, 0, class_map("a")))
    refuses(root, "labels/a.png is background at all of object 255")
    (root / "labels/a.png").unlink()
    refuses(root, "instances/a.png has no class map")
    save(root / "instances/a.png", np.zeros((9, 9, 3), np.uint8))
    refuses(root, "instances/a.png has 3 channels")
    save(root / "instances/a.png", np.zeros((9, 9), np.uint8))
    refuses(root, "label map", "instances/a.png is 9 x 9", "20 x 31")
    save(root / "instances/a.png", np.zeros(SIZES["a"], np.uint8))
    Pillow.new("L", (3, 3)).save(root / "instances/a.bmp")
    refuses(root, "a.bmp and a.png for the same id 'a'")
    tifffile.imwrite(root / "instances/a.bmp", np.full(SIZES["a"], -1, np.int16))
    (root / "instances/a.png").unlink()
    refuses(root, "a.bmp holds -1")


def test_folders_that_are_no_data_set(tmp_path):
    refuses(tmp_path, "holds no image", "instances/")
    save_pictures(tmp_path / "images")
    refuses(tmp_path, "no mask file in instances/")
    save(tmp_path / "labels/a_mask.png", class_map("a"))
    refuses(tmp_path, "such as 'a_mask'", "rename")
    (tmp_path / "labels/a_mask.png").rename(tmp_path / "labels/a.png")
    (tmp_path / "labels").rename(tmp_path / "instances")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    refuses(tmp_path, "names 2 classes", "add class maps")


def test_nuclei(real_data):
    data = open_folder(real_data / "DSB2018")
    assert (data.format, data.name, data.classes) == ("masks", "DSB2018", ("target",))
    assert (len(data.train_ids), len(data.test_ids)) == (400, 100) and not set(data.train_ids) & set(data.test_ids)
    assert all(data.has_mask(id) for id in data.train_ids + data.test_ids)
    crowded = next(id for id in data.train_ids + data.test_ids if id.startswith("a102535b0e88"))
    assert len(data.labelled(crowded).instances) == 375
    for name in ("NUAA-SIRST", "NUDT-SIRST"):
        assert find_layout(real_data / name).format == "sirst"


@pytest.mark.parametrize("layout", ["folders", "flat", "scenes"])
def test_a_list_that_is_not_read_is_refused(tmp_path, layout):
    names = {"folders": ["day/a", "day/b", "night/c"], "flat": ["a", "b", "c"], "scenes": ["a", "b", "c"]}[layout]
    for number, name in enumerate(names):
        for folder in ("images", "masks" if layout == "scenes" else "labels"):
            path = tmp_path / name / folder / f"{name}.png" if layout == "scenes" else tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.zeros((12, 12), np.uint8)
            values[number : number + 3, 2:5] = 200 if folder == "images" else 1
            Pillow.fromarray(values).save(path)
    assert len(MasksDataset(tmp_path).train_ids) == 3
    (tmp_path / "50_50").mkdir()
    (tmp_path / "50_50/test.txt").write_text("a\nb\n")
    where = "the root as train.txt" if layout == "scenes" else "the root or img_idx/ as train.txt"
    for strict in (True, False):
        with pytest.raises(DataError, match=rf"50_50 holds the id list test.txt, which is not read.*{where}"):
            MasksDataset(tmp_path, strict=strict)
    (tmp_path / "test.txt").write_text("\n".join(name.replace("/", "__") for name in names[:1]))
    assert len(MasksDataset(tmp_path).test_ids) == 1  # with a list that is read others are nobody's business
