"""A teacher's beliefs in training crops: they move exactly as the target does."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data.augment import AugmentConfig, Patch, crop, crop_batch, crop_with_soft, resize, resize_soft

PLAIN = AugmentConfig(gain=0, offset=0, gamma=0, noise=0)
seeds = st.integers(0, 2**32 - 1)


def patch(rng: np.random.Generator, size: tuple[int, int]) -> Patch:
    target = rng.random(size) < 0.05
    image = np.arange(size[0] * size[1], dtype=np.float32).reshape(size)
    return Patch(image, target, np.ones(size, np.float32), soft=target.astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(seed=seeds, height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 33))
def test_without_scaling_beliefs_are_where_the_target_is(seed, height, width, size):
    rng = np.random.default_rng(seed)
    config = PLAIN.model_copy(update={"scale_probability": 0.0})
    image, target, _, soft = crop_with_soft(patch(rng, (height, width)), size, rng, config)
    np.testing.assert_array_equal(soft, target)
    assert soft.shape == image.shape == (size, size)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, side=st.integers(1, 40), scale=st.floats(0.5, 2))
def test_scaled_beliefs_are_the_scaled_target_before_it_is_cut(seed, side, scale):
    rng = np.random.default_rng(seed)
    size = max(1, round(side * scale))
    target = rng.random((side, side)) < 0.2
    ones = np.ones((side, side), np.float32)
    as_image, as_target, _ = resize(target.astype(np.float32), target, ones, size)
    soft = resize_soft(target.astype(np.float32), size)
    np.testing.assert_allclose(soft, as_image.clip(0, 1), atol=1e-6)
    # A target that fell below one half everywhere is given back a pixel; nowhere else may the two differ.
    assert not ((soft >= 0.5 + 1e-6) & ~as_target).any()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, side=st.integers(2, 40), scale=st.floats(0.5, 2))
def test_what_is_unknown_stays_unknown_and_does_not_leak(seed, side, scale):
    rng = np.random.default_rng(seed)
    size = max(1, round(side * scale))
    soft = np.full((side, side), 0.6, np.float32)
    unknown = rng.random((side, side)) < 0.3
    soft[unknown] = np.nan
    found = resize_soft(soft, size)
    nearest = np.minimum(((np.arange(size) + 0.5) * side / size).astype(int), side - 1)
    np.testing.assert_array_equal(np.isnan(found), unknown[np.ix_(nearest, nearest)])
    np.testing.assert_allclose(found[~np.isnan(found)], 0.6, atol=1e-5)


def test_a_batch_tells_crops_without_beliefs_from_those_with_some():
    rng = np.random.default_rng(0)
    with_soft = patch(rng, (30, 40))
    without = replace(with_soft, soft=None)
    batch = crop_batch([with_soft, without], 24, np.random.default_rng(1), PLAIN)
    assert batch.soft is not None and batch.soft.dtype == torch.float32
    assert batch.soft.shape == (2, 1, 24, 24)
    assert not batch.soft[0].isnan().any() and batch.soft[1].isnan().all()
    assert crop_batch([without, without], 24, np.random.default_rng(1), PLAIN).soft is None


def test_beliefs_change_nothing_else():
    rng = np.random.default_rng(0)
    with_soft = patch(rng, (30, 40))
    first = crop(with_soft, 24, np.random.default_rng(1), AugmentConfig())
    second = crop(replace(with_soft, soft=None), 24, np.random.default_rng(1), AugmentConfig())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
