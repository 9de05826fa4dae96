"""The check: what it counts on good data, and each kind of bad file, with and without going on."""

import csv
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.core.files import read_json, write_json
from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.check import check
from fewlabel.data.duplicates import Duplicates
from fewlabel.data.readers.masks import MasksDataset
from fewlabel.data.readers.sirst import SirstDataset


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three good images of different depth and size: two targets, none, no mask at all."""
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 2] = mask[10:13, 10:13] = 255
    save(root / "images/a.png", rng.integers(0, 255, (20, 30), dtype=np.uint8))
    save(root / "masks/a.png", mask)
    save(root / "images/b.png", np.arange(120, dtype=np.uint16).reshape(10, 12))
    save(root / "masks/b.png", np.zeros((10, 12), np.uint8))
    save(root / "images/c.png", rng.integers(0, 255, (20, 30), dtype=np.uint8))
    return root


def test_counts_of_good_data(root):
    (root / "img_idx").mkdir()
    (root / "img_idx/test.txt").write_text("c")
    report = check(SirstDataset(root), rejected_csv=root / "rejected.csv")
    assert (report.train, report.test, report.masks) == (2, 1, 2)
    assert report.heights == (10, 20, 20) and report.widths == (12, 30, 30)
    assert report.stored == {"uint8, 8 bit, 1 channel": 2, "uint16, 16 bit, 1 channel": 1}
    assert report.targets == 2
    assert report.target_areas == {
        "1": 1,
        "2-4": 0,
        "5-9": 1,
        "10-24": 0,
        "25-80": 0,
        "81-1023": 0,
        "1024-9215": 0,
        "9216+": 0,
    }
    assert report.areas == {"a": 5.0, "b": 0.0}  # the median of 1 and 9
    assert report.without_targets == ("b",)
    assert report.rejected == () and (root / "rejected.csv").read_text() == "id,file,reason\n"
    assert "2 training and 1 test images" in report.lines()[0]
    assert "images without targets: 1 (b)" in report.lines()
    assert report.to_json()["areas"] == report.areas


def test_data_without_any_mask_are_told_what_to_do(root):
    assert not any(line.startswith("no labels") for line in check(SirstDataset(root)).lines())
    for mask in (root / "masks").iterdir():
        mask.unlink()
    assert check(SirstDataset(root)).lines()[-1].startswith("no labels: no image has a mask")


def test_targets_of_more_than_half_an_image_are_legal_and_named(root):
    inverted = np.full((20, 30), 255, np.uint8)
    inverted[2, 2] = 0
    save(root / "masks/c.png", inverted)
    half = np.zeros((10, 12), np.uint8)
    half[:5] = 255
    save(root / "masks/b.png", half)
    report = check(SirstDataset(root))
    assert report.rejected == () and report.large_targets == ("c",)
    line = next(line for line in report.lines() if "more than half" in line)
    assert "1 (c)" in line and "invert them" in line
    save(root / "masks/c.png", half.repeat(2, 0).repeat(3, 1)[:, :30])
    assert not [line for line in check(SirstDataset(root)).lines() if "more than half" in line]


def empty_image(root: Path) -> str:
    (root / "images/bad.png").touch()
    save(root / "masks/bad.png", np.ones((20, 30), np.uint8))
    return "empty"


def black_image(root: Path) -> str:
    save(root / "images/bad.png", np.zeros((20, 30), np.uint8))
    save(root / "masks/bad.png", np.zeros((20, 30), np.uint8))
    return "one value only"


def truncated_image(root: Path) -> str:
    save(root / "images/bad.png", np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8))
    data = (root / "images/bad.png").read_bytes()
    (root / "images/bad.png").write_bytes(data[: len(data) // 2])
    return "truncated"


def truncated_mask(root: Path) -> str:
    save(root / "images/bad.png", np.ones((64, 64), np.uint8))
    save(root / "masks/bad.png", np.random.default_rng(1).integers(0, 2, (64, 64), dtype=np.uint8))
    data = (root / "masks/bad.png").read_bytes()
    (root / "masks/bad.png").write_bytes(data[: len(data) // 2])
    return "truncated"


def text_as_image(root: Path) -> str:
    (root / "images/bad.png").write_text("hello")
    return "not an image"


def not_a_number(root: Path) -> str:
    tifffile.imwrite(root / "images/bad.tif", np.full((20, 30), np.nan, np.float32))
    return "NaN"


def mask_of_another_size(root: Path) -> str:
    save(root / "images/bad.png", np.ones((20, 30), np.uint8))
    save(root / "masks/bad.png", np.ones((30, 20), np.uint8))
    return "30 x 20"


def one_pixel(root: Path) -> str:
    save(root / "images/bad.png", np.ones((1, 1), np.uint8))
    save(root / "masks/bad.png", np.ones((1, 1), np.uint8))
    return "expected at least 8 x 8"


def narrow(root: Path) -> str:
    save(root / "images/bad.png", np.ones((100, 7), np.uint8))
    return "100 x 7"


def two_files(root: Path) -> str:
    save(root / "images/bad.png", np.ones((20, 30), np.uint8))
    save(root / "images/bad.bmp", np.ones((20, 30), np.uint8))
    return "keep one"


def listed_without_file(root: Path) -> str:
    (root / "img_idx").mkdir()
    (root / "img_idx/train.txt").write_text("a\nbad\nb\nc\n")
    return "train.txt, line 2"


def listed_twice(root: Path) -> str:
    (root / "img_idx").mkdir()
    save(root / "images/bad.png", np.ones((20, 30), np.uint8))
    (root / "img_idx/train.txt").write_text("a\nbad\nb\nc\nbad\n")
    return "line 5"


BAD = [
    empty_image,
    black_image,
    truncated_image,
    truncated_mask,
    text_as_image,
    not_a_number,
    mask_of_another_size,
    one_pixel,
    narrow,
    two_files,
    listed_without_file,
    listed_twice,
]


@pytest.mark.parametrize("spoil", BAD)
def test_each_bad_input_stops_the_check_or_is_set_aside(root, spoil):
    words = spoil(root)
    with pytest.raises(DataError) as caught:
        check(SirstDataset(root, strict=False))
    sentence = str(caught.value)
    assert words in sentence and "bad" in sentence and sentence.endswith(".") and "\n" not in sentence

    quarantine = root / "out/rejected.csv"
    report = check(SirstDataset(root, strict=False), keep_going=True, rejected_csv=quarantine)
    assert {problem.id for problem in report.rejected} == {"bad"} and report.train == 3
    with quarantine.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "bad" and words in row["reason"] and Path(row["file"]).parent.parent == root
    assert ("masks" in row["file"]) == (spoil in (truncated_mask, mask_of_another_size))

    clean = SirstDataset(root, exclude=frozenset({"bad"}))
    assert clean.train_ids == ("a", "b", "c") and check(clean).rejected == ()


def test_masks_are_demanded_only_where_asked_for(root):
    assert check(SirstDataset(root), require_masks=("a", "b")).rejected == ()
    with pytest.raises(DataError, match="c.png has no mask, but test images .*, or .* training images: add .* 'c'"):
        check(SirstDataset(root), require_masks=("a", "c"))


def test_at_most_five_ids_are_named(root):
    rng = np.random.default_rng(2)
    for number in range(7):
        save(root / f"images/sky{number}.png", rng.integers(0, 9, (20, 30), dtype=np.uint8))
        save(root / f"masks/sky{number}.png", np.zeros((20, 30), np.uint8))
    assert "images without targets: 8 (b, sky0, sky1, sky2, sky3 and 3 more)" in check(SirstDataset(root)).lines()


def test_several_problems_are_counted_and_all_listed(root):
    empty_image(root)
    save(root / "images/tiny.png", np.ones((2, 2), np.uint8))
    with pytest.raises(DataError, match="set has 2 problems, the first: .*bad.png"):
        check(SirstDataset(root), rejected_csv=root / "rejected.csv")
    assert len((root / "rejected.csv").read_text().splitlines()) == 3
    report = check(SirstDataset(root), keep_going=True)
    assert [problem.id for problem in report.rejected] == ["bad", "tiny"]


def test_nothing_usable_is_an_error_even_when_going_on(tmp_path):
    save(tmp_path / "images/a.png", np.ones((2, 2), np.uint8))
    with pytest.raises(DataError, match="no usable image .* 2 x 2"):
        check(SirstDataset(tmp_path), keep_going=True)
    with pytest.raises(DataError, match="no usable image"):
        check(SirstDataset(tmp_path, frozenset("a")))


def sky(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A cloud field, uint8."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 5)
    return (120 + 40 * field / field.std()).clip(0, 255).astype(np.uint8)


def spot(row: int, column: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[row : row + 3, column : column + 3] = 255
    return mask


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Five scenes. Test: t is a with another target and noise, u the pixels of b. Training: c and d share a mask."""
    root = tmp_path / "twins"
    images = {id: sky(seed) for seed, id in enumerate("abcde")}
    images["t"] = (images["a"] + np.random.default_rng(9).integers(0, 3, (40, 60))).clip(0, 255).astype(np.uint8)
    images["t"][5:8, 7:10] = 255
    images["u"] = images["b"]
    masks = {"a": spot(9, 9), "b": spot(9, 20), "c": spot(20, 9), "d": spot(20, 9), "t": spot(5, 7), "u": spot(9, 20)}
    for id, image in images.items():
        save(root / f"images/{id}.png", image)
    for id, mask in masks.items():
        save(root / f"masks/{id}.png", mask)
    (root / "img_idx").mkdir()
    (root / "img_idx/test.txt").write_text("t\nu\n")
    return root


