"""CVAT for images: every shape that marks an area, groups, subsets, and shapes that do not make sense."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Pillow
from tests.data.readers.contract import SIZES, ReaderContract, objects, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.core.masks import decode
from fewlabel.data.polygons import ShapeError
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.cvat import _unpacked

NAMES = ("cat", "dog")
META = "<meta><task><labels>{}</labels></task></meta>".format(
    "".join(
        f"<label><name>{name}</name><attributes><attribute><name>x</name></attribute></attributes></label>"
        for name in NAMES
    )
)


def shape(tag: str, label: str = "cat", **values: object) -> str:
    attributes = " ".join(f'{name}="{value}"' for name, value in values.items())
    return f'<{tag} label="{label}" source="manual" {attributes}></{tag}>'


def box(label: str, x0: float, y0: float, x1: float, y1: float, **more: object) -> str:
    return shape("box", label, xtl=x0, ytl=y0, xbr=x1, ybr=y1, **more)


def polygon(label: str, points: str, **more: object) -> str:
    return shape("polygon", label, points=points, **more)


def mask(label: str, pixels: np.ndarray, left: int, top: int) -> str:
    """CVAT's run-length code of a bool array, written with a loop."""
    runs, value = [0], False
    for pixel in pixels.ravel():
        if bool(pixel) != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    height, width = pixels.shape
    return shape("mask", label, rle=", ".join(map(str, runs)), left=left, top=top, width=width, height=height)


def image(name: str, *shapes: str, size: tuple[int, int] = SIZES["a"], **more: object) -> str:
    extra = " ".join(f'{key}="{value}"' for key, value in more.items())
    return f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}" {extra}>{"".join(shapes)}</image>'


def annotate(root: Path, *images: str, meta: str = META) -> None:
    root.mkdir(parents=True, exist_ok=True)
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
    text = f"{head}{meta}{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(text, encoding="utf-8")


def shapes(root: Path, *items: str):
    save_pictures(root / "images")
    annotate(root, image("a.png", *items))
    return open_folder(root).labelled("a").instances


