"""Crops: exact geometry, no target lost, the same seed the same batch, and quick enough to feed training."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from fewlabel.data import augment
from fewlabel.data.augment import AugmentConfig, Patch, crop, crop_batch, cut, jitter, resize, turned

PLAIN = AugmentConfig(target_probability=0, turns=False, scale_probability=0, gain=0, offset=0, gamma=0, noise=0)
EIGHT = np.ones((3, 3))


def random_patch(rng: np.random.Generator, height: int, width: int, density: float = 0.01) -> Patch:
    """An image whose values name their pixels, random targets, random ignored pixels."""
    image = np.arange(height * width, dtype=np.float32).reshape(height, width)
    return Patch(image, rng.random((height, width)) < density, (rng.random((height, width)) < 0.8).astype(np.float32))


sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, top=st.integers(-60, 60), left=st.integers(-60, 60), side=st.integers(1, 50))
def test_cut_is_numpys_reflection(height, width, top, left, side):
    plane = np.arange(height * width).reshape(height, width)
    padded = np.pad(plane, 120, mode="reflect")
    window = padded[120 + top : 120 + top + side, 120 + left : 120 + left + side]
    np.testing.assert_array_equal(cut(plane, top, left, side), window)


def test_turns_are_the_eight_symmetries():
    square = np.arange(9).reshape(3, 3)
    seen = {turned(square, turn).tobytes() for turn in range(8)}
    assert len(seen) == 8
    for plane in (square.T, square[::-1], square[:, ::-1], np.rot90(square)):
        assert np.ascontiguousarray(plane).tobytes() in seen


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 33), seed=seeds)
def test_without_scaling_every_pixel_is_an_original_one(height, width, size, seed):
    """Image, target and weight move together: the image's value names the pixel that the other two must come from."""
    rng = np.random.default_rng(seed)
    patch = random_patch(rng, height, width, 0.1)
    image, target, weight = crop(patch, size, rng, PLAIN.model_copy(update={"turns": True, "target_probability": 0.5}))
    assert image.shape == target.shape == weight.shape == (size, size)
    rows, columns = np.divmod(image.astype(int), width)
    np.testing.assert_array_equal(patch.target[rows, columns], target)
    np.testing.assert_array_equal(patch.weight[rows, columns], weight)
    if size <= min(height, width):
        assert len(np.unique(image)) == size * size
    if size >= 2 * max(height, width):
        assert len(np.unique(image)) == height * width  # a small image is wholly inside


@settings(max_examples=200, deadline=None)
@given(
    side=st.integers(1, 48),
    scale=st.floats(0.5, 2),
    density=st.sampled_from([0.002, 0.02, 0.1, 0.4]),
    seed=seeds,
)
def test_scaling_loses_no_target(side, scale, density, seed):
    rng = np.random.default_rng(seed)
    size = max(1, round(side * scale))
    target = rng.random((side, side)) < density
    weight = np.ones((side, side), np.float32)
    image, scaled, _ = resize(rng.standard_normal((side, side)).astype(np.float32), target, weight, size)
    assert image.shape == scaled.shape == (size, size) and scaled.dtype == bool
    labels, count = ndimage.label(target, EIGHT)
    for number in range(1, count + 1):
        # Where the target lies in the scaled crop: the pixels that its own pixels cover, if only in part.
        reach = np.zeros((size, size), bool)
        for row, column in np.argwhere(labels == number):
            low, high = (
                np.floor([row * size / side, column * size / side]),
                np.ceil([(row + 1) * size / side, (column + 1) * size / side]),
            )
            reach[int(low[0]) : int(high[0]), int(low[1]) : int(high[1])] = True
        assert (scaled & reach).any()
    grown = ndimage.binary_dilation(target, EIGHT)
    nearest = np.minimum(((np.arange(size) + 0.5) * side / size).astype(int), side - 1)
    assert not (scaled & ~grown[np.ix_(nearest, nearest)]).any(), "nothing appears away from a target"