def test_copies_across_the_split_are_found(twins):
    report = check(SirstDataset(twins))
    assert [(twin.first, twin.second, twin.equal) for twin in report.duplicates.across] == [
        ("u", "b", True),
        ("t", "a", False),
    ]
    assert report.duplicates.clusters == (("a", "t"), ("b", "u"))
    line = next(line for line in report.lines() if "test images that are" in line)
    assert "2 (u = b, t ~ a), 1 with equal pixels; that is 100.0 % of the test images" in line
    assert not report.duplicates.train and not report.duplicates.test
    assert not check(SirstDataset(twins, exclude=frozenset("tu"))).duplicates


def test_equal_masks_of_different_images_are_found(twins):
    report = check(SirstDataset(twins))
    assert report.same_labels == (("d", "c"),)  # not u and b, whose pixels are equal too
    assert any("the very same mask: 1 (d = c)" in line for line in report.lines())
    save(twins / "masks/c.png", np.zeros((40, 60), np.uint8))
    save(twins / "masks/d.png", np.zeros((40, 60), np.uint8))
    assert check(SirstDataset(twins)).same_labels == ()  # no target is no copy


def test_rejected_images_are_in_no_comparison(twins):
    (twins / "images/a.png").write_text("no image")
    report = check(SirstDataset(twins), keep_going=True)
    assert [twin.first for twin in report.duplicates.across] == ["u"] and report.train == 4


