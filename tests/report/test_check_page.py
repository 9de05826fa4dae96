"""The page of a check: self-contained, escaped, pairs drawn with their targets."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage

from fewlabel.data.check import check
from fewlabel.data.check_report import CheckReport
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.report.check_page import LISTED, LONGEST, SHOWN, build, thumbnails, write


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(values).save(path)


@pytest.fixture
def data(tmp_path: Path) -> SirstDataset:
    """Three training images; the test image is the first of them with another target; a file that is no image."""
    root = tmp_path / "sky <b>"
    for number, id in enumerate(("a", "b", "c")):
        sky = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=(70, 300)), 6)
        image = (120 + 40 * sky / sky.std()).clip(0, 255).astype(np.uint8)
        save(root / f"images/{id}.png", image)
        mask = np.zeros(image.shape, np.uint8)
        mask[20 + number : 24 + number, 30:34] = 255
        save(root / f"masks/{id}.png", mask)
        if id == "a":
            image[50:53, 200:203] = 255
            save(root / "images/t.png", image)
            save(root / "masks/t.png", mask[::-1])
    (root / "images/broken.png").write_text("no image")
    (root / "img_idx").mkdir()
    (root / "img_idx/test.txt").write_text("t\r\n")
    return SirstDataset(root)


@pytest.fixture
def report(data: SirstDataset) -> CheckReport:
    return check(data, keep_going=True)


def test_the_page_loads_nothing_and_shows_each_pair(
    read_page: Callable[[str], Any], data: SirstDataset, report: CheckReport, tmp_path: Path
) -> None:
    write(report, data, tmp_path / "out/check.html")
    html = (tmp_path / "out/check.html").read_text(encoding="utf-8")
    page = read_page(html)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"https?://|@import|url\(", html) and "default-src 'none'" in html
    addresses = [attributes["href"] or "" for _, attributes in page.tags if "href" in attributes]
    assert len(addresses) == 2 and all(address.startswith("data:image/png;base64,") for address in addresses)
    text = " ".join(page.text.split())
    assert "sky <b>: data check" in text and "<b>:" not in html
    assert "1 of 5 images cannot be used." in text and "broken.png is not an image" in text
    assert "Test images like a training image 1" in text and "t and a: " in text and "(100.0 %)" in text
    assert text.index("What to look at") < text.index("Rejected") < text.index("What is there")


def test_pictures_are_small_and_outline_the_targets(
    data: SirstDataset, decode_png: Callable[[str], np.ndarray]
) -> None:
    found = thumbnails(data, ["t", "broken", "t", "a"])
    assert list(found) == ["t", "a"]
    small = found["t"]
    assert (small.height, small.width) == (70, 300)
    picture = decode_png(small.address)
    assert max(picture.shape[:2]) <= LONGEST and picture.shape[:2] == (24, 100)
    assert (small.drawn_height, small.drawn_width) == (72, 300)
    assert picture[50 // 3, 200 // 3].min() > 240  # the target is not averaged away
    assert small.truth.startswith("M30 46h4")  # rows 46 to 49: those of image a from below
    with_mask = found["a"].truth
    (data.root / "masks/a.png").unlink()
    assert with_mask and not thumbnails(SirstDataset(data.root), ["a"])["a"].truth


def test_a_pair_that_can_no_longer_be_read_is_named(read_page: Callable[[str], Any], report: CheckReport) -> None:
    page = read_page(build(report, {}))
    assert "t and a: " in " ".join(page.text.split()) and not [a for _, a in page.tags if "href" in a]


def test_long_lists_are_cut_and_counted(read_page: Callable[[str], Any], report: CheckReport) -> None:
    twin = report.duplicates.across[0]
    many = replace(
        report,
        rejected=report.rejected * (LISTED + 7),
        without_targets=tuple(f"empty{i}" for i in range(LISTED + 3)),
        duplicates=replace(report.duplicates, across=tuple(replace(twin, first=f"t{i}") for i in range(SHOWN + 5))),
        classes={f"class{i}": i for i in range(LISTED + 9)},
        class_images={f"class{i}": i for i in range(LISTED + 9)},
    )
    page = read_page(build(many, {}))
    text = " ".join(page.text.split())
    assert text.count("broken.png is not an image") == LISTED and f"the first {LISTED}, all are in rejected.csv" in text
    assert f"t{SHOWN - 1} and a" in text and f"t{SHOWN} and a" not in text
    assert f"The {SHOWN} most alike are shown" in text
    assert "empty99 and 3 more" in text and "class108 (in 108 images)" in text and "class8 (" not in text


def test_bars_are_shares_of_the_largest(read_page: Callable[[str], Any], report: CheckReport) -> None:
    page = read_page(build(replace(report, target_areas={"1": 5, "2-4": 20, "5+": 0}, rejected=()), {}))
    widths = [a["style"] for tag, a in page.tags if tag == "span" and a.get("class") == "bar"]
    assert widths[:2] == ["width:25.0%", "width:100.0%"] and len(widths) == 2 + len(report.sizes) + len(report.stored)
    assert "All 4 images can be used; 1 thing to look at." in page.text
