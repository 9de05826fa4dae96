"""COCO files: layouts as they are published and exported, every kind of shape, and everything that can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as oracle
from pycocotools.coco import COCO
from tests.data.readers.contract import SIZES, ReaderContract, objects, pictures, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.core.masks import decode, encode
from fewlabel.data.check import check
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.coco import CocoDataset

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "pet"}]


def save_grey(path: Path, height: int = 10, width: int = 12, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)).save(path)


def coco(path: Path, names, annotations=(), categories=CATEGORIES, size=(10, 12), **more) -> Path:
    """A COCO file of images with the ids 1, 2, ... in the order of their names; annotations get ids 1, 2, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": n, "height": size[0], "width": size[1]} for i, n in enumerate(names, 1)]
    value = {"info": {"year": 2024}, "images": images, "categories": categories}
    if annotations is not None:
        value["annotations"] = [{"id": i, "category_id": 3, **a} for i, a in enumerate(annotations, 1)]
    path.write_text(json.dumps({**value, **more}))
    return path


def square(x0, y0, x1, y1) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def refuses(data_or_root, *words: str, id: str | None = None) -> None:
    with pytest.raises(DataError) as caught:
        data = CocoDataset(data_or_root)
        if id is not None:
            data.labelled(id)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)


def one(root: Path, **annotation) -> CocoDataset:
    """A data set of one image with one annotation."""
    save_grey(root / "images/a.png")
    coco(root / "instances.json", ["a.png"], [{"image_id": 1, **annotation}])
    return CocoDataset(root)


def test_several_polygons_are_one_object(tmp_path):
    data = one(tmp_path, segmentation=[square(1, 1, 4, 3), [5.5, 5, 9.25, 5, 7, 9.75]], bbox=[0, 0, 1, 1])
    made = data.labelled("a").instances
    parts = oracle.frPyObjects([square(1, 1, 4, 3), [5.5, 5, 9.25, 5, 7, 9.75]], 10, 12)
    np.testing.assert_array_equal(made.masks(), oracle.decode(oracle.merge(parts)).astype(bool)[None])
    assert made.boxes.tolist() == [[1, 1, 9, 9]] and not data.boxes_only


def test_run_length_codes(tmp_path):
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:7] = mask[7, 9] = True
    counts = [len(run) for run in np.split(mask.ravel("F"), np.flatnonzero(np.diff(mask.ravel("F"))) + 1)]
    for number, counted in enumerate((counts, encode(mask)["counts"].decode())):
        data = one(tmp_path / str(number), segmentation={"size": [10, 12], "counts": counted})
        np.testing.assert_array_equal(data.labelled("a").instances.masks(), mask[None])
    assert decode(encode(mask)).sum() == 13


def test_crowds_are_ignored(tmp_path):
    save_grey(tmp_path / "images/a.png")
    whole = {"image_id": 1, "segmentation": [square(1, 1, 4, 3)], "iscrowd": 0}
    crowd = {"image_id": 1, "segmentation": {"size": [10, 12], "counts": [5, 10, 105]}, "iscrowd": 1, "category_id": 7}
    coco(tmp_path / "instances.json", ["a.png"], [whole, crowd])
    sample = CocoDataset(tmp_path).labelled("a")
    assert sample.instances.areas().tolist() == [6] and sample.ignored is not None
    assert sample.ignored.areas().tolist() == [10] and sample.ignored.classes.tolist() == [1]
    coco(tmp_path / "instances.json", ["a.png"], [whole])
    assert CocoDataset(tmp_path).labelled("a").ignored is None


def test_boxes_stay_exact(tmp_path):
    data = one(tmp_path, bbox=[1.25, 2.75, 3.5, 4], segmentation=[])
    made = data.labelled("a").instances
    assert data.boxes_only and made.boxes.tolist() == [[1.25, 2.75, 4.75, 6.75]]
    wanted = np.zeros((10, 12), bool)
    wanted[3:7, 1:5] = True  # middles from 1.5 to 4.5 and from 3.5 to 6.5
    np.testing.assert_array_equal(made.masks()[0], wanted)


def test_a_box_among_masks(tmp_path):
    save_grey(tmp_path / "images/a.png")
    shapes = [{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 1, "segmentation": [square(5, 5, 8, 8)]}]
    coco(tmp_path / "instances.json", ["a.png"], shapes)
    data = CocoDataset(tmp_path)
    assert not data.boxes_only and data.labelled("a").instances.areas().tolist() == [12, 9]


def test_classes_in_the_order_of_category_ids(tmp_path):
    twice = [*CATEGORIES, {"id": 9, "name": "cat"}]
    save_grey(tmp_path / "images/a.png")
    shapes = [{"image_id": 1, "bbox": [i, 2, 3, 4], "category_id": c} for i, c in enumerate((9, 3, 7))]
    coco(tmp_path / "instances.json", ["a.png"], shapes, twice)
    data = CocoDataset(tmp_path)
    assert data.classes == ("cat", "dog") and data.labelled("a").instances.classes.tolist() == [0, 0, 1]


