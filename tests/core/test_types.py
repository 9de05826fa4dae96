"""Instances, images and samples."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.core.types import Image, Instances, Labelled

mask_arrays = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(mask_arrays)
def test_semantic_mask_survives_the_trip_through_instances_and_json(mask: np.ndarray) -> None:
    instances = Instances.from_semantic(mask)
    restored = Instances.from_json(json.loads(json.dumps(instances.to_json())))
    np.testing.assert_array_equal(restored.semantic(), mask)
    assert restored.rles == instances.rles
    np.testing.assert_array_equal(restored.boxes, instances.boxes)
    assert instances.areas().sum() == mask.sum()


@given(mask_arrays, st.integers(0, 2**16))
def test_chosen_components_equal_instances_from_their_stack(mask: np.ndarray, seed: int) -> None:
    labels, count = components(mask)
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(np.arange(1, count + 1))[: rng.integers(count + 1)]
    scores = rng.random(len(numbers))
    got = Instances.from_components(labels, numbers, scores=scores, source="teacher", round=2)
    stack = labels[None] == numbers[:, None, None]
    expected = Instances.from_masks(stack, size=mask.shape, scores=scores, source="teacher", round=2)
    assert got.to_json() == expected.to_json()


def test_select_by_bool_and_by_index() -> None:
    mask = np.zeros((5, 5), bool)
    mask[0, 0] = mask[4, 4] = mask[2, 2:4] = True
    instances = Instances.from_semantic(mask)
    assert len(instances) == 3
    assert instances.select([1]).areas().tolist() == [2]
    assert instances.select(np.array([True, False, True])).areas().tolist() == [1, 1]
    assert len(instances.select([])) == 0


def test_wrong_lengths_sizes_and_keys_are_refused() -> None:
    instances = Instances.from_semantic(np.eye(3, dtype=bool))
    with pytest.raises(DataError, match="one of each per mask"):
        Instances((3, 3), instances.rles)
    with pytest.raises(DataError, match="every mask covers the image"):
        Instances((4, 3), instances.rles, instances.classes, instances.scores, instances.boxes)
    with pytest.raises(DataError, match="cannot be read"):
        Instances.from_json({"size": [3, 3]})
    image = Image("a", np.zeros((1, 4, 4), np.float32))
    with pytest.raises(DataError, match="'a' is 4 × 4 pixels but its mask is 3 × 3"):
        Labelled(image, instances)
    with pytest.raises(DataError, match="float32"):
        Image("a", np.zeros((4, 4), np.float32))


def test_grey_of_one_three_and_more_channels() -> None:
    pixels = np.stack([np.full((2, 2), value, np.float32) for value in (10, 20, 30)])
    np.testing.assert_allclose(Image("a", pixels).grey(), 0.299 * 10 + 0.587 * 20 + 0.114 * 30, rtol=1e-6)
    np.testing.assert_array_equal(Image("a", pixels[:1]).grey(), pixels[0])
    np.testing.assert_allclose(Image("a", pixels[:2]).grey(), 15)
