import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.instance_crops import (
    CropConfig,
    Record,
    RecordPool,
    crop_view,
    record_of,
    record_without_labels,
    repeat_factors,
    resize_masks,
    window_masks,
)
from fewlabel.data.views import colours, view_of

WHOLE = CropConfig(crop=64, scale_low=1, scale_high=1, flips=False)


def scene(height: int = 48, width: int = 40, objects: int = 7, seed: int = 0) -> Labelled:
    """Rectangles in an image whose red channel holds the number of the object that a pixel shows."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((objects, height, width), bool)
    taken = np.zeros((height, width), bool)
    for mask in masks:
        y, x, h, w = (int(rng.integers(0, height)), int(rng.integers(0, width)), *rng.integers(1, 9, 2))
        mask[y : y + h, x : x + w] = True
        mask &= ~taken
        taken |= mask
    masks = masks[masks.any((1, 2))]
    pixels = np.zeros((3, height, width), np.float32)
    for number, mask in enumerate(masks, 1):
        pixels[0, mask] = number
    pixels[1], pixels[2] = np.arange(height)[:, None], np.arange(width)
    classes = np.arange(len(masks)) % 3
    return Labelled(Image("scene", pixels, "uint8", 8), Instances.from_masks(masks, classes=classes))


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(48, 40), (200, 33), (64, 64), (7, 90)]))
def test_masks_stay_on_their_objects(seed, turns, size):
    sample = scene(*size, seed=seed % 17)
    config = CropConfig(crop=64, scale_low=1, scale_high=1, turns=turns)
    view = crop_view(record_of(sample), config, np.random.default_rng(seed))
    red = (view.image[0] * 255).round().long()
    for mask, _ in zip(view.masks, view.classes, strict=True):
        assert len(red[mask].unique()) == 1
    shown = {int(value) for value in red.unique()} - {0}
    assert {int(red[mask].unique()) for mask in view.masks} == shown
    numbers = torch.tensor([int(red[mask].unique()) - 1 for mask in view.masks])
    assert (view.classes == numbers % 3).all()


@given(st.integers(0, 10_000))
def test_nothing_lies_in_the_padding(seed):
    config = CropConfig(crop=64, scale_low=0.3, scale_high=2, turns=True)
    view = crop_view(record_of(scene(seed=seed % 5)), config, np.random.default_rng(seed))
    rows, columns = view.content
    assert view.size == (64, 64)
    assert not view.masks[:, rows:].any()
    assert not view.masks[:, :, columns:].any()
    assert not view.image[:, rows:].any()
    assert not view.image[:, :, columns:].any()
    assert view.masks.flatten(1).any(1).all()


def test_an_unscaled_crop_of_a_small_image_is_the_image():
    sample = scene()
    view = crop_view(record_of(sample), WHOLE, np.random.default_rng(3))
    whole = view_of(sample)
    assert view.content == (48, 40)
    assert torch.equal(view.image[:, :48, :40], whole.image)
    assert torch.equal(view.masks[:, :48, :40], whole.masks)
    assert torch.equal(view.classes, whole.classes)


def test_same_generator_same_crop():
    record, config = record_of(scene()), CropConfig(crop=32, turns=True)
    one, two = (crop_view(record, config, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.masks, two.masks)
    other = crop_view(record, config, np.random.default_rng(6))
    assert not torch.equal(one.image, other.image)


def test_scales_cover_their_range():
    record = record_without_labels(Image("flat", np.full((3, 64, 64), 9, np.float32), "uint8", 8))
    config = CropConfig(crop=64, scale_low=0.5, scale_high=2)
    rng = np.random.default_rng(0)
    sides = [crop_view(record, config, rng).content[0] for _ in range(300)]
    assert min(sides) < 36
    assert np.mean(np.array(sides) == 64) == pytest.approx(0.5, abs=0.1)


def test_a_pixel_that_shrinking_loses_is_kept():
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 1, 1] = True
    masks[1, 10:30, 10:30] = True
    small = resize_masks(masks, (10, 10))
    assert small[0].sum() == 1
    assert small[0, 0, 0]
    assert small[1].sum() == 25


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_resized_masks_are_never_empty(rows, columns, seed):
    masks = scene(objects=5, seed=seed).instances.masks()
    assert resize_masks(masks, (rows, columns)).any((1, 2)).all()


def test_window_masks_are_the_cut_masks():
    sample = scene(objects=9, seed=4)
    found, classes = window_masks(sample.instances, 10, 5, 20, 25)
    cut = sample.instances.masks()[:, 10:30, 5:30]
    kept = cut.any((1, 2))
    assert (found == cut[kept]).all()
    assert (classes == sample.instances.classes[kept]).all()


def test_grey_and_deep_images_are_kept_in_one_channel():
    grey = Image("deep", np.random.default_rng(0).normal(5000, 100, (1, 20, 30)).astype(np.float32), "uint16", 16)
    record = record_without_labels(grey)
    assert record.pixels.shape == (1, 20, 30)
    view = crop_view(record, WHOLE, np.random.default_rng(0))
    assert torch.equal(view.image[:, :20, :30], colours(grey))
    assert 0 < view.image[:, :20, :30].min() < view.image.max() < 1


def test_pool_draws_by_weight_and_loads_once():
    loads = []

    def loader(number):
        def load():
            loads.append(number)
            return Record(np.full((1, 4, 4), number, np.float32), Instances((4, 4)), str(number))

        return load

    pool = RecordPool([loader(i) for i in range(3)], np.array([0.0, 1.0, 3.0]))
    drawn = [record.id for record in pool.draw(400, np.random.default_rng(0))]
    assert "0" not in drawn
    assert drawn.count("2") / 400 == pytest.approx(0.75, abs=0.06)
    assert sorted(loads) == [1, 2]


def test_pool_forgets_when_it_is_full():
    loads = []

    def load():
        loads.append(0)
        return Record(np.zeros((1, 10, 10), np.float32), Instances((10, 10)), "x")

    pool = RecordPool([load] * 4, cache=900)
    pool.draw(50, np.random.default_rng(0))
    assert 4 < len(loads) < 50


def test_an_empty_pool_is_refused():
    with pytest.raises(DataError, match="no image"):
        RecordPool([])


def test_repeat_factors_by_hand():
    factors = repeat_factors([[0], [0, 1], [0, 0], []], threshold=0.5)
    assert factors == pytest.approx([1, np.sqrt(0.5 / 0.25), 1, 1])
    strong = repeat_factors([[0], [0, 1], [0], []], threshold=10)
    assert strong == pytest.approx([np.sqrt(10 / 0.75), np.sqrt(10 / 0.25), np.sqrt(10 / 0.75), 1])
