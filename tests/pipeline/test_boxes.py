"""Scores and thresholds of students that give boxes, on images whose boxes a detector without learning can read off."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewlabel.core.masks import component_boxes, components, encode
from fewlabel.core.types import Instances
from fewlabel.data.split import make_split
from fewlabel.labels.store import LabelStore, PseudoLabel
from fewlabel.pipeline.boxes import (
    THRESHOLD_FILE,
    Validation,
    boxed_pairs,
    detections,
    score_boxes,
    score_pseudo_boxes,
)
from fewlabel.pipeline.inputs import open_dataset
from fewlabel.recipe import DataSection
from fewlabel.students.detector.network import Detector

FRAME = 64
TARGETS = {"a": [(5, 7, 9, 10), (40, 30, 45, 36)], "b": [(12, 50, 14, 53)], "c": [], "d": [(3, 3, 8, 9)]}
"""xyxy of the targets of each image; d is the test image."""


class Reader(Detector):
    """Reports the boxes of what is bright, all with the same score, and one that is wrong with a lower one."""

    def __init__(self, shift: float = 0.0) -> None:
        torch.nn.Module.__init__(self)
        self.frame, self.shift = FRAME, shift
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits = torch.zeros(len(images), 5, 4), torch.full((len(images), 5), -50.0)
        for k, image in enumerate(images[:, 0].numpy()):
            found = component_boxes(*components(image > 3))
            boxes[k, : len(found)] = torch.from_numpy(found) + self.shift
            logits[k, : len(found)] = math.log(4)  # 0.8
            boxes[k, 4] = torch.tensor([55.0, 55.0, 60.0, 60.0])
            logits[k, 4] = -math.log(4)  # 0.2
        return boxes, logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images as a data set of the SIRST layout."""
    root = tmp_path / "SQUARES"
    for name in ("images", "masks", "img_idx"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, boxes in TARGETS.items():
        image, mask = rng.integers(18, 23, (FRAME, FRAME)).astype(np.uint8), np.zeros((FRAME, FRAME), np.uint8)
        for x0, y0, x1, y1 in boxes:
            image[y0:y1, x0:x1], mask[y0:y1, x0:x1] = 250, 255
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "img_idx" / "train.txt").write_text("a\nb\nc\n")
    (root / "img_idx" / "test.txt").write_text("d\n")
    return root


def test_right_boxes_score_full_marks_above_the_threshold_alone(folder: Path) -> None:
    pairs = list(boxed_pairs(open_dataset(DataSection(root=folder)), "abcd"))
    assert [true.tolist() for _, true in pairs] == [[list(box) for box in boxes] for boxes in TARGETS.values()]
    high, low = (score_boxes(detections(Reader(), pairs), threshold) for threshold in (0.5, 0.1))
    for scores in (high, low):
        assert (scores["AP50"], scores["AP"], scores["AR50"], scores["recall"]) == pytest.approx((100,) * 4)
        assert (scores["images"], scores["boxes"]) == (4, 4)
    assert (high["precision"], high["threshold"]) == (100, 0.5)
    assert (low["precision"], low["threshold"]) == (50, 0.1), "each image has a wrong box of score 0.2"


def test_the_threshold_is_chosen_on_the_validation_images(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(DataSection(root=folder))
    areas = {"a": 42.0, "b": 6.0, "c": 0.0}
    split = make_split("abc", areas, fraction=None, seed=0, validation_share=0.5, test_ids=("d",))
    validation = Validation(dataset, split)
    assert len(validation.pairs) == len(split.validation) > 0
    assert validation.figures(Reader()) == pytest.approx({"AP50": 100, "AP": 100, "AR50": 100})
    validation.write_threshold(Reader(), tmp_path)
    written = json.loads((tmp_path / THRESHOLD_FILE).read_text())
    targets = sum(len(TARGETS[id]) for id in split.validation)
    assert written == {"value": pytest.approx(0.5), "F1": 100, "images": len(split.validation), "targets": targets}
    validation.write_threshold(Reader(shift=6.0), tmp_path)
    assert json.loads((tmp_path / THRESHOLD_FILE).read_text())["F1"] is None
    empty = Validation(dataset, make_split("c", {"c": 0.0}, fraction=None, seed=0, validation_share=0, test_ids=()))
    assert empty.pairs == []


def test_pseudo_labels_are_scored_by_their_boxes(folder: Path, tmp_path: Path) -> None:
    dataset, store = open_dataset(DataSection(root=folder)), LabelStore(tmp_path / "labels", made_by="x")
    for id, shown in {"a": TARGETS["a"][:1], "b": [(30, 30, 33, 33), *TARGETS["b"]]}.items():
        masks = np.zeros((len(shown), FRAME, FRAME), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, shown, strict=True):
            mask[y0:y1, x0:x1] = True
        accepted = Instances.from_masks(masks, scores=[0.5, 0.9][-len(shown) :], source="teacher", round=1)
        reasons, band = ("confident",) * len(shown), encode(np.zeros((FRAME, FRAME), bool))
        store.add(PseudoLabel(id, (FRAME, FRAME), accepted, (band,), Instances((FRAME, FRAME)), reasons))
    store.flush()
    scores = score_pseudo_boxes(dataset, store, "ab")
    assert scores["precision"] == pytest.approx(200 / 3) and scores["recall"] == pytest.approx(200 / 3)
    assert scores["AR50"] == pytest.approx(200 / 3) and scores["boxes"] == 3