class TestPolygonsAndMasks(ReaderContract):
    format = "cvat"

    def make(self, root):
        save_pictures(root / "images")
        annotate(
            root,
            image(
                "a.png", polygon("cat", "3,2 12,2 12,8 3,8".replace(" ", ";")), mask("dog", np.ones((9, 16)), 14, 10)
            ),
            image("b.png", box("dog", 5, 1, 20, 6), size=SIZES["b"], subset="Test"),
        )
        return root

    def damage(self, root):
        path = root / "annotations.xml"
        path.write_bytes(path.read_bytes()[:-30])

    def test_parts(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",)) and not data.boxes_only
        assert self.open(data.root / "annotations.xml").train_ids == ("a", "c")
        assert find_layout(data.root / "annotations.xml").format == "cvat"


class TestBoxes(ReaderContract):
    """No <meta>: the labels are those that occur."""

    format = "cvat"

    def make(self, root):
        save_pictures(root)
        items = [
            image(
                f"{id}.png",
                *(
                    box(NAMES[kind], xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                    for pixels, kind in zip(*objects(id), strict=True)
                    for ys, xs in [np.nonzero(pixels)]
                ),
                size=SIZES[id],
            )
            for id in "ab"
        ]
        annotate(root, *items, meta="<meta/>")
        return root

    def damage(self, root):
        annotate(root, image("a.png", box("cat", 9, 9, 2, 2)))

    def test_boxes_stay_exact(self, tmp_path):
        root = self.make(tmp_path / "set")
        assert self.open(root).boxes_only
        annotate(root, image("a.png", box("cat", 1.25, 2, 7.5, 9.125)))
        assert self.open(root).labelled("a").instances.boxes.tolist() == [[1.25, 2, 7.5, 9.125]]
        annotate(root, image("a.png", box("cat", 1.25, 2, 7.5, 9.125, rotation="10")))
        assert not self.open(root).boxes_only


def test_shapes_of_a_group_and_label_are_one_object(tmp_path):
    found = shapes(
        tmp_path,
        box("cat", 0, 0, 2, 2, group_id=7),
        box("dog", 4, 0, 6, 2, group_id=7),
        polygon("cat", "10,10;13,10;13,12;10,12", group_id=7),
        box("cat", 1, 1, 3, 3, group_id=0),
        box("cat", 20, 0, 22, 2),
    )
    assert found.classes.tolist() == [0, 1, 0, 0] and found.areas().tolist() == [4 + 6, 4, 4, 4]
    assert found.boxes[0].tolist() == [0, 0, 13, 12]


def test_what_marks_no_area_is_passed_over(tmp_path):
    skipped = [
        shape("polyline", points="1,1;5,5"),
        shape("points", points="1,1"),
        shape("tag"),
        '<skeleton label="cat"><points label="1" points="3,3"/></skeleton>',
        shape("cuboid", xtl1=1),
    ]
    assert len(shapes(tmp_path, *skipped, box("dog", 0, 0, 2, 2))) == 1


def test_turned_boxes_and_ellipses(tmp_path):
    quarter, still, ellipse, turned = shapes(
        tmp_path,
        box("cat", 4, 8, 10, 10, rotation="90.0"),
        box("cat", 4, 8, 10, 10, rotation="0.0"),
        shape("ellipse", cx=15, cy=10, rx=9, ry=4),
        shape("ellipse", cx=15, cy=10, rx=9, ry=4, rotation=30),
    ).masks()
    assert (np.argwhere(quarter).min(0).tolist(), np.argwhere(quarter).max(0).tolist()) == ([6, 6], [11, 7])
    assert quarter.sum() == still.sum() == 12
    ys, xs = np.mgrid[:20, :31] + 0.5
    across, down = xs - 15, ys - 10
    angle = math.radians(30)  # clockwise on a screen: the right end of the ellipse goes down
    along = across * math.cos(angle) + down * math.sin(angle)
    aside = down * math.cos(angle) - across * math.sin(angle)
    for got, value in ((ellipse, (across / 9) ** 2 + (down / 4) ** 2), (turned, (along / 9) ** 2 + (aside / 4) ** 2)):
        assert got[value < 0.9].all() and not got[value > 1.1].any()  # the rim is the rasteriser's


def test_names_in_folders_and_subsets(tmp_path):
    save_pictures(tmp_path / "images/night")
    save_pictures(tmp_path / "images/Validation/day")
    items = [image("night/a.png", box("cat", 0, 0, 2, 2)), image("day/a.png", subset="Validation")]
    annotate(tmp_path, *items)
    data = open_folder(tmp_path)
    assert [id for id in data.train_ids if data.has_mask(id)] == ["night__a"]
    assert data.test_ids == ("Validation__day__a",) and len(data.labelled("Validation__day__a").instances) == 0
    annotate(tmp_path, *items, items[0], image("gone.png"))
    with pytest.raises(DataError, match="2 problems, the first: .*'night/a.png' is listed twice"):
        open_folder(tmp_path)
    assert [problem.id for problem in open_folder(tmp_path, strict=False).problems] == ["night__a", "gone"]


@settings(deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))), st.integers(0, 3), st.integers(0, 3))
def test_run_lengths_go_along_rows(pixels, left, top):
    height, width = pixels.shape
    runs = mask("cat", pixels, left, top).split('rle="')[1].split('"')[0]
    if not pixels.any():
        with pytest.raises(ShapeError, match="empty"):
            _unpacked(runs, [left, top, width, height], (12, 11))
        return
    wanted = np.zeros((12, 11), bool)
    wanted[top : top + height, left : left + width] = pixels
    np.testing.assert_array_equal(decode(_unpacked(runs, [left, top, width, height], (12, 11))), wanted)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (box("emu", 0, 0, 2, 2), "has the label 'emu', which is none of the 2 labels"),
        (box("cat", 0, 0, 2, "wide"), "ybr of shape 2 of image 'a' is 'wide'"),
        (box("cat", 5, 0, 2, 2), "negative width"),
        (box("cat", 50, 0, 52, 2), "lies outside its image"),
        (box("cat", 0, 0, 2, 2, rotation="left"), "rotation of shape 2 of image 'a' is 'left'"),
        (polygon("cat", "1,1;2,2"), "2 points"),
        (polygon("cat", "1,1;2,2;3"), "not two coordinates"),
        (polygon("cat", "1,1;2,2;3,nan"), "a coordinate of shape 2 of image 'a' is 'nan'"),
        (shape("polygon"), "a coordinate of shape 2 of image 'a' is ''"),
        (shape("ellipse", cx=1, cy=1, rx=1), "ry of shape 2 of image 'a' is missing"),
        (shape("mask", rle="0, 4", left=0, top=0, width=2, height=1.5), "whole numbers"),
        (shape("mask", rle="0, 4", left=30, top=0, width=2, height=2), "outside its image"),
        (shape("mask", rle="0, 4", left=-1, top=0, width=2, height=2), "whole numbers"),
        (shape("mask", rle="0, 5", left=0, top=0, width=2, height=2), "does not cover the 4 pixels"),
        (shape("mask", rle="5, -1", left=0, top=0, width=2, height=2), "does not cover the 4 pixels"),
        (shape("mask", rle="4", left=0, top=0, width=2, height=2), "a mask is empty"),
        (shape("mask", rle="one", left=0, top=0, width=2, height=2), "no list of whole numbers"),
        (shape("mask", rle="9" * 400, left=0, top=0, width=2, height=2), "no list of whole numbers"),
    ],
)
def test_shapes_that_cannot_be_used(tmp_path, item, words):
    with pytest.raises(DataError) as caught:
        shapes(tmp_path, box("dog", 0, 0, 2, 2), item)
    text = str(caught.value)
    assert words in text and str(tmp_path / "annotations.xml") in text and text.endswith(".") and "\n" not in text, text


