"""LabelMe's files: every type of shape, images beside and elsewhere, and everything that can be wrong."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers.contract import SIZES, ReaderContract, objects, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.labelme import LabelmeDataset

HEIGHT, WIDTH = 12, 18


def save_grey(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)).save(path)


def labelme(path: Path, *shapes, image: str | None = None, size=(HEIGHT, WIDTH), **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{path.stem}.png" if image is None else image,
        "imageData": base64.b64encode(b"picture" * 20000).decode(),
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    path.write_text(json.dumps({**value, **more}))
    return path


def shape(kind: str, *points, label="cat", **more) -> dict:
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, "group_id": None, **more}


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Pillow.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def one(root: Path, *shapes) -> LabelmeDataset:
    save_grey(root / "a.png")
    labelme(root / "a.json", *shapes)
    return LabelmeDataset(root)


def refuses(root: Path, *words: str, id: str | None = None) -> None:
    with pytest.raises(DataError) as caught:
        data = LabelmeDataset(root)
        if id is not None:
            data.labelled(id)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)


def test_every_type_of_shape(tmp_path):
    blob = np.random.default_rng(1).random((4, 5)) < 0.6
    data = one(
        tmp_path,
        shape("polygon", (1, 1), (5, 1), (5, 4), (1, 4)),
        shape("rectangle", (9.4, 3.0), (6.0, 1.2), label="dog"),
        shape("circle", (10, 8), (13, 8)),
        shape("mask", (2, 6), (6, 9), label="dog", mask=png(blob)),
        shape("rotation", (14, 1), (17, 1), (17, 3), (14, 3)),
        shape("rectangle", (14, 5), (17, 5), (17, 7), (14, 7)),
    )
    made = data.labelled("a").instances
    assert data.classes == ("cat", "dog") and made.classes.tolist() == [0, 1, 0, 1, 0, 0] and not data.boxes_only
    wanted = np.zeros((6, HEIGHT, WIDTH), bool)
    wanted[0, 1:4, 1:5] = True
    wanted[1, 1:3, 6:9] = True
    for row in range(HEIGHT):
        for column in range(WIDTH):
            wanted[2, row, column] = (column + 0.5 - 10) ** 2 + (row + 0.5 - 8) ** 2 <= 9
    wanted[3, 6:10, 2:7] = blob
    wanted[4, 1:3, 14:17] = wanted[5, 5:7, 14:17] = True
    np.testing.assert_array_equal(made.masks(), wanted)
    np.testing.assert_allclose(made.boxes[1], [6, 1.2, 9.4, 3], rtol=1e-6)


def test_groups_are_one_object(tmp_path):
    def part(x, group, label="cat"):
        return shape("rectangle", (x, 1), (x + 2, 3), group_id=group, label=label)

    data = one(tmp_path, part(0, 1), part(3, None), part(6, 1), part(9, None), part(12, 1, "dog"))
    made = data.labelled("a").instances
    assert made.classes.tolist() == [0, 0, 0, 1] and made.areas().tolist() == [8, 4, 4, 4] and not data.boxes_only
    assert made.boxes[0].tolist() == [0, 1, 8, 3]
    assert one(tmp_path, part(0, 1), part(3, 2)).boxes_only


def test_ignored_regions(tmp_path):
    data = one(tmp_path, shape("rectangle", (0, 0), (3, 3), label="__ignore__"), shape("circle", (9, 9), (9, 10)))
    sample = data.labelled("a")
    assert data.classes == ("cat",) and len(sample.instances) == 1 and not data.boxes_only
    assert sample.ignored is not None and sample.ignored.areas().tolist() == [9]


def test_classes_of_a_list(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\nbird\n")
    data = one(tmp_path, shape("circle", (9, 9), (9, 10)))
    assert data.classes == ("dog", "cat", "bird") and data.labelled("a").instances.classes.tolist() == [1]
    one(tmp_path, shape("circle", (9, 9), (9, 10), label="cow"))
    refuses(tmp_path, "a.json, shape 0: the label 'cow' is not in labels.txt", id="a")
    (tmp_path / "labels.txt").write_text("\n")
    refuses(tmp_path, "labels.txt names no class")


def test_images_elsewhere_and_parts(tmp_path):
    box = shape("rectangle", (0, 0), (3, 3))
    for place in ("images/train/a", "images/train/b", "images/test/c", "images/val/d"):
        save_grey(tmp_path / f"{place}.png")
    labelme(tmp_path / "labels/a.json", box, image="..\\images\\train\\a.png")
    labelme(tmp_path / "images/test/c.json", box, image="C:\\Users\\me\\c.png")
    labelme(tmp_path / "images/val/d.json", image="old name.jpg")
    data = open_folder(tmp_path)
    assert data.format == "labelme" and "LabelMe file" in find_layout(tmp_path).reason
    assert (data.train_ids, data.test_ids) == (("a", "b", "d"), ("c",))
    assert [data.has_mask(id) for id in "abcd"] == [True, False, True, True]
    assert len(data.labelled("a").instances) == 1 and len(data.labelled("d").instances) == 0
    labelme(tmp_path / "images/train/a.json", box)
    refuses(tmp_path, "a.png has labels already in")
    (tmp_path / "images/train/a.json").unlink()
    labelme(tmp_path / "labels/e.json", box)
    refuses(tmp_path, "e.json: its image 'e.png' is not below")


def test_other_json_is_left_alone(tmp_path):
    one(tmp_path, shape("circle", (9, 9), (9, 10)))
    (tmp_path / "settings.json").write_text("[1, 2]")
    assert LabelmeDataset(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (3, "it is no shape"),
        (shape("linestrip", (1, 1), (2, 2)), "'linestrip' has no area, expected polygon"),
        (shape("point", (1, 1)), "'point' has no area"),
        (shape(["polygon"], (1, 1)), "has no area"),
        (shape("polygon", (1, 1), (2, 2)), "a polygon has 2 points"),
        (shape("polygon", (1, 1), (2, 2), (3, float("nan"))), "not a finite number"),
        (shape("polygon", (1, 1), (2, 2), (3, 10**400)), "pairs of numbers"),
        (shape("polygon", (1, 1), (2, 2), (3, 4, 5)), "pairs of numbers"),
        (shape("polygon", (1, 1), (2, 2), ("a", "b")), "pairs of numbers"),
        (shape("polygon", (50, 50), (60, 50), (60, 60)), "lies outside its image"),
        (shape("rectangle", (1, 1), (2, 2), (3, 3)), "a rectangle has 3 points"),
        (shape("rectangle", (1, 1), (float("inf"), 2)), "not a finite number"),
        (shape("circle", (1, 1), (2, float("nan"))), "not a finite number"),
        (shape("circle", (50, 50), (51, 50)), "lies outside"),
        (shape("polygon", (1, 1), (2, 2), (3, 1), label=" "), "no label"),
        (shape("polygon", (1, 1), (2, 2), (3, 1), label=None), "no label"),
        (shape("polygon", (1, 1), (2, 2), (3, 1), group_id=[1]), "group_id"),
        (shape("mask", (1, 1), (2, 2)), "a mask has no picture"),
        (shape("mask", (1, 1), (2, 2), mask="no base 64!"), "no PNG picture"),
        (shape("mask", (1, 1), (2, 2), mask=png(np.ones((2, 2)))[:60]), "no PNG picture"),
        (shape("mask", (1, 1), (2, 2), mask=png(np.ones((9, 2)))), "9 x 2 pixels has a box of 2 x 2"),
        (shape("mask", (1e9, 1), (1e9, 2), mask=png(np.ones((2, 1)))), "lies outside its image"),
    ],
)
def test_shapes_that_mean_nothing(tmp_path, wrong, words):
    save_grey(tmp_path / "a.png")
    labelme(tmp_path / "a.json", shape("circle", (9, 9), (9, 10)), wrong)
    refuses(tmp_path, "a.json, shape 1: ", words, id="a")


def test_masks_are_cut_at_the_image(tmp_path):
    blob = np.ones((6, 5), bool)
    made = one(tmp_path, shape("mask", (-2, 9), (2, 14), mask=png(blob)), shape("circle", (0, 0), (0.1, 0)))
    masks = made.labelled("a").instances.masks()
    assert np.argwhere(masks[0]).min(axis=0).tolist() == [9, 0] and masks[0].sum() == 3 * 3
    assert np.argwhere(masks[1]).tolist() == [[0, 0]]
    assert len(one(tmp_path, shape("mask", (30, 9), (34, 14), mask=png(blob))).labelled("a").instances) == 0


def test_files_that_cannot_be_used(tmp_path):
    one(tmp_path)
    good = (tmp_path / "a.json").read_bytes()
    for data, words in (
        (good[:100], "is damaged"),
        (b"[]", "holds no JSON object"),
        (b'{"a": 1}', "has no list 'shapes'"),
        (b"\xff" + good, "not UTF-8"),
        (good.decode().encode("utf-16"), "not UTF-8"),
        (b'{"shapes":' + b"[" * 100_000, "nested too deeply"),
    ):
        (tmp_path / "a.json").write_bytes(data)
        refuses(tmp_path, "a.json", words)
        assert [problem.id for problem in LabelmeDataset(tmp_path, strict=False).problems] == ["a"]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + good)
    assert LabelmeDataset(tmp_path).has_mask("a")
    labelme(tmp_path / "a.json", size=(WIDTH, HEIGHT))
    refuses(tmp_path, "about an image of 18 x 12", "a.png is 12 x 18", id="a")
    labelme(tmp_path / "a.json", size=(None, None))
    assert len(LabelmeDataset(tmp_path).labelled("a").instances) == 0


class TestContract(ReaderContract):
    format = "labelme"

    def make(self, root):
        for id, part in (("a", "train"), ("b", "test"), ("c", "train")):
            save_pictures(root / part)
            for other in set("abc") - {i for i, p in (("a", "train"), ("b", "test"), ("c", "train")) if p == part}:
                (root / part / f"{other}.png").unlink()
            if id != "c":
                shapes = []
                for mask, number in zip(*objects(id), strict=True):
                    ys, xs = np.nonzero(mask)
                    corners = [(int(xs.min()), int(ys.min())), (int(xs.max()) + 1, int(ys.max()) + 1)]
                    shapes.append(shape("rectangle", *corners, label=self.classes[number]))
                labelme(root / part / f"{id}.json", *shapes, size=SIZES[id])
        return root

    def damage(self, root):
        path = root / "train/a.json"
        path.write_bytes(path.read_bytes()[:-10])
