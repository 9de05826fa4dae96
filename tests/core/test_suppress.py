"""Suppression of duplicates against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.masks import boxes, encode_many
from fewlabel.core.suppress import box_iou, suppress_boxes, suppress_masks


def random_masks(count, seed, size=(17, 23)):
    """Filled boxes with a few pixels flipped, so that overlaps of every degree occur."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, 8), rng.integers(0, 10)
        mask[top : top + rng.integers(1, 10), left : left + rng.integers(1, 13)] = True
        mask ^= rng.random(size) < rng.choice([0.0, 0.03])
    return masks


def greedy(overlap, scores, threshold):
    """The rule itself, on a matrix of all pairs."""
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(overlap[index, other] <= threshold for other in kept):
            kept.append(index)
    return kept


def pairs(masks):
    return np.array([[(a & b).sum() / max((a | b).sum(), 1) for b in masks] for a in masks])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_masks_as_brute_force(count, seed, threshold):
    masks = random_masks(count, seed)
    scores = np.random.default_rng(seed).integers(0, 4, count) / 4  # with ties
    kept = suppress_masks(encode_many(masks), boxes(masks), scores, threshold)
    assert kept.tolist() == greedy(pairs(masks), scores, threshold)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 14), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_boxes_as_brute_force(count, seed, threshold):
    """The IoU of two boxes with whole edges is that of the masks they fill."""
    masks = random_masks(count, seed)
    corners = boxes(masks)
    filled = np.zeros_like(masks)
    for mask, (x0, y0, x1, y1) in zip(filled, corners.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    scores = np.random.default_rng(seed).random(count)
    assert suppress_boxes(corners, scores, threshold).tolist() == greedy(pairs(filled), scores, threshold)


def test_box_iou_of_boxes_without_area_is_zero():
    nothing = np.zeros(4, np.float32)
    assert box_iou(nothing, np.stack([nothing, np.array([0, 0, 2, 2], np.float32)])).tolist() == [0.0, 0.0]
    assert box_iou(np.array([0, 0, 2, 2]), np.array([[1, 0, 3, 2], [0, 0, 2, 2]])) == pytest.approx([1 / 3, 1])