def test_files_that_cannot_be_used(tmp_path):
    def refuses(words: str) -> None:
        with pytest.raises(DataError, match=words):
            open_folder(tmp_path, "cvat").labelled("a")

    save_pictures(tmp_path / "images")
    refuses("has no annotations.xml: export")
    annotate(tmp_path, '<track id="0" label="cat"/>')
    refuses("holds tracks of a video")
    annotate(tmp_path, image("a.png", size=(31, 20)))
    refuses("annotation of 'a' .* is 31 x 20 pixels")
    annotate(tmp_path, '<image name="a.png" width="x"/>')
    refuses("height of image 'a' is missing")
    (tmp_path / "annotations.xml").write_text("<annotation/>")
    refuses("holds <annotation>, expected <annotations>")
    assert find_layout(tmp_path).format == "plain"
    annotate(tmp_path, image("a.png"))
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    refuses("holds no image: export with images")


def test_many_images_are_found_again(tmp_path):
    """Places in a file of several blocks, with letters of more than one byte before them."""
    (tmp_path / "images").mkdir()
    for number in range(0, 3000, 1000):
        Pillow.new("L", (31, 20)).save(tmp_path / f"images/ü{number}.png")
    Pillow.new("L", (31, 20)).save(tmp_path / "images/b.png")
    far = [image(f"ü{n}.png", box("cat", 0, 0, 1 + n // 1000, 1), box("dog", 2, 2, 3, 3)) for n in range(0, 3000, 1000)]
    annotate(tmp_path, *(text + f"<!-- {'é' * 40000} -->" for text in far), image("b.png"))
    data = open_folder(tmp_path)
    assert [data.labelled(f"ü{n}").instances.areas().tolist() for n in (2000, 0, 1000)] == [[3, 1], [1, 1], [2, 1]]
    assert len(data.labelled("b").instances) == 0
