"""From the run folder of instance segmentation to the report: windows of large images and the objects in them."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.masks import boxes
from fewlabel.core.types import Instances
from fewlabel.pipeline.instance_collect import SIDE, in_window, middle, pseudo_panels
from fewlabel.pipeline.instance_stages import frozen_sam
from fewlabel.recipe import InstanceRecipe
from fewlabel.report.objects import ObjectPanel
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_window_is_the_middle_and_never_larger_than_a_picture(height: int, width: int) -> None:
    top, left, rows, columns = middle((height, width))
    assert (rows, columns) == (min(height, SIDE), min(width, SIDE))
    assert top >= 0 and abs(top - (height - rows - top)) <= 1
    assert left >= 0 and abs(left - (width - columns - left)) <= 1


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 17))
def test_objects_are_cut_as_their_masks_are(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((6, 14, 17)) > rng.choice([0.3, 0.9, 0.99])
    masks[0] = False
    top, left = int(rng.integers(14 - rows + 1)), int(rng.integers(17 - columns + 1))
    objects = Instances.from_masks(masks, classes=np.arange(6), scores=np.linspace(0.9, 0.4, 6))
    found = in_window(objects, (top, left, rows, columns))
    cut = masks[:, top : top + rows, left : left + columns]
    seen = cut.any((1, 2))
    np.testing.assert_array_equal(found.masks(), cut[seen])
    np.testing.assert_array_equal(found.classes, np.flatnonzero(seen))
    np.testing.assert_array_equal(found.scores, objects.scores[seen])
    np.testing.assert_array_equal(found.boxes, boxes(cut[seen]))
    assert found.size == (rows, columns)


def panels(**refinement: Any) -> list[ObjectPanel]:
    """What a fresh network says of a picture whose sides are no multiples of anything, and its refinement."""
    torch.manual_seed(0)
    network = InstanceSegmenter(NetworkConfig(name="nano", queries=16), 2, pretrained=False).eval()
    loose = {"class_threshold": 0.0, "min_mass": 0.0}
    recipe = InstanceRecipe.model_validate(
        {
            "name": "x",
            "data": {"root": "."},
            "split": {},
            "network": {"name": "nano"},
            "teach": {"steps": 1},
            "student": {"steps": 1, "filter": loose, "refine": refinement or None},
        }
    )
    pixels = np.random.default_rng(0).random((3, 50, 71), dtype=np.float32)
    truth = Instances.from_masks(np.ones((1, 50, 71), bool))
    return pseudo_panels(recipe, network, frozen_sam(recipe) if refinement else None, pixels, truth, "x", 0)


def test_fates_are_those_of_the_refinement() -> None:
    (before,) = panels()
    assert before.objects.size == (50, 71) and len(before.objects) > 2 and not before.fates
    assert before.note.startswith(
        f"{len(before.objects)} by the trained student as the teacher; mean IoU with the truth"
    )
    shut, opened = {"min_iou": 1.0}, {"min_iou": 0.0, "min_quality": 0.0, "min_growth": 0.0, "max_growth": 1e9}
    first, kept = panels(gate=shut)
    assert first.objects.rles == before.objects.rles
    assert set(kept.fates) == {"kept"} and kept.objects.rles == before.objects.rles
    assert kept.note.startswith(f"0 accepted, {len(before.objects)} kept; mean IoU")
    _, taken = panels(gate=opened)
    assert "accepted" in taken.fates and "dropped" not in taken.fates
    for fate, one, other in zip(taken.fates, taken.objects.rles, before.objects.rles, strict=True):
        assert fate == "accepted" or one == other
    assert taken.objects.rles != before.objects.rles
    _, thinned = panels(gate=shut, duplicate=0.0)
    gone = thinned.fates.count("dropped")
    assert 0 < gone < len(before.objects) == len(thinned.objects)
    assert f"{len(before.objects) - gone} kept, {gone} dropped" in thinned.note
    assert sorted(rle["counts"] for rle in thinned.objects.rles) == sorted(rle["counts"] for rle in before.objects.rles)
