"""Codes of images and labels: what they tell apart and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, ndimage

from fewlabel.core.types import Image, Instances
from fewlabel.data.fingerprints import label_digest, perceptual_hash, pixel_digest


def scene(seed: int, size: tuple[int, int] = (96, 128), blur: float = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sky = ndimage.gaussian_filter(rng.normal(size=size), blur)
    return (1000 + 300 * sky / sky.std()).astype(np.float32)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_hash_by_the_textbook(seed):
    image = scene(seed, (64, 96))
    small = image.reshape(32, 2, 32, 3).mean((1, 3), dtype=np.float64)
    low = fft.dctn(small, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])
    expected = sum(1 << place for place in range(1, 64) if bits[place])
    assert (perceptual_hash(image) ^ expected).bit_count() <= 2  # a frequency at the median may fall either way


@pytest.mark.parametrize("seed", range(10))
def test_hash_survives_what_recordings_of_one_scene_differ_in(seed):
    image, rng = scene(seed), np.random.default_rng(seed)
    assert apart(image, 5 * image - 300) == 0 and apart(image, image / 7e4) == 0
    assert apart(image, image + rng.normal(0, 30, image.shape).astype(np.float32)) <= 4
    target = image.copy()
    target[40:43, 60:64] += 1500
    assert apart(image, target) <= 6
    assert apart(image, ndimage.zoom(image, 1.5, order=1)) <= 6


def test_unrelated_scenes_differ_in_half_of_the_bits():
    codes = [perceptual_hash(scene(seed)) for seed in range(60)]
    bits = [(a ^ b).bit_count() for i, a in enumerate(codes) for b in codes[:i]]
    assert 29 < np.mean(bits) < 33 and min(bits) > 10
    assert not any(code & 1 for code in codes)  # the mean says nothing about a scene


def test_hash_of_images_without_a_frequency_is_not_left_to_rounding():
    rows = np.repeat(np.linspace(0, 200, 50, dtype=np.float32)[:, None], 70, axis=1)
    assert apart(rows, rows * np.float32(1.7) + 11) == 0 and apart(rows, rows.repeat(3, axis=1)) == 0
    assert perceptual_hash(np.zeros((8, 8), np.float32)) == 0


def image(pixels: np.ndarray) -> Image:
    return Image("a", pixels.astype(np.float32))


def test_pixel_digest_tells_equal_pixels():
    pixels = np.arange(24).reshape(1, 4, 6)
    one = pixel_digest(image(pixels))
    assert one == pixel_digest(Image("b", pixels.astype(np.float32), "uint8", 8))
    assert one == pixel_digest(image(pixels.repeat(3, axis=0)))
    changed = pixels.copy()
    changed[0, 3, 5] += 1
    others = [pixels.reshape(1, 6, 4), changed, np.concatenate([pixels, pixels, changed]), pixels[:, :, ::-1]]
    assert len({one, *(pixel_digest(image(other)) for other in others)}) == 5


def test_label_digest_tells_equal_labels_in_any_order():
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1, 1:3] = masks[1, 4, 4] = True
    one = label_digest(Instances.from_masks(masks, classes=[0, 1]))
    assert one == label_digest(Instances.from_masks(masks[::-1], classes=[1, 0]))
    assert one != label_digest(Instances.from_masks(masks, classes=[1, 0]))
    assert one != label_digest(Instances.from_masks(masks[:1], classes=[0]))
    assert one != label_digest(Instances.from_masks(masks.transpose(0, 2, 1), classes=[0, 1]))
    assert label_digest(Instances((6, 8))) is None
