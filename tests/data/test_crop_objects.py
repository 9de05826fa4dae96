"""Objects in crops: none is lost, each keeps its own pixels, and mirrored copies are told apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from fewlabel.core.masks import encode_many
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.augment import AugmentConfig, Patch, crop_batch, cut, place_crop, resize, turned
from fewlabel.data.crop_objects import apart, mirrors, resize_objects
from fewlabel.data.pool import patch_of

EIGHT = np.ones((3, 3))
STILL = AugmentConfig(target_probability=0, turns=False, scale_probability=0, gain=0, offset=0, gamma=0, noise=0)
seeds = st.integers(0, 2**32 - 1)


def touching(rng: np.random.Generator, side: int, count: int, density: float) -> np.ndarray:
    """A map of objects that touch, in one or more pieces; numbers have gaps."""
    numbers = rng.integers(1, count + 1, (side, side)) * (rng.random((side, side)) < density)
    blocks = np.repeat(np.repeat(numbers, 3, axis=0), 3, axis=1)[:side, :side]
    return np.where(rng.random((side, side)) < 0.7, blocks, numbers).astype(np.int32) * 2


@settings(max_examples=150, deadline=None)
@given(
    side=st.integers(4, 40),
    scale=st.floats(0.5, 2),
    count=st.integers(1, 12),
    density=st.sampled_from([0.01, 0.1, 0.5]),
    seed=seeds,
)
def test_scaling_loses_no_object(side, scale, count, density, seed):
    rng = np.random.default_rng(seed)
    numbers, size = touching(rng, side, count, density), max(4, round(side * scale))
    plane = np.zeros((side, side), np.float32)
    _, target, _ = resize(plane, numbers > 0, plane, size)
    scaled, restored = resize_objects(numbers, target, size)
    assert scaled.dtype == np.int32 and scaled.shape == (size, size)
    kept, wanted = set(np.unique(scaled)) - {0}, set(np.unique(numbers)) - {0}
    assert kept == wanted
    given_back = np.zeros((size, size), bool)
    for pixel, source in restored:
        assert scaled[pixel] == numbers[source] > 0
        given_back[pixel] = True
    assert (target | given_back)[scaled > 0].all() and (scaled > 0)[target].all()
    # Each pixel that was not given back belongs to the object that covers most of it.
    shares = {
        number: F.interpolate(
            torch.from_numpy((numbers == number).astype(np.float32))[None, None],
            (size, size),
            mode="bilinear",
            align_corners=False,
            antialias=size < side,
        )[0, 0].numpy()
        for number in wanted
    }
    if wanted:
        best = np.max(list(shares.values()), axis=0)
        for number, share in shares.items():
            own = (scaled == number) & ~given_back
            assert (share[own] > best[own] - 1e-5).all()


@settings(max_examples=60, deadline=None)
@given(side=st.integers(8, 48), scale=st.floats(0.5, 2), seed=seeds)
def test_objects_that_do_not_touch_are_the_parts_of_the_scaled_target(side, scale, seed):
    rng = np.random.default_rng(seed)
    numbers, _ = ndimage.label(ndimage.binary_erosion(rng.random((side, side)) < 0.9), EIGHT)
    size, plane = max(4, round(side * scale)), np.zeros((side, side), np.float32)
    _, target, _ = resize(plane, numbers > 0, plane, size)
    scaled, restored = resize_objects(numbers.astype(np.int32), target, size)
    if not restored:
        np.testing.assert_array_equal(scaled > 0, target)


def test_two_objects_under_one_pixel_keep_one_each():
    numbers = np.zeros((8, 8), np.int32)
    numbers[2, 2], numbers[2, 3], numbers[3, 2], numbers[3, 3] = 1, 2, 3, 4
    plane = np.zeros((8, 8), np.float32)
    _, target, _ = resize(plane, numbers > 0, plane, 4)
    scaled, restored = resize_objects(numbers, target, 4)
    assert target.sum() == 1 and len(restored) == 3
    assert np.bincount(scaled.ravel()).tolist() == [12, 1, 1, 1, 1]
    rows, columns = np.nonzero(scaled)
    assert abs(rows - 1).max() <= 1 and abs(columns - 1).max() <= 1


def copies_by_hand(numbers: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Mirrored copies by flood: pixels of one object in one copy are joined, and so are pixels that a mirror shares."""
    height, width = numbers.shape
    groups = {}

    def root(key):
        while groups[key] != key:
            key = groups[key]
        return key

    def copies(position, length):
        if length == 1:
            return [0]
        own = position // (length - 1)
        return [own, own - 1] if position % (length - 1) == 0 else [own]

    def folded(position, length):
        if length == 1:
            return 0
        position %= 2 * (length - 1)
        return position if position < length else 2 * (length - 1) - position

    pixels = {}
    for row in range(top, top + side):
        for column in range(left, left + side):
            number = int(numbers[folded(row, height), folded(column, width)])
            if number:
                keys = [(number, r, c) for r in copies(row, height) for c in copies(column, width)]
                for key in keys:
                    groups.setdefault(key, key)
                    groups[root(key)] = root(keys[0])
                pixels[row - top, column - left] = keys[0]
    names, result = {}, np.zeros((side, side), np.int32)
    for pixel in sorted(pixels):
        result[pixel] = names.setdefault(root(pixels[pixel]), len(names) + 1)
    return result