@settings(max_examples=100, deadline=None)
@given(row=st.integers(0, 39), column=st.integers(0, 39), size=st.integers(20, 60))
def test_one_pixel_target_stays_one_small_target_in_place(row, column, size):
    target = np.zeros((40, 40), bool)
    target[row, column] = True
    plane = target.astype(np.float32)
    image, scaled, weight = resize(plane, target, 1 - plane, size)
    _, count = ndimage.label(scaled, EIGHT)
    assert count == 1 and scaled.sum() <= 4
    centre = np.argwhere(scaled).mean(0) + 0.5
    assert np.abs(centre - (np.array([row, column]) + 0.5) * size / 40).max() <= 1
    if size < 40:
        assert weight[scaled].min() == 0, "a pixel that is set again takes the weight of its target"


def test_resize_of_the_image_follows_the_pixel_grid():
    """A linear ramp stays that ramp, sampled at the centres of the new pixels, away from the border."""
    ramp = np.repeat(np.arange(40, dtype=np.float32)[None], 40, axis=0)
    empty, ones = np.zeros((40, 40), bool), np.ones((40, 40), np.float32)
    for size in (30, 53):
        image, _, weight = resize(ramp, empty, ones, size)
        expected = (np.arange(size) + 0.5) * 40 / size - 0.5
        np.testing.assert_allclose(image[3, 4:-4], expected[4:-4], atol=0.02)  # pixels
        assert (weight == 1).all()


def test_large_block_scales_in_area():
    block = np.zeros((60, 60), bool)
    block[20:40, 10:30] = True
    ones = np.ones((60, 60), np.float32)
    for size in (45, 80):
        _, scaled, _ = resize(ones, block, ones, size)
        assert scaled.sum() == pytest.approx(400 * (size / 60) ** 2, rel=0.1)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=seeds, scaled=st.booleans())
def test_biased_crop_always_holds_a_target(height, width, seed, scaled):
    rng = np.random.default_rng(seed)
    target = np.zeros((height, width), bool)
    target[rng.integers(height), rng.integers(width)] = True
    patch = Patch(np.zeros((height, width), np.float32), target, np.ones((height, width), np.float32))
    config = AugmentConfig(target_probability=1, scale_probability=float(scaled))
    _, cropped, _ = crop(patch, 16, rng, config)
    assert cropped.any()


def test_biased_crop_holds_whole_targets_and_every_one_equally_often():
    target = np.zeros((100, 100), bool)
    target[10:14, 10:15] = target[80, 80] = True
    patch = Patch(np.zeros((100, 100), np.float32), target, np.ones((100, 100), np.float32))
    np.testing.assert_array_equal(patch.boxes, [[10, 10, 14, 15], [80, 80, 81, 81]])
    config = PLAIN.model_copy(update={"target_probability": 1.0})
    rng = np.random.default_rng(0)
    sums = [int(crop(patch, 24, rng, config)[1].sum()) for _ in range(400)]
    assert set(sums) == {20, 1}
    assert sums.count(20) == pytest.approx(200, abs=40)


def test_target_larger_than_the_crop_still_shows():
    ring = np.zeros((60, 60), bool)
    ring[5:55, 5:55] = True
    ring[8:52, 8:52] = False  # its middle is background
    patch = Patch(np.zeros((60, 60), np.float32), ring, np.ones((60, 60), np.float32))
    rng = np.random.default_rng(0)
    config = PLAIN.model_copy(update={"target_probability": 1.0})
    assert all(crop(patch, 12, rng, config)[1].any() for _ in range(100))


