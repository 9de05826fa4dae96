"""Prompts drawn from masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewlabel.core.errors import DataError
from fewlabel.sam.prompts import central_point, correction_clicks, noisy_box, random_point, tight_box

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
masks = shapes.flatmap(lambda shape: arrays(bool, shape))
filled = masks.filter(lambda mask: mask.any())
seeds = st.integers(0, 2**32 - 1)


def at(mask, point):
    return mask[int(np.floor(point[1])), int(np.floor(point[0]))]


@given(filled, seeds)
def test_random_point_is_a_pixel_centre_of_the_mask(mask, seed):
    point = random_point(mask, np.random.default_rng(seed))
    assert point.dtype == np.float32
    assert at(mask, point)
    assert np.all(point % 1 == 0.5)
    assert np.array_equal(point, random_point(mask, np.random.default_rng(seed)))


def test_random_point_reaches_every_pixel():
    mask = np.eye(4, dtype=bool)
    rng = np.random.default_rng(0)
    assert {tuple(random_point(mask, rng)) for _ in range(100)} == {(i + 0.5, i + 0.5) for i in range(4)}


@given(filled)
def test_central_point_is_the_nearest_pixel_to_the_centroid(mask):
    point = central_point(mask)
    rows, columns = np.nonzero(mask)
    distances = (rows + 0.5 - (rows.mean() + 0.5)) ** 2 + (columns - columns.mean()) ** 2
    assert at(mask, point)
    got = (point[1] - 0.5 - rows.mean()) ** 2 + (point[0] - 0.5 - columns.mean()) ** 2
    assert got == pytest.approx(distances.min(), abs=1e-4)


@given(filled, seeds)
def test_boxes_hold_the_mask_and_stay_in_the_image(mask, seed):
    x0, y0, x1, y1 = tight_box(mask).astype(int)
    assert mask.sum() == mask[y0:y1, x0:x1].sum()
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
    loose = noisy_box(mask, np.random.default_rng(seed))
    assert loose[0] >= 0 and loose[1] >= 0 and loose[2] <= mask.shape[1] and loose[3] <= mask.shape[0]
    assert loose[2] - loose[0] >= 1 - 1e-5 and loose[3] - loose[1] >= 1 - 1e-5


def test_noise_of_a_box_is_a_tenth_of_its_side_and_limited():
    mask = np.zeros((300, 900), bool)
    mask[[100, 199], [200, 799]] = True
    rng = np.random.default_rng(0)
    moved = np.array([noisy_box(mask, rng) for _ in range(400)]) - tight_box(mask)
    assert np.abs(moved).max() <= 20.0001
    assert moved[:, 1].std() == pytest.approx(10, rel=0.15)  # 10 pixels of 100, almost never cut at 20
    assert np.abs(moved[:, 0]).mean() > np.abs(moved[:, 1]).mean()


@settings(max_examples=60)
@given(
    shapes.flatmap(lambda shape: st.tuples(arrays(bool, (2, 3, *shape)), arrays(bool, (2, 3, *shape)))),
    arrays(np.float32, (2, 3), elements=st.integers(0, 1023).map(lambda part: part / 1024)),
)
def test_correction_clicks_lie_in_the_error_at_their_share_of_it(pair, shares):
    """Against a plain loop over the wrong pixels in raster order."""
    predictions, targets = pair
    targets[..., 0, 0] |= ~targets.any((-2, -1))
    points, labels = correction_clicks(*(torch.from_numpy(a) for a in (predictions, targets, shares)))
    assert points.dtype == torch.float32 and labels.dtype == torch.int64
    for index in np.ndindex(2, 3):
        prediction, target = predictions[index], targets[index]
        wrong = prediction != target
        candidates = np.argwhere(wrong if wrong.any() else target)
        row, column = candidates[int(float(shares[index]) * len(candidates))]
        assert points[index].tolist() == [column + 0.5, row + 0.5]
        assert labels[index] == target[row, column]


@pytest.mark.parametrize("prompt", [central_point, tight_box])
def test_empty_mask_is_refused(prompt):
    with pytest.raises(DataError, match="empty mask of 3x4"):
        prompt(np.zeros((3, 4), bool))