def renamed(numbers: np.ndarray) -> np.ndarray:
    """Numbers in the raster order of their first pixels."""
    names = {0: 0}
    return np.array([names.setdefault(number, len(names)) for number in numbers.ravel().tolist()]).reshape(
        numbers.shape
    )


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    top=st.integers(-15, 9),
    left=st.integers(-15, 9),
    side=st.integers(1, 25),
    seed=seeds,
)
def test_mirrored_copies_are_apart_unless_they_meet(height, width, top, left, side, seed):
    rng = np.random.default_rng(seed)
    numbers = (rng.integers(1, 4, (height, width)) * (rng.random((height, width)) < 0.3)).astype(np.int32)
    found = apart(cut(numbers, top, left, side), mirrors(top, side, height), mirrors(left, side, width))
    np.testing.assert_array_equal(renamed(found), copies_by_hand(numbers, top, left, side))


def test_a_mirrored_object_has_a_box_of_its_own():
    numbers = np.zeros((10, 30), np.int32)
    numbers[2:4, 5:9], numbers[0:2, 20:22] = 1, 2  # the second one touches the mirror
    patch = Patch(np.zeros((10, 30), np.float32), numbers > 0, np.ones((10, 30), np.float32), objects=numbers)
    batch = crop_batch([patch] * 20, 20, np.random.default_rng(0), STILL, objects=True)
    for objects in batch.objects.numpy():
        for rows, columns in ndimage.find_objects(objects):
            assert rows.stop - rows.start <= 3 and columns.stop - columns.start <= 4
        pieces = ndimage.label(objects > 0, EIGHT)[1]
        assert len(np.unique(objects)) - 1 == pieces  # mirrored copies and joined ones alike


@settings(max_examples=80, deadline=None)
@given(seed=seeds, size=st.integers(8, 40), side=st.integers(20, 60))
def test_objects_go_where_the_target_goes(seed, size, side):
    """Turned and scaled with it; asking for them changes neither image, target nor what is drawn."""
    rng = np.random.default_rng(seed)
    numbers = touching(rng, side, 6, 0.1)
    weight = (rng.random((side, side)) < 0.8).astype(np.float32)
    patch = Patch(rng.standard_normal((side, side)).astype(np.float32), numbers > 0, weight, objects=numbers)
    config = AugmentConfig(scale_probability=0.7)
    plain, told = (
        crop_batch([patch, patch], size, np.random.default_rng(seed), config, objects=asked) for asked in (False, True)
    )
    assert plain.objects is None and told.objects.dtype == torch.int32 and told.objects.shape == (2, size, size)
    assert torch.equal(plain.images, told.images) and torch.equal(plain.targets, told.targets)
    draw = np.random.default_rng(seed)
    place = place_crop(patch, size, draw, config)
    window = cut(numbers, place.top, place.left, place.side)
    objects, target = told.objects[0].numpy(), told.targets[0, 0].numpy() > 0
    assert ((objects > 0) | ~target).all()
    if place.side == size and min(place.top, place.left) >= 0 and max(place.top, place.left) + size <= side:
        np.testing.assert_array_equal(objects, turned(window, place.turn))
        assert torch.equal(plain.weights[0], told.weights[0])
    elif place.side <= side:
        assert set(np.unique(objects)) == set(np.unique(window)) | {0}
        for number in set(np.unique(window)) - {0}:
            own = np.argwhere(turned(window == number, place.turn)) + 0.5
            there = (np.argwhere(objects == number) + 0.5) * place.side / size
            nearest = np.abs(there[:, None] - own[None]).max(axis=2).min(axis=1)
            assert nearest.max() < 3  # pixels of the window; an object that is given a pixel back may have to move


def test_an_object_that_is_given_a_pixel_back_counts_as_its_own_pixel_did():
    numbers = np.zeros((40, 40), np.int32)
    numbers[20, 20] = 1
    plane = (numbers == 0).astype(np.float32)  # the object alone does not count
    for weight, expected in ((plane, 0), (1 - plane, 1)):
        patch = Patch(plane, numbers > 0, weight, objects=numbers)
        config = STILL.model_copy(update={"scale_probability": 1, "scale_low": 0.5, "scale_high": 1, "turns": True})
        for seed in range(20):
            batch = crop_batch([patch], 16, np.random.default_rng(seed), config, objects=True)
            for row, column in np.argwhere(batch.objects[0].numpy() > 0):
                assert batch.weights[0, 0, row, column] == expected or (batch.objects > 0).sum() > 1


@pytest.mark.parametrize("whole", [True, False])
def test_without_objects_the_parts_of_the_crop_are_told_apart(whole):
    target = np.zeros((30, 30), bool)
    target[5:9, 5:25] = True
    target[5:25, 5:9] = target[5:25, 21:25] = True  # a bridge, of which a crop of the lower half shows two legs
    plane = np.zeros((30, 30), np.float32)
    patch = Patch(plane, target, plane + 1)
    patch = replace(patch, objects=target.astype(np.int32)) if whole else patch
    counts = {
        len(np.unique(crop_batch([patch], 20, np.random.default_rng(seed), STILL, objects=True).objects)) - 1
        for seed in range(40)
    }
    assert counts == ({1} if whole else {1, 2})


def test_the_patch_of_a_labelled_image_tells_its_objects_apart():
    masks = np.zeros((3, 12, 12), bool)
    masks[0, 2:8, 2:6] = masks[1, 2:8, 6:9] = masks[2, 4, 4] = True  # two that touch, a small one on the first
    image = Image("a", np.arange(144, dtype=np.float32).reshape(1, 12, 12))
    patch = patch_of(Labelled(image, Instances.from_masks(masks)))
    objects = crop_batch([patch], 12, np.random.default_rng(0), STILL, objects=True).objects[0].numpy()
    expected = np.zeros((12, 12), np.int32)
    for number, mask in enumerate(masks, 1):
        expected[mask] = number
    np.testing.assert_array_equal(objects, expected)
    assert patch.objects.nbytes == sum(len(code["counts"]) for code in encode_many(masks))
