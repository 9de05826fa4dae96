"""Damaged COCO, YOLO, LabelMe and plain data sets: hundreds of them, each read or refused in one sentence."""

import random
import shutil

import numpy as np
import pytest
from tests.data.readers.contract import save_pictures
from tests.data.readers.damage import Late, damage, read_all
from tests.data.readers.test_coco import TestContract as Coco
from tests.data.readers.test_coco import coco, save_grey
from tests.data.readers.test_labelme import TestContract as Labelme
from tests.data.readers.test_labelme import labelme, png, shape
from tests.data.readers.test_yolo import BOX, add, names
from tests.data.readers.test_yolo import TestContract as Yolo

ROUNDS = 45


def coco_codes(root):
    """Run-length codes, crowds and boxes."""
    save_grey(root / "images/a.png")
    counted = {"size": [10, 12], "counts": [5, 10, 105]}
    shapes = [
        {"image_id": 1, "segmentation": counted, "iscrowd": 1},
        {"image_id": 1, "segmentation": {"size": [10, 12], "counts": "57Z3"}},
        {"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 7},
    ]
    coco(root / "instances.json", ["a.png"], shapes)


def yolo_lists(root):
    """Lists of images, and names in a dict."""
    names(root, "path: .\nnames: {0: cat, 1: dog}\nnc: 2\ntrain: train.txt\nval: [images/val]\n")
    add(root, "images/a.png", f"{BOX} 0.5\n{BOX} 0.25")
    add(root, "images/val/b.png", BOX)
    (root / "train.txt").write_text("./images/a.png\n")


def labelme_shapes(root):
    """Circles, masks and groups."""
    save_grey(root / "a.png", 12, 18)
    blob = png(np.eye(4, 5))
    shapes = [
        shape("circle", (10, 8), (13, 8), group_id=1),
        shape("mask", (2, 6), (6, 9), mask=blob),
        shape("rectangle", (1, 1), (4, 4), group_id=1),
    ]
    labelme(root / "a.json", *shapes, imageData=None)
    (root / "labels.txt").write_text("cat\ndog\n")


MADE = {
    "coco": Coco().make,
    "coco-codes": coco_codes,
    "yolo": Yolo().make,
    "yolo-lists": yolo_lists,
    "labelme": Labelme().make,
    "labelme-shapes": labelme_shapes,
    "plain": save_pictures,
}


@pytest.mark.parametrize("name", MADE)
def test_damage_is_read_or_refused_in_one_sentence(tmp_path, name):
    whole, format = tmp_path / "whole", name.partition("-")[0]
    MADE[name](whole)
    refused = 0
    for seed in range(ROUNDS):
        root = tmp_path / str(seed)
        shutil.copytree(whole, root)
        done = damage(root, random.Random(f"{name} {seed}"))
        try:
            refused += bool(read_all(root, format))
        except (Exception, Late) as error:
            raise AssertionError(f"{name}, seed {seed}: {done}: {error!r}") from error
    assert read_all(whole, format) == [] or name == "coco-codes"
    assert refused > ROUNDS // 5, "the damage reaches what is read"
