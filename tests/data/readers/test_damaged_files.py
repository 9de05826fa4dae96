"""Damaged files of the formats with maps and XML: each is read, or refused in one sentence; nothing else happens."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.data.readers import test_cityscapes, test_cvat, test_masks, test_voc
from tests.data.readers.damage import damage, read_all

from fewlabel.data.readers import find_layout

ROUNDS = 40


def cityscapes_polygons(root: Path) -> Path:
    test_cityscapes.frame(root)
    square = test_cityscapes.square
    test_cityscapes.polygons(root, square("car", 2, 2, 12, 10), square("cargroup", 3, 3, 9, 9))
    return root


def cvat_shapes(root: Path) -> Path:
    test_cvat.save_pictures(root / "images")
    items = [
        test_cvat.box("cat", 1, 2, 9, 8, rotation=30),
        test_cvat.polygon("dog", "1,1;20.5,3;9,17", group_id=4),
        test_cvat.mask("cat", np.eye(5, 7, dtype=bool), 3, 4),
        test_cvat.shape("ellipse", cx=9, cy=9, rx=3, ry=5, group_id=4),
    ]
    test_cvat.annotate(root, test_cvat.image("a.png", *items, subset="test"))
    return root


SETS = {
    "instances": test_masks.TestInstanceMaps().make,
    "scenes": test_masks.TestFoldersOfOneImage().make,
    "classes": test_masks.TestClassMaps().make,
    "voc-boxes": test_voc.TestBoxes().make,
    "voc-maps": test_voc.TestMaps().make,
    "cityscapes": test_cityscapes.TestContract().make,
    "polygons": cityscapes_polygons,
    "cvat": cvat_shapes,
}


@pytest.mark.parametrize("name", SETS)
def test_damage_is_refused_in_one_sentence(tmp_path, name):
    root = SETS[name](tmp_path / "whole")
    format = find_layout(root).format
    assert read_all(root, format) == []
    rng, refused = random.Random(7), 0
    for number in range(ROUNDS):
        copy = tmp_path / str(number)
        shutil.copytree(root, copy)
        what = damage(copy, rng)
        try:
            refused += bool(read_all(copy, format))
        except (Exception, AssertionError) as error:
            raise AssertionError(f"round {number}: {what}") from error
        shutil.rmtree(copy)
    assert refused > ROUNDS // 5