def label_maps(root: Path, classes: dict[str, list[tuple[int, int]]]) -> MasksDataset:
    """A data set of label maps and class maps: for each image its objects as (number, class)."""
    for seed, (id, objects) in enumerate(classes.items()):
        numbers, indexes = np.zeros((40, 60), np.uint16), np.zeros((40, 60), np.uint8)
        for place, (number, index) in enumerate(objects):
            numbers[5 : 9 + seed, 6 * place : 6 * place + 4] = number
            indexes[5 : 9 + seed, 6 * place : 6 * place + 4] = index
        save(root / f"images/{id}.png", sky(seed))
        save(root / f"instances/{id}.png", numbers)
        save(root / f"labels/{id}.png", indexes)
    (root / "classes.txt").write_text("sea\nship\ngull\n")
    return MasksDataset(root)


def test_classes_are_counted_by_name(tmp_path):
    data = label_maps(tmp_path / "port", {"a": [(1, 1), (2, 2)], "b": [(1, 2), (4, 2)], "c": []})
    report = check(data)
    assert report.classes == {"sea": 1, "ship": 3, "gull": 0} and report.targets == 4
    assert report.class_images == {"sea": 1, "ship": 2, "gull": 0}
    assert report.classes_of == {"a": (0, 1), "b": (1,)} and report.without_targets == ("c",)
    assert "classes: 3 ship in 2 images, 1 sea in 1 images, 0 gull in 0 images" in report.lines()
    assert "classes without any target: 1 (gull)" in report.lines()
    assert check(label_maps(tmp_path / "one", {"a": [(1, 1)]})).classes_of == {}


