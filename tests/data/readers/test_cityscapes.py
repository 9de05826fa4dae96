"""Cityscapes: numbers with counts, groups, polygons, and the parts as folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers.contract import SIZES, ReaderContract, objects, pictures

from fewlabel.core.errors import DataError
from fewlabel.data.readers import open_folder

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
FRAMES = {"a": ("train", "aachen"), "b": ("val", "ulm"), "c": ("train", "aachen")}
SHAPE = (20, 31)


def place(root: Path, id: str, kind: str, part: str, city: str) -> Path:
    """Path of one file; its folder is made."""
    image = kind == "image"
    folder = root / ("leftImg8bit" if image else "gtFine") / part / city
    folder.mkdir(parents=True, exist_ok=True)
    ending = ".json" if kind == "polygons" else ".png"
    return folder / f"{id}_{'leftImg8bit' if image else f'gtFine_{kind}'}{ending}"


def frame(root: Path, numbers: np.ndarray | None = None, kind: str = "instanceIds", id: str = "ulm_000001_000019"):
    Pillow.fromarray(np.full(SHAPE, 9, np.uint8)).save(place(root, id, "image", "train", "ulm"))
    if numbers is not None:
        Pillow.fromarray(numbers).save(place(root, id, kind, "train", "ulm"))


def polygons(root: Path, *items: object, size: tuple[int, int] = SHAPE) -> None:
    value = {"imgHeight": size[0], "imgWidth": size[1], "objects": items}
    place(root, "ulm_000001_000019", "polygons", "train", "ulm").write_text(json.dumps(value))


def square(label: str, x0: int, y0: int, x1: int, y1: int, **more: object) -> dict:
    return {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], **more}


def sample(root: Path):
    return open_folder(root, "cityscapes").labelled("ulm_000001_000019")


class TestContract(ReaderContract):
    """Ids of the contract have neither city nor sequence; nothing needs them but `group`."""

    format = "cityscapes"
    classes = CLASSES

    def make(self, root):
        for id, picture in pictures().items():
            Pillow.fromarray(picture).save(place(root, id, "image", *FRAMES[id]))
            if id in "ab":
                numbers = np.full(SIZES[id], 7, np.uint16)  # road
                for count, (mask, kind) in enumerate(zip(*objects(id), strict=True)):
                    numbers[mask] = (24 + kind) * 1000 + count
                Pillow.fromarray(numbers).save(place(root, id, "instanceIds", *FRAMES[id]))
        return root

    def damage(self, root):
        path = place(root, "a", "instanceIds", *FRAMES["a"])
        path.write_bytes(path.read_bytes()[:50])

    def test_parts(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",))


def test_counts_groups_and_stuff(tmp_path):
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[0:2], numbers[3, 0:4], numbers[3, 4:8] = 11, 26000, 26001  # a building, two cars that touch
    numbers[5, 0:3], numbers[9, 0:3] = 33012, 33012  # one bicycle behind a pole
    numbers[12, 0:5], numbers[13, 0:5], numbers[14, 0:2] = 26, 24, 29  # groups of cars and people, a caravan alone
    numbers[15, 0:2], numbers[16, 0:2] = 29000, 30001  # a caravan and a trailer
    frame(tmp_path, numbers)
    found = sample(tmp_path)
    assert found.instances.classes.tolist() == [2, 2, 7] and found.instances.areas().tolist() == [4, 4, 6]
    assert found.ignored.classes.tolist() == [0, 2] and found.ignored.areas().tolist() == [5, 5]
    np.testing.assert_array_equal(found.ignored.semantic(), (numbers == 24) | (numbers == 26))
    frame(tmp_path, np.where(np.isin(numbers, [24, 26]), 0, numbers).astype(np.uint16))
    assert sample(tmp_path).ignored is None


def test_polygons_are_painted_in_their_order(tmp_path):
    frame(tmp_path)
    polygons(
        tmp_path,
        square("sky", 0, 0, 31, 20),
        square("car", 2, 2, 12, 10),
        square("person", 4, 4, 8, 8),
        square("license plate", 9, 4, 11, 6),
        square("pole", 5, 0, 6, 20),
        square("bicyclegroup", 20, 2, 25, 6),
        square("polegroup", 22, 2, 23, 6),
        square("bus", 20, 10, 25, 15, deleted=1),
    )
    found = sample(tmp_path)
    # 10 x 8 car less 4 x 4 person and what the pole covers of it; the person in two pieces stays one
    assert found.instances.classes.tolist() == [0, 2]
    assert found.instances.areas().tolist() == [4 * 4 - 4, 80 - 16 - 4]
    assert found.ignored.classes.tolist() == [7] and found.ignored.areas().tolist() == [5 * 4 - 4]
    # instance maps come first where both are there, labelIds last
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[0, :2] = numbers[0, 5:7] = 26
    frame(tmp_path, numbers.astype(np.uint8), "labelIds")
    assert len(sample(tmp_path).instances) == 2 and sample(tmp_path).ignored is not None
    place(tmp_path, "ulm_000001_000019", "polygons", "train", "ulm").unlink()
    assert sample(tmp_path).instances.areas().tolist() == [2, 2] and sample(tmp_path).ignored is None
    frame(tmp_path, numbers * 1000)
    assert sample(tmp_path).instances.areas().tolist() == [4]


def test_many_polygons_of_one_class_do_not_run_into_the_next(tmp_path):
    frame(tmp_path)
    polygons(tmp_path, *[square("person", 0, 0, 1, 1)] * 1500, square("person", 3, 3, 5, 5), square("car", 8, 8, 9, 9))
    assert sample(tmp_path).instances.classes.tolist() == [0, 0, 2]


def test_parts_and_groups(tmp_path):
    numbers = np.full(SHAPE, 24000, np.uint16)
    for part, city in (("train", "ulm"), ("val", "lindau"), ("test", "berlin")):
        for sequence in ("000000", "000001"):
            id = f"{city}_{sequence}_000019"
            Pillow.fromarray(np.full(SHAPE, 9, np.uint8)).save(place(tmp_path, id, "image", part, city))
            Pillow.fromarray(numbers).save(place(tmp_path, id, "instanceIds", part, city))
    data = open_folder(tmp_path)
    assert data.format == "cityscapes" and data.classes == CLASSES
    assert data.train_ids == ("ulm_000000_000019", "ulm_000001_000019")
    assert data.test_ids == ("lindau_000000_000019", "lindau_000001_000019")
    assert data.group("ulm_000000_000019") == "ulm_000000"
    assert not data.has_mask("berlin_000000_000019") and data.image("berlin_000000_000019").size == SHAPE
    with pytest.raises(DataError, match="no labels"):
        data.labelled("berlin_000000_000019")


def test_a_frame_in_two_parts(tmp_path):
    for part in ("train", "val"):
        Pillow.fromarray(np.full(SHAPE, 9, np.uint8)).save(place(tmp_path, "ulm_0_1", "image", part, "ulm"))
    with pytest.raises(DataError, match="the same id 'ulm_0_1"):
        open_folder(tmp_path)
    assert [problem.id for problem in open_folder(tmp_path, strict=False).problems] == ["ulm_0_1"]


def test_labels_that_cannot_be_used(tmp_path):
    def refuses(*words: str) -> None:
        with pytest.raises(DataError) as caught:
            sample(tmp_path)
        for word in (str(tmp_path), *words):
            assert word in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")

    frame(tmp_path, np.zeros((4, 4), np.uint16))
    refuses("instance map", "is 4 x 4 pixels", "20 x 31")
    place(tmp_path, "ulm_000001_000019", "instanceIds", "train", "ulm").unlink()
    polygons(tmp_path, size=(31, 20))
    refuses("polygons", "is 31 x 20 pixels")
    for item, *words in (
        ({"label": 3}, "object 1 has no label"),
        ("car", "object 1 has no label"),
        ({"label": "car"}, "object 1 (car) has no usable outline", "1 points"),
        ({"label": "sky", "polygon": [[1, 2], [3]]}, "object 1 (sky) has no usable outline"),
        ({"label": "car", "polygon": [[1, 2], [3, 1], [None, 3]]}, "not a finite number"),
        ({"label": "car", "polygon": [["x", 2], [3, 1], [2, 3]]}, "no usable outline"),
    ):
        polygons(tmp_path, square("sky", 0, 0, 9, 9), item)
        refuses(*words)
    path = place(tmp_path, "ulm_000001_000019", "polygons", "train", "ulm")
    path.write_text('{"objects": []}')
    refuses("lacks imgHeight")
    path.write_text("{")
    refuses("damaged")
