"""The SIRST layout: lists as they are published, and everything that can be wrong with folders and lists."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from tests.data.readers.contract import ReaderContract, objects, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances, Labelled, Unlabelled
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.readers.sirst import SirstDataset

PARTS = ("train", "val", "trainval", "test", "trainvaltest")


def add(root: Path, *ids: str, masks: bool = True, size: int = 16) -> None:
    """Images of ``size`` squared with one two-pixel target each."""
    for folder in ("images", "masks", "img_idx"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size, size), np.uint8)
    mask[3, 4:6] = 255
    for number, id in enumerate(ids):
        Pillow.fromarray(np.full((size, size), 10 * number + 1, np.uint8) + mask // 4).save(root / f"images/{id}.png")
        if masks:
            Pillow.fromarray(mask).save(root / f"masks/{id}.png")


def lists(root: Path, train: str | bytes | None = None, test: str | bytes | None = None) -> None:
    for part, text in (("train", train), ("test", test)):
        if text is not None:
            (root / f"img_idx/{part}_x.txt").write_bytes(text.encode() if isinstance(text, str) else text)


def refuses(root: Path, *words: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        SirstDataset(root, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_lists_images_and_masks(tmp_path):
    add(tmp_path, "b", "a", "c")
    lists(tmp_path, "b\na\n", "c\n")
    data = SirstDataset(tmp_path)
    assert (data.name, data.train_ids, data.test_ids, data.problems) == (tmp_path.name, ("b", "a"), ("c",), ())
    sample = data.labelled("a")
    assert isinstance(sample, Labelled) and sample.image.id == "a" and len(sample.instances) == 1
    assert sample.instances.source == "human" and sample.instances.areas().tolist() == [2]
    assert isinstance(data.unlabelled("a"), Unlabelled)
    np.testing.assert_array_equal(data.image("b").pixels[0, :2], 1)


@pytest.mark.parametrize(
    "text",
    [
        b"a\r\nb\r\n",
        b"\xef\xbb\xbfa\nb",
        b"\xef\xbb\xbfa\r\n\r\n  b \t\r\n\r\n",
        b"a.png\nb.PNG\n",
        b"a\rb",
        b"\n\na\n \nb\n\n",
    ],
    ids=["crlf", "bom", "all", "endings", "old-mac", "blank"],
)
def test_lists_as_they_come(tmp_path, text):
    add(tmp_path, "a", "b", "c")
    lists(tmp_path, text)
    assert SirstDataset(tmp_path).train_ids == ("a", "b")


def test_dots_belong_to_the_id(tmp_path):
    add(tmp_path, "frame.0001", "frame.0002")
    lists(tmp_path, "frame.0001\nframe.0002.png\n")
    assert SirstDataset(tmp_path).train_ids == ("frame.0001", "frame.0002")


def test_image_and_mask_are_matched_over_endings(tmp_path):
    add(tmp_path)
    tifffile.imwrite(tmp_path / "images/a.TIFF", np.full((8, 9), 9000, np.uint16))
    Pillow.fromarray(np.eye(8, 9, dtype=np.uint8)).save(tmp_path / "masks/a.bmp")
    for hidden in ("images/._a.png", "images/notes.txt"):
        (tmp_path / hidden).touch()
    data = SirstDataset(tmp_path)
    assert data.train_ids == ("a",)
    sample = data.labelled("a")
    assert sample.image.dtype == "uint16" and len(sample.instances) == 1  # a diagonal is one 8-connected target
    np.testing.assert_array_equal(sample.instances.semantic(), np.eye(8, 9, dtype=bool))


def test_without_lists_every_image_trains(tmp_path):
    add(tmp_path, "c", "a", "b")
    data = SirstDataset(tmp_path)
    assert (data.train_ids, data.test_ids) == (("a", "b", "c"), ())
    lists(tmp_path, test="b")
    data = SirstDataset(tmp_path)
    assert (data.train_ids, data.test_ids) == (("a", "c"), ("b",))


def test_missing_mask_makes_an_image_unlabelled_only(tmp_path):
    add(tmp_path, "a")
    add(tmp_path, "b", masks=False)
    data = SirstDataset(tmp_path)
    assert [data.has_mask(id) for id in ("a", "b")] == [True, False]
    assert data.unlabelled("b").image.id == "b"
    with pytest.raises(DataError, match="has no labels"):
        data.labelled("b")
    with pytest.raises(DataError, match="no image 'z'"):
        data.image("z")


def test_mask_of_another_size(tmp_path):
    add(tmp_path, "a")
    Pillow.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"masks/a.png is 10 x 12 .* 16 x 16"):
        SirstDataset(tmp_path).labelled("a")


def test_single_pixel_image_can_be_read(tmp_path):
    add(tmp_path)
    for folder in ("images", "masks"):
        Pillow.fromarray(np.ones((1, 1), np.uint8)).save(tmp_path / folder / "a.png")
    assert SirstDataset(tmp_path).labelled("a").instances.areas().tolist() == [1]


def test_folders_that_are_no_data_set(tmp_path):
    refuses(tmp_path, "no folder 'images'")
    refuses(tmp_path / "nowhere", "nowhere does not exist")
    add(tmp_path)
    refuses(tmp_path, "holds no image", ".png")
    add(tmp_path, "a", masks=False)
    Pillow.new("L", (16, 16)).save(tmp_path / "masks/a_mask.png")
    refuses(tmp_path, "a_mask", "rename")


def test_listed_id_without_image_names_list_and_line(tmp_path):
    add(tmp_path, "a")
    lists(tmp_path, "a\r\n\r\nghost\r\n")
    refuses(tmp_path, "train_x.txt, line 3", "'ghost'", "remove the line")
    assert SirstDataset(tmp_path, frozenset({"ghost"})).train_ids == ("a",)


def test_id_twice_in_a_list_or_in_both(tmp_path):
    add(tmp_path, "a", "b")
    lists(tmp_path, "a\nb\na\n")
    refuses(tmp_path, "line 3", "'a'", "line 1")
    lists(tmp_path, "a\n", "b\na\n")
    refuses(tmp_path, "test_x.txt, line 2", "train_x.txt, line 1")


def test_two_files_of_one_stem(tmp_path):
    add(tmp_path, "a", "b")
    Pillow.new("L", (16, 16)).save(tmp_path / "images/a.bmp")
    refuses(tmp_path, "a.bmp and a.png", "keep one")
    lenient = SirstDataset(tmp_path, strict=False)
    assert [problem.id for problem in lenient.problems] == ["a"] and lenient.train_ids == ("a", "b")
    with pytest.raises(DataError, match="a.bmp and a.png"):
        lenient.image("a")
    assert SirstDataset(tmp_path, frozenset("a")).train_ids == ("b",)


def test_lists_that_cannot_be_used(tmp_path):
    add(tmp_path, "a", "b")
    lists(tmp_path, "\n \n")
    refuses(tmp_path, "names no image")
    lists(tmp_path, "a\n".encode("utf-16"))
    refuses(tmp_path, "UTF-8")
    lists(tmp_path, "a\n")
    (tmp_path / "img_idx/train_other.txt").write_text("b\n")
    refuses(tmp_path, "several train lists", "train_other.txt, train_x.txt")


def test_masks_named_after_pixels(tmp_path):
    add(tmp_path, "a", "b")
    for id in "ab":
        (tmp_path / f"masks/{id}.png").rename(tmp_path / f"masks/{id}_pixels0.png")
    data = SirstDataset(tmp_path)
    assert data.has_mask("b") and data.labelled("a").instances.areas().tolist() == [2]


def test_several_problems_are_counted(tmp_path):
    add(tmp_path, "a")
    lists(tmp_path, "a\na\nx\ny\n")
    refuses(tmp_path, "3 problems, the first", "line 2")


@pytest.mark.parametrize(("name", "train", "test"), [("NUAA-SIRST", 213, 214), ("NUDT-SIRST", 663, 664)])
def test_published_sets(real_data, name, train, test):
    data = SirstDataset(real_data / name)
    assert (data.name, len(data.train_ids), len(data.test_ids)) == (name, train, test)
    assert not set(data.train_ids) & set(data.test_ids)
    assert all(data.has_mask(id) for id in data.train_ids + data.test_ids)
    sample = data.labelled(data.test_ids[0])
    assert sample.image.bit_depth == 8 and len(sample.instances) >= 1


def publish(root: Path, images: str, masks: str, suffix: str = "", **texts: str) -> None:
    """Images a to f with masks in folders as a publisher calls them; `texts` are lists by path without ending."""
    add(root, *"abcdef")
    (root / "img_idx").rmdir()
    for id in "abcdef":
        (root / f"masks/{id}.png").rename(root / f"masks/{id}{suffix}.png")
    for old, new in (("images", images), ("masks", masks)):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)
    for path, ids in texts.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / f"{path}.txt").write_text("\n".join(ids) + "\n")


V2 = ("mixed", "annotations/masks", "_pixels0")
IRSTD = ("IRSTD1k_Img", "IRSTD1k_Label")


@pytest.mark.parametrize(
    ("folders", "texts", "train"),
    [
        (
            ("images", "masks", "_pixels0"),
            {f"idx_427/{part}": ids for part, ids in zip(PARTS, ("cb", "da", "dacb", "fe", "abcdef"), strict=True)},
            "cbda",
        ),
        (("images", "masks", "_pixels0"), {"idx_427/trainval": "dacb", "idx_427/test": "fe"}, "dacb"),
        (
            V2,
            {f"splits/{part}_full": ids for part, ids in zip(PARTS, ("cb", "da", "cbda", "fe", "abcdef"), strict=True)}
            | {"splits/test_v1fullv2target": "ab", "splits/trainval_v1fullv2target": "cf", "splits/mini_test": "a"},
            "cbda",
        ),
        (IRSTD, {"trainval": "bd", "test": "fe"}, "bd"),
    ],
    ids=["NUAA-SIRST", "NUAA-SIRST-trainval", "SIRST-v2", "IRSTD-1k"],
)
def test_layouts_as_they_are_published(tmp_path, folders, texts, train):
    publish(tmp_path, *folders, **texts)
    if folders == V2:
        for folder in ("annotations/bboxes", "annotations/masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "a.xml").write_text("<annotation><filename>a.png</filename></annotation>")
    assert find_layout(tmp_path).format == "sirst"
    data = open_folder(tmp_path)
    assert ("".join(data.train_ids), "".join(data.test_ids)) == (train, "fe")
    assert all(data.labelled(id).instances.areas().tolist() == [2] for id in "abcdef")


def test_published_folders_without_lists(tmp_path):
    publish(tmp_path, *IRSTD)
    data = open_folder(tmp_path)
    assert (data.format, data.train_ids, data.test_ids) == ("sirst", tuple("abcdef"), ())
    (tmp_path / "IRSTD1k_Label").rename(tmp_path / "boxes")
    assert find_layout(tmp_path).format == "plain"


def test_lists_of_two_folders_are_not_mixed(tmp_path):
    publish(tmp_path, "images", "masks", **{"idx_427/trainval": "ab", "img_idx/test_x": "cd"})
    refuses(tmp_path, "img_idx and in ", "idx_427: keep those of one folder")
    (tmp_path / "img_idx/test_x.txt").rename(tmp_path / "idx_427/test.txt")
    (tmp_path / "idx_427/test_full.txt").write_text("e\n")
    refuses(tmp_path, "idx_427 holds several test lists (test.txt, test_full.txt)")
    (tmp_path / "idx_427").rename(tmp_path / "splits")
    assert SirstDataset(tmp_path).test_ids == ("e",)
    (tmp_path / "test.txt").write_text("f\n")
    refuses(tmp_path, "splits and in", "keep those of one folder")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("50_50/test.txt", "a\nb\n"),
        ("protocols/v1.0/held.out.txt", "\n\nimages/a.png masks/a.png\nimages/b.png masks/b.png\n"),
        ("test_NUAA.txt", "\ufeffghost\na.png\r\nb\n"),
        ("img_idx/held_out.txt", "b"),
    ],
)
def test_lists_that_would_be_overlooked(tmp_path, path, text):
    publish(tmp_path, "images", "masks")
    assert SirstDataset(tmp_path).test_ids == ()
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(text.encode())
    place = (tmp_path / path).parent
    refuses(tmp_path, f"{place} holds the id list {Path(path).name}", "img_idx/, idx_427/, splits/", "train.txt")
    (tmp_path / "idx_427").mkdir()
    (tmp_path / "idx_427/test.txt").write_text("c\n")  # lists that are read say what the test part is
    assert SirstDataset(tmp_path).test_ids == ("c",)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("notes.txt", b"a recording of b\nfrom the north\n"),
        ("classes.txt", b"target\n"),
        ("README.txt", b""),
        ("labels/a.txt", b"a\n"),  # belongs to image a
        ("labels/other.txt", b"0 0.5 0.5 0.1 0.1\n"),
        ("idx_427/trainvaltest.txt", b"f\ne\nd\nc\nb\na\n"),  # splits nothing
        ("binary/data.txt", b"a\n\xff\xfe\0"),
        (".cache/test.txt", b"a\n"),
    ],
)
def test_texts_that_are_no_lists(tmp_path, path, text):
    publish(tmp_path, "images", "masks")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(text)
    assert SirstDataset(tmp_path).train_ids == tuple("abcdef")


@pytest.mark.parametrize("name", ["NUAA-SIRST", "NUDT-SIRST", "DSB2018"])
def test_published_sets_keep_their_format(real_data, name):
    assert find_layout(real_data / name).format == ("masks" if name == "DSB2018" else "sirst")


def test_lists_in_the_root_beside_images_belong_to_masks(tmp_path):
    publish(tmp_path, "images", "masks", train="ab", test="c")
    assert find_layout(tmp_path).format == "masks"
    for format in ("masks", "sirst"):
        data = open_folder(tmp_path, format)
        assert (data.train_ids, data.test_ids) == (("a", "b"), ("c",))


class TestContract(ReaderContract):
    format = "sirst"
    classes = ("target",)

    def make(self, root):
        save_pictures(root / "images")
        (root / "masks").mkdir()
        (root / "img_idx").mkdir()
        for id in "ab":
            Pillow.fromarray(objects(id)[0].any(axis=0)).save(root / f"masks/{id}.png")
        lists(root, "a\nc\n", "b\n")
        return root

    def truth(self, id):
        return Instances.from_masks(objects(id)[0])

    def damage(self, root):
        path = root / "masks/a.png"
        path.write_bytes(path.read_bytes()[:40])