def test_as_coco_publishes_it(tmp_path):
    """train2017/, val2017/, test2017/ and unlabeled2017/ with annotations/ beside them; other annotations are left."""
    for place in ("train2017/1", "train2017/2", "val2017/3", "test2017/4", "unlabeled2017/5"):
        save_grey(tmp_path / f"{place}.jpg")
    save_grey(tmp_path / "annotations/panoptic_train2017/1.png")
    coco(tmp_path / "annotations/instances_train2017.json", ["2.jpg", "1.jpg"], [{"image_id": 1, "bbox": [1, 2, 3, 4]}])
    coco(tmp_path / "annotations/instances_val2017.json", ["3.jpg"])
    coco(tmp_path / "annotations/image_info_test2017.json", ["4.jpg"], None)
    coco(tmp_path / "annotations/captions_train2017.json", ["1.jpg"], [{"image_id": 1, "caption": "a"}])
    data = open_folder(tmp_path)
    assert data.format == "coco" and "instances_train2017.json" in find_layout(tmp_path).reason
    assert data.train_ids == ("2", "1", "5") and data.test_ids == ("3",)
    assert [data.has_mask(id) for id in "12345"] == [True, True, True, False, False]
    assert len(data.labelled("1").instances) == 0 and len(data.labelled("2").instances) == 1


def test_as_roboflow_exports_it(tmp_path):
    for part in ("train", "valid", "test"):
        save_grey(tmp_path / part / f"{part}_x.jpg")
        coco(tmp_path / part / "_annotations.coco.json", [f"{part}_x.jpg"], [{"image_id": 1, "bbox": [1, 2, 3, 4]}])
    save_grey(tmp_path / "train/new.jpg")
    save_grey(tmp_path / "test/new2.jpg")
    data = open_folder(tmp_path)
    assert (data.train_ids, data.test_ids) == (("train_x", "new", "valid_x"), ("test_x",))
    assert not data.has_mask("new") and data.has_mask("valid_x")


def test_a_file_alone(tmp_path):
    for name in ("a", "b", "c"):
        save_grey(tmp_path / f"set/images/{name}.png")
    train = coco(tmp_path / "set/annotations/instances_train.json", ["a.png"])
    data = open_folder(train)
    assert (data.train_ids, data.test_ids, data.name) == (("a", "b", "c"), (), "instances_train.json")
    coco(tmp_path / "set/annotations/instances_test.json", ["b.png"])
    assert open_folder(train).train_ids == ("a",), "the test images of another file must not train"
    assert open_folder(tmp_path / "set").train_ids == ("a", "c")


def test_parts_by_name(tmp_path):
    for name in "abc":
        save_grey(tmp_path / f"images/{name}.png")
    coco(tmp_path / "my_training.json", ["a.png"])
    coco(tmp_path / "my-validation.json", ["b.png"])
    assert (CocoDataset(tmp_path).train_ids, CocoDataset(tmp_path).test_ids) == (("a", "c"), ("b",))
    coco(tmp_path / "test-dev.json", ["c.png"])
    assert (CocoDataset(tmp_path).train_ids, CocoDataset(tmp_path).test_ids) == (("a", "b"), ("c",))
    coco(tmp_path / "test-dev.json", ["c.png"], None)
    assert (CocoDataset(tmp_path).train_ids, CocoDataset(tmp_path).test_ids) == (("a",), ("b",))


def test_folders_in_names(tmp_path):
    for part in ("train", "test"):
        for day in ("1", "2"):
            save_grey(tmp_path / f"images/{part}/{day}/0001.png", seed=hash((part, day)) % 99)
        coco(tmp_path / f"annotations/{part}.json", ["1/0001.png", "./2\\0001.png"])
    data = CocoDataset(tmp_path)
    assert data.train_ids == ("images__train__1__0001", "images__train__2__0001")
    assert data.test_ids == ("images__test__1__0001", "images__test__2__0001")
    coco(tmp_path / "annotations/test.json", ["1/0001.png"])
    (tmp_path / "images/test/2/0001.png").unlink()
    assert CocoDataset(tmp_path).test_ids == ("images__test__1__0001",)
    assert set(CocoDataset(tmp_path).train_ids) == {"images__train__1__0001", "2__0001"}


def test_an_image_missing_from_its_part_is_not_taken_from_another(tmp_path):
    save_grey(tmp_path / "images/train/1.png")
    coco(tmp_path / "annotations/train.json", ["1.png"])
    coco(tmp_path / "annotations/test.json", ["1.png"])
    refuses(tmp_path, "test.json, image 1: '1.png' has no file below")
    lenient = CocoDataset(tmp_path, strict=False)
    assert [problem.id for problem in lenient.problems] == ["1"] and lenient.train_ids == ("1",)


