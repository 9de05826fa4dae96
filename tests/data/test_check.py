"""The check: what it counts on good data, and each kind of bad file, with and without going on."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.data.check import AREA_EDGES, check
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
    assert report.target_areas == {"1": 1, "2-4": 0, "5-9": 1, "10-24": 0, "25-80": 0, "81+": 0}
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


def test_published_set(real_data):
    report = check(SirstDataset(real_data / "NUAA-SIRST"))
    assert (report.train, report.test, report.masks, report.targets) == (213, 214, 427, 533)
    assert (report.heights[0], report.heights[2], report.widths[0], report.widths[2]) == (96, 388, 135, 456)
    assert sum(report.target_areas.values()) == 533 and len(report.target_areas) == len(AREA_EDGES)
    assert report.without_targets == () and len(report.areas) == 427
