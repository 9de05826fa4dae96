"""The score from which objects count, on objects made by hand."""

import numpy as np
import pytest

from fewlabel.core.types import Instances
from fewlabel.pipeline.instance_stages import best_threshold


def squares(*corners: int, scores: list[float] | None = None) -> Instances:
    masks = np.zeros((len(corners), 40, 10), bool)
    for mask, top in zip(masks, corners, strict=True):
        mask[top : top + 8, :8] = True
    return Instances.from_masks(masks, scores=np.array(scores or [1.0] * len(corners), np.float32))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([squares(0, 20, scores=[0.62, 0.4])], 0.6),  # the second is wrong: the highest that keeps the first
        ([squares(0, 10, scores=[0.62, 0.33])], 0.3),  # both are right
        ([squares(0, 30, scores=[0.9, 0.5]), squares(0, 10, scores=[0.8, 0.72])], 0.7),  # over both images
    ],
)
def test_the_best_f1_over_images(found: list[Instances], expected: float) -> None:
    assert best_threshold([(objects, squares(0, 10)) for objects in found]) == expected


def test_where_nothing_is_right_no_threshold_is_chosen() -> None:
    assert best_threshold([]) == 0.5
    assert best_threshold([(squares(), squares(0))]) == 0.5
    assert best_threshold([(squares(20, scores=[0.97]), squares(0))]) == 0.5
    assert best_threshold([(squares(20, scores=[0.97]), squares())]) == 0.5