def test_lists_that_cannot_be_used(tmp_path):
    save_grey(tmp_path / "images/a.png")
    path = coco(tmp_path / "instances.json", ["a.png", "ghost.png"])
    refuses(tmp_path, "instances.json, image 2", "'ghost.png' has no file", "add it")
    coco(path, ["a.png", "a.png"])
    refuses(tmp_path, "image 2", "is listed already in", "as image 1")
    coco(path, ["a.png"], images=[{"id": 1, "file_name": "a.png"}] * 2)
    refuses(tmp_path, "image id 1 is used twice")
    coco(path, ["../images/a.png"])
    refuses(tmp_path, "entry 0 of images has no id or no file_name within the data set")
    coco(path, ["a.png"], [{"image_id": 1, "bbox": [1, 2, 3, 4], "id": 5}] * 2)
    refuses(tmp_path, "annotation 5: its id is used twice")
    coco(path, ["a.png"], [{"image_id": 4, "bbox": [1, 2, 3, 4]}])
    refuses(tmp_path, "annotation 1: image 4 is not in images")
    coco(path, ["a.png"], [{"bbox": [1, 2, 3, 4]}])
    refuses(tmp_path, "entry 0 of annotations has no image_id")
    coco(path, ["ghost.png"])
    refuses(tmp_path, "'ghost.png' has no file")
    for name in ("images", "annotations", "categories"):
        value = json.loads(coco(path, ["a.png"]).read_text())
        path.write_text(json.dumps({**value, name: {"a": 1}}))
        refuses(tmp_path, f"has no list {name!r}")


def test_categories_that_cannot_be_used(tmp_path):
    save_grey(tmp_path / "images/a.png")
    save_grey(tmp_path / "images/b.png")
    box = [{"image_id": 1, "bbox": [1, 2, 3, 4]}]
    path = coco(tmp_path / "instances.json", ["a.png"], box, [])
    refuses(tmp_path, "has annotations but no categories")
    for wrong in ([{"id": 1}], [{"name": "x"}], [{"id": 1, "name": " "}], [{"id": 1, "name": "a\nb"}], ["cat"]):
        coco(path, ["a.png"], box, wrong)
        refuses(tmp_path, "entry 0 of categories has no id or no name")
    coco(path, ["a.png"], box, [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])
    refuses(tmp_path, "category id 1 is used twice")
    coco(path, ["a.png"], box, [{"id": 1, "name": "cat"}, {"id": "2", "name": "dog"}])
    refuses(tmp_path, "mixes numbers and texts")
    coco(path, ["a.png"], box)
    coco(tmp_path / "test.json", ["b.png"], box, [{"id": 3, "name": "bird"}])
    refuses(tmp_path, "category 3 is 'bird', but another file calls it 'cat'")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"category_id": 99, "bbox": [1, 2, 3, 4]}, "category 99 is not in categories"),
        ({"category_id": [], "bbox": [1, 2, 3, 4]}, "category None is not in categories"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon has 2 points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon has 7 numbers"),
        ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]]}, "not a finite number"),
        ({"segmentation": [[1, 2, 3, 1e999, 5, 6]]}, "not a finite number"),
        ({"segmentation": [[1, 2, 3, 10**400, 5, 6]]}, "neither a list of polygons"),
        ({"segmentation": [[1, 2, "3", 4, 5, 6]]}, "neither a list of polygons"),
        ({"segmentation": "polygon"}, "neither a list of polygons"),
        ({"segmentation": [square(50, 50, 60, 60)]}, "lies outside its image of 10 x 12"),
        ({"segmentation": {"size": [12, 10], "counts": [120]}}, "is of size [12, 10]"),
        ({"segmentation": {"size": [10, 12], "counts": [5, 3]}}, "covers 8 pixels, but its image has 120"),
        ({"segmentation": {"size": [10, 12], "counts": "zzz"}}, "compressed run-length code is damaged"),
        ({"segmentation": {"size": [10, 12]}}, "not a list of whole numbers"),
        ({}, "neither a segmentation nor a bbox"),
        ({"bbox": [1, 2, 3]}, "neither a segmentation nor a bbox"),
        ({"bbox": [1, 2, 3, 10**400]}, "not a finite number"),
        ({"bbox": [1, 2, -3, 4]}, "negative width"),
    ],
)
def test_annotations_that_mean_nothing(tmp_path, annotation, words):
    one(tmp_path, **annotation)
    refuses(tmp_path, "instances.json, annotation 1 of image 'a'", words, id="a")