class Generated:
    """Images that are made when they are asked for: a data set of any size without a file."""

    name, classes, problems, test_ids = "generated", ("target", "other"), (), ()

    def __init__(self, count: int, side: int = 64) -> None:
        self.train_ids = tuple(str(number) for number in range(count))
        self.side = side

    def group(self, id: str) -> str:
        return str(int(id) % 2)

    def has_mask(self, id: str) -> bool:
        return True

    def image(self, id: str) -> Image:
        rng = np.random.default_rng(int(id))
        return Image(id, rng.normal(size=(1, self.side, self.side)).astype(np.float32))

    def instances(self, id: str) -> Instances:
        masks = np.zeros((2, self.side, self.side), bool)
        row = int(id) % (self.side - 4)
        masks[0, row : row + 2, 3:5] = masks[1, row, 9:13] = True
        return Instances.from_masks(masks)

    def labelled(self, id: str) -> Labelled:
        return Labelled(self.image(id), self.instances(id))

    def unlabelled(self, id: str) -> Unlabelled:
        return Unlabelled(self.image(id))


@pytest.mark.parametrize(
    ("classes", "words"),
    [([0, 2], "hold class 2, but the data set has 2 classes, 0 to 1"), ([-1, 7], "hold class -1, 7, but")],
)
def test_classes_beyond_the_known_ones_are_refused(classes, words):
    class Strange(Generated):
        def instances(self, id: str) -> Instances:
            return replace(super().instances(id), classes=np.array(classes if id == "1" else [0, 1]))

    with pytest.raises(DataError, match=words):
        check(Strange(3))
    report = check(Strange(3), keep_going=True)
    assert [problem.id for problem in report.rejected] == ["1"] and report.classes == {"target": 2, "other": 2}


def test_equal_and_hollow_targets_are_named():
    class Careless(Generated):
        def instances(self, id: str) -> Instances:
            masks = super().instances(id).masks()
            if id == "1":
                masks[1] = masks[0]
            if id == "2":
                masks[:] = False
            return Instances.from_masks(masks)

    report = check(Careless(4))
    assert report.repeated_targets == ("1",) and report.hollow_targets == ("2",)
    lines = "\n".join(report.lines())
    assert "two targets have the same mask in 1 (1)" in lines and "a target has no pixel in 1 (2)" in lines
    assert sum(report.target_areas.values()) == 6 and report.targets == 8


def test_groups_on_both_sides_of_the_split_are_named():
    data = Generated(6)
    data.train_ids, data.test_ids = ("0", "2", "3"), ("1", "5")
    report = check(data)
    assert report.torn_groups == ("1",)
    assert "groups with training and test images: 1 (1): put each on one side" in report.lines()
    data.test_ids = ()
    assert check(data).torn_groups == ()


def test_no_pixels_are_kept():
    count, side = 3000, 64
    check(Generated(8))  # what is loaded once is not of interest
    tracemalloc.start()
    try:
        report = check(Generated(count, side))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.train == count and report.targets == 2 * count
    assert peak < 12 * 2**20, f"{peak / 2**20:.1f} MiB"  # the pixels are 47 MiB
    assert peak / count < side * side  # a quarter of the pixels of each image at most


def test_json_holds_all_of_it(twins, tmp_path):
    report = check(SirstDataset(twins))
    write_json(tmp_path / "check.json", report.to_json())
    value = read_json(tmp_path / "check.json")
    assert Duplicates.from_json(value["duplicates"]) == report.duplicates
    assert value["same_labels"] == [["d", "c"]] and value["sizes"] == {"40 x 60": 7}
    assert value.keys() == vars(report).keys()