def test_one_pixel_of_a_large_target_is_found_band_by_band(monkeypatch):
    """It is the n-th of all in raster order, however many rows are looked at at once."""
    rng = np.random.default_rng(0)
    target = ndimage.binary_dilation(rng.random((90, 70)) < 0.2)
    box = (3, 5, 88, 66)
    pixels = np.argwhere(target[3:88, 5:66]) + (3, 5)
    for band in (512, 17, 1):
        monkeypatch.setattr(augment, "BAND", band)
        for seed in range(30):
            expected = pixels[np.random.default_rng(seed).integers(len(pixels))]
            assert augment._pixel(target, box, np.random.default_rng(seed)) == tuple(expected)


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_boxes_are_scipys(seed):
    rng = np.random.default_rng(seed)
    patch = random_patch(rng, 20, 30, 0.15)
    found = ndimage.find_objects(ndimage.label(patch.target, EIGHT)[0])
    expected = {(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in found}
    assert {tuple(box) for box in patch.boxes.tolist()} == expected


def test_jitter_keeps_order_without_noise_and_leaves_its_input_alone():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((32, 32)).astype(np.float32)
    before = image.copy()
    varied = jitter(image, rng, AugmentConfig(noise=0, gamma=1, gain=1, offset=5))
    np.testing.assert_array_equal(image, before)
    assert varied.dtype == np.float32 and not np.allclose(varied, image)
    order = np.argsort(image.ravel())
    assert (np.diff(varied.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(jitter(image, rng, PLAIN), image)


def test_jitter_of_a_constant_crop_is_finite():
    assert np.isfinite(jitter(np.zeros((4, 4), np.float32), np.random.default_rng(0), AugmentConfig())).all()


def test_noise_has_the_announced_size():
    rng = np.random.default_rng(0)
    config = PLAIN.model_copy(update={"noise": 0.4})
    deviations = [jitter(np.zeros((64, 64), np.float32), rng, config).std() for _ in range(60)]
    assert max(deviations) < 0.42 and np.mean(deviations) == pytest.approx(0.2, abs=0.05)


def test_batch_shapes_types_and_repeatability():
    rng = np.random.default_rng(0)
    patches = [random_patch(rng, *size) for size in ((1, 1), (3, 200), (90, 40), (64, 64))]
    one, two, other = (crop_batch(patches, 64, np.random.default_rng(seed), AugmentConfig()) for seed in (1, 1, 2))
    for name in ("images", "targets", "weights"):
        tensor = getattr(one, name)
        assert tensor.shape == (4, 1, 64, 64) and tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all())
        assert torch.equal(tensor, getattr(two, name))
    assert not torch.equal(one.images, other.images)
    assert set(one.targets.unique().tolist()) <= {0.0, 1.0} and set(one.weights.unique().tolist()) <= {0.0, 1.0}


def test_cropping_leaves_the_patches_alone():
    rng = np.random.default_rng(0)
    patch = random_patch(rng, 50, 50, 0.05)
    planes = (patch.image, patch.target, patch.weight)
    before = [plane.copy() for plane in planes]
    for plane in planes:
        plane.flags.writeable = False
    for seed in range(20):
        crop_batch([patch], 32, np.random.default_rng(seed), AugmentConfig(scale_probability=1))
    for plane, copy in zip(planes, before, strict=True):
        np.testing.assert_array_equal(plane, copy)


@pytest.mark.parametrize("options", [{"scale_low": 1.2}, {"noise": -1}, {"target_probability": 2}, {"zoom": 1}])
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        AugmentConfig(**options)


def test_eight_crops_take_milliseconds():
    rng = np.random.default_rng(0)
    patches = [Patch(p.image / 1e4, p.target, p.weight) for p in (random_patch(rng, 300, 300, 1e-4) for _ in range(8))]
    crop_batch(patches, 256, rng, AugmentConfig())
    times = []
    for _ in range(10):
        start = time.process_time()
        crop_batch(patches, 256, rng, AugmentConfig())
        times.append(time.process_time() - start)
    assert min(times) < 0.05  # 16 ms on an idle core; the bound leaves room for slow machines


def test_a_batch_says_which_images_it_holds():
    rng = np.random.default_rng(0)
    plane = rng.random((20, 20)).astype(np.float32)
    patches = [Patch(plane, plane > 0.9, np.ones_like(plane), id) for id in ("b", "a", "b")]
    assert crop_batch(patches, 16, rng, AugmentConfig()).ids == ("b", "a", "b")
    assert crop_batch([Patch(plane, plane > 0.9, plane)], 16, rng, AugmentConfig()).ids == ("unnamed",)