def test_an_image_of_another_size(tmp_path):
    save_grey(tmp_path / "images/a.png")
    coco(tmp_path / "instances.json", ["a.png"], size=(12, 10))
    refuses(tmp_path, "image 1: it is said to be 12 x 10", "a.png is 10 x 12", id="a")


def test_an_object_without_a_pixel_is_passed_over(tmp_path):
    assert len(one(tmp_path, segmentation={"size": [10, 12], "counts": [120]}).labelled("a").instances) == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"images": [], "annotations": [', "is damaged"),
        (b'{"images": [], "annotations": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b'}], "annotations": []}', "is damaged"),
        (b'{"images": [], "annotations": "\xff"}', "not UTF-8"),
        ('{"images": [], "annotations": []}'.encode("utf-16"), "not UTF-8"),
        ('{"images": [], "annotations": []}'.encode("utf-16-le"), "not UTF-8"),
        (b'[{"images": [], "annotations": []}]', "holds no JSON object"),
        (b'{"images": [], "annotations": []}', "lists 0 images"),
    ],
)
def test_damaged_files(tmp_path, data, words):
    (tmp_path / "instances.json").write_bytes(data)
    assert find_layout(tmp_path).format == "coco"
    refuses(tmp_path, words)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    save_grey(tmp_path / "images/a.png")
    path = coco(tmp_path / "instances.json", ["a.png"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    assert CocoDataset(tmp_path).train_ids == ("a",)


def test_other_json_is_not_coco(tmp_path):
    save_grey(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"version": "5", "shapes": [], "imagePath": "a.png"}')
    (tmp_path / "notes.json").write_text('{"images": 3}')
    assert find_layout(tmp_path).format != "coco"
    refuses(tmp_path, "holds no COCO file")


class TestContract(ReaderContract):
    format = "coco"

    def make(self, root):
        save_pictures(root / "images")
        for part, id in (("train", "a"), ("val", "b")):
            masks, classes = objects(id)
            annotations = []
            for mask, number in zip(masks, classes, strict=True):
                ys, xs = np.nonzero(mask)
                polygon = square(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
                annotations.append({"image_id": 1, "segmentation": [polygon], "category_id": [3, 7][number]})
            coco(root / f"annotations/instances_{part}.json", [f"{id}.png"], annotations, size=SIZES[id])
        return root

    def damage(self, root):
        path = root / "annotations/instances_train.json"
        path.write_bytes(path.read_bytes()[:-10])

    def test_the_coco_tools_agree(self, tmp_path):
        root = self.make(tmp_path)
        known = COCO(root / "annotations/instances_train.json")
        sample = CocoDataset(root).labelled("a")
        for annotation, mask in zip(known.loadAnns(known.getAnnIds()), sample.instances.masks(), strict=True):
            np.testing.assert_array_equal(known.annToMask(annotation).astype(bool), mask)
        assert sample.image.size == pictures()["a"].shape


def test_a_damaged_file_among_several_is_told_and_the_rest_goes_on(tmp_path):
    for name in ("train2017/a.png", "train2017/b.png", "val2017/c.png", "val2017/d.png"):
        save_grey(tmp_path / name)
    box = [{"image_id": 1, "bbox": [1, 1, 4, 3]}]
    coco(tmp_path / "annotations/instances_train2017.json", ["a.png"], box)
    broken = coco(tmp_path / "annotations/instances_val2017.json", ["c.png"], box)
    broken.write_text(broken.read_text()[:-30])
    refuses(tmp_path, "instances_val2017.json is damaged")
    data = CocoDataset(tmp_path, strict=False)
    assert [(problem.id, problem.file) for problem in data.problems] == [
        ("annotations__instances_val2017.json", broken)
    ]
    assert "is damaged" in data.problems[0].reason
    # What the damaged file lists is unknown, so no image beside it may train as an unlabelled one.
    assert (data.train_ids, data.test_ids) == (("a",), ())
    assert len(data.labelled("a").instances) == 1
    left_out = frozenset(problem.id for problem in data.problems)
    assert CocoDataset(tmp_path, left_out).train_ids == ("a",)  # as a run opens it after a check that went on
    report = check(data, keep_going=True, rejected_csv=tmp_path / "rejected.csv")
    assert report.train == 1 and "instances_val2017.json" in (tmp_path / "rejected.csv").read_text()


@pytest.mark.parametrize("files", [1, 2])
def test_without_a_file_that_can_be_read_going_on_is_no_help(tmp_path, files):
    save_grey(tmp_path / "images/a.png")
    for part in ("train", "val")[:files]:
        coco(tmp_path / f"annotations/instances_{part}.json", ["a.png"], ())
        path = tmp_path / f"annotations/instances_{part}.json"
        path.write_text(path.read_text()[:-2])
    with pytest.raises(DataError, match=r"instances_train.json is damaged"):
        CocoDataset(tmp_path, strict=False)
