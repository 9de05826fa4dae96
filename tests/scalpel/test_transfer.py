import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from fewlabel.core.errors import RunError
from fewlabel.core.masks import components, decode
from fewlabel.core.radiometry import standardise
from fewlabel.core.types import Image
from fewlabel.labels.gate import GateConfig
from fewlabel.labels.soft import read_soft
from fewlabel.labels.store import LabelStore, target_and_weight
from fewlabel.scalpel.transfer import (
    PseudoConfig,
    TeacherView,
    calibrate,
    label_images,
    predict,
    pseudo_label,
)
from fewlabel.scalpel.views import SCALES, resized


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def bump(size, row, column, height, sigma=1.5):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2))


def scene(size=(48, 60)):
    """A probability map with a clear, a faint, an unstable, a dark and a large proposal, and the image under it."""
    faint = bump(size, 10, 45, 0.56, 2.5)
    clear = np.where(bump(size, 10, 10, 1.0) > 0.3, 0.97, 0.0)
    plateau = np.zeros(size)
    plateau[30:36, 8:14] = 0.52
    dark = np.where(bump(size, 33, 30, 1.0) > 0.3, 0.9, 0.0)
    large = np.zeros(size)
    large[25:45, 42:58] = 0.95
    probability = np.maximum.reduce([faint, clear, plateau, dark, large]).astype(np.float32)
    image = (probability - 4 * dark).astype(np.float32)
    return probability, image


CONFIG = PseudoConfig(gate=GateConfig(max_area_share=0.05))


def test_memory_does_not_grow_with_the_number_of_proposals():
    """A teacher that sees specks everywhere; a stack of their masks would take 268 MB."""
    size = (512, 512)
    probability = np.zeros(size, np.float32)
    probability[::16, ::16] = 0.9
    view = TeacherView(probability, np.zeros_like(probability))
    tracemalloc.start()
    try:
        label = pseudo_label("a", probability, view, 0.5, CONFIG)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(label.accepted) + len(label.ignored) - 1 + len(label.rejected) == 1024
    assert peak < 40e6


def test_each_proposal_gets_its_verdict_and_reason():
    probability, image = scene()
    label = pseudo_label("a", image, TeacherView(probability, np.zeros_like(probability)), 0.5, CONFIG)
    assert label.reasons == ("confident", "unsure", "unsure", "large", "dark")
    assert len(label.accepted) == 1
    assert len(label.ignored) == 3
    accepted = label.accepted.semantic()
    assert accepted[10, 10]
    np.testing.assert_array_equal(
        accepted,
        (probability > 0.5) & (np.indices(probability.shape)[1] < 20) & (np.indices(probability.shape)[0] < 20),
    )
    assert label.accepted.scores[0] == pytest.approx(0.97, abs=1e-3)
    target, weight = target_and_weight(label)
    assert target[10, 10]
    assert weight[10, 10] == 1
    assert weight[10, 45] == 0, "an unsure target is ignored, not background"
    assert weight[10, 42] == 0, "so is its faint foot"
    assert weight[32, 10] == 0
    assert weight[35, 50] == 1, "what cannot be a target is background"
    assert weight[45, 2] == 1
    assert not target[35, 50]


def test_views_that_disagree_are_ignored():
    probability, image = scene()
    spread = np.where(np.indices(probability.shape)[0] < 20, 0.4, 0.0).astype(np.float32)
    label = pseudo_label("a", image, TeacherView(probability, spread), 0.5, CONFIG)
    assert len(label.accepted) == 0
    assert "disputed" in label.reasons


def test_what_the_operators_do_not_see_is_ignored():
    """The teacher is as sure of a piece of a bright plateau's edge as of the target."""
    size = (48, 60)
    target = bump(size, 12, 12, 6.0, 1.3)
    plateau = np.where(np.indices(size)[1] > 40, 6.0, 0.0)
    noise = np.random.default_rng(0).normal(0, 0.3, size)
    image = standardise((target + plateau + noise).astype(np.float32))
    probability = np.zeros(size, np.float32)
    probability[11:14, 11:14] = probability[30:33, 41:44] = 0.95
    view = TeacherView(probability, np.zeros_like(probability))
    label = pseudo_label("a", image, view, 0.5, CONFIG)
    assert label.reasons == ("confident", "unsupported")
    assert label.accepted.semantic()[12, 12]
    _, weight = target_and_weight(label)
    assert (weight[30:33, 41:44] == 0).all()
    trusting = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"min_support": 0.0})})
    assert pseudo_label("a", image, view, 0.5, trusting).reasons == ("confident", "confident")


def test_nothing_proposed_and_the_band_around_nothing():
    empty = np.zeros((9, 7), np.float32)
    label = pseudo_label("a", empty, TeacherView(empty, empty), 0.5, CONFIG)
    target, weight = target_and_weight(label)
    assert label.reasons == ()
    assert not target.any()
    assert (weight == 1).all()
    haze = np.full((9, 7), 0.3, np.float32)
    _, weight = target_and_weight(pseudo_label("a", empty, TeacherView(haze, empty), 0.5, CONFIG))
    assert (weight == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.3, 0.7))
def test_every_pixel_has_one_role(seed, threshold):
    rng = np.random.default_rng(seed)
    probability = np.clip(ndimage.gaussian_filter(rng.uniform(-2, 3, (24, 31)), 1.2), 0, 1).astype(np.float32)
    view = TeacherView(probability, np.zeros_like(probability))
    label = pseudo_label("a", rng.normal(size=(24, 31)).astype(np.float32), view, threshold, CONFIG)
    roles = [label.accepted.semantic(), label.rejected.semantic(), *(decode(rle) for rle in label.ignored)]
    total = np.sum(roles, axis=0)
    assert total.max() <= 1
    np.testing.assert_array_equal(total == 1, probability > np.float64(CONFIG.band * threshold))
    assert components(probability > threshold)[1] == len(label.reasons)


def test_predict_is_the_mean_and_deviation_of_four_mirrored_views():
    teacher, image = small_net(), np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    view = predict(teacher, image, tile=32)
    values = []
    for axes in ((), (1,), (0,), (0, 1)):
        with torch.no_grad():
            logits = teacher(torch.from_numpy(np.flip(image, axes).copy())[None, None])
        values.append(np.flip(torch.sigmoid(logits)[0, 0].numpy(), axes))
    np.testing.assert_allclose(view.probability, np.mean(values, axis=0), atol=1e-6)
    np.testing.assert_allclose(view.spread, np.std(values, axis=0), atol=1e-6)
    assert view.probability.dtype == view.spread.dtype == np.float32
    one = predict(teacher, image, "one", tile=32)
    np.testing.assert_allclose(one.probability, values[0], atol=1e-6)
    assert (one.spread == 0).all()


def test_scaled_views_are_averaged_in_the_frame_of_the_image():
    teacher, image = small_net(), np.random.default_rng(0).normal(size=(30, 41)).astype(np.float32)
    values = [predict(teacher, np.flip(image, axes).copy(), "one", tile=64) for axes in ((), (1,), (0,), (0, 1))]
    values = [np.flip(view.probability, axes) for view, axes in zip(values, ((), (1,), (0,), (0, 1)), strict=True)]
    for scale in SCALES:
        there = (round(30 * scale), round(41 * scale))
        seen = predict(teacher, resized(image[None], there)[0], "one", tile=64).probability
        values.append(resized(seen[None], (30, 41))[0])
    view = predict(teacher, image, "flips-scales", tile=64)
    np.testing.assert_allclose(view.probability, np.mean(values, axis=0), atol=1e-6)
    np.testing.assert_allclose(view.spread, np.std(values, axis=0), atol=1e-6)
    assert view.probability.shape == view.spread.shape == (30, 41)


@pytest.mark.parametrize("size", [(20, 45), (64, 64), (70, 33)])
def test_predict_commutes_with_mirroring(size):
    teacher, image = small_net(1), np.random.default_rng(1).normal(size=size).astype(np.float32)
    tall = np.pad(image, [(0, max(0, 32 - size[0])), (0, 0)], mode="reflect")  # padding alone breaks the symmetry
    for axis in (0, 1):
        mirrored = predict(teacher, np.flip(tall, axis).copy(), tile=32)
        np.testing.assert_allclose(
            np.flip(mirrored.probability, axis), predict(teacher, tall, tile=32).probability, atol=2e-6
        )
    assert predict(teacher, image, tile=32).probability.shape == size


def test_calibration_finds_the_threshold_and_leans_to_the_middle():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(12):
        target = np.zeros((20, 20), bool)
        target[5:9, 5:9] = True
        probability = np.where(target, rng.uniform(0.3, 0.6, target.shape), rng.uniform(0, 0.29, target.shape))
        pairs.append((probability.astype(np.float32), target))
    assert calibrate(pairs[:1]) == pytest.approx((0.3 + 4 * 0.5) / 5)
    many = calibrate(pairs * 40)
    assert many == pytest.approx(0.3, abs=0.01)
    assert many < calibrate(pairs) < calibrate(pairs[:2]) < 0.5
    perfect = [(target.astype(np.float32), target) for _, target in pairs]
    assert calibrate(perfect) == 0.5, "all thresholds are equal"
    assert calibrate([]) == 0.5
    assert calibrate([(np.full((4, 4), 0.6, np.float32), np.zeros((4, 4), bool))]) == 0.5


def images(count):
    rng = np.random.default_rng(7)
    return {f"i{n}": Image(f"i{n}", rng.normal(size=(1, 24, 28)).astype(np.float32)) for n in range(count)}


def test_labelling_goes_on_where_it_stopped(tmp_path):
    teacher, pictures, config = small_net(2), images(5), PseudoConfig(gate=GateConfig(max_area_share=1.0))
    whole = LabelStore(tmp_path / "whole")
    label_images(teacher, list(pictures), pictures.__getitem__, whole, 0.5, config)
    read = []

    def fail_at_the_fourth(id):
        read.append(id)
        if len(read) == 4:
            raise KeyboardInterrupt
        return pictures[id]

    with pytest.raises(KeyboardInterrupt):
        label_images(teacher, list(pictures), fail_at_the_fourth, LabelStore(tmp_path / "cut"), 0.5, config)
    assert len(LabelStore(tmp_path / "cut")) == 3
    read.clear()
    store = LabelStore(tmp_path / "cut")
    label_images(teacher, list(pictures), lambda id: read.append(id) or pictures[id], store, 0.5, config)
    assert read == ["i3", "i4"]
    assert (tmp_path / "cut/labels-00000.jsonl").read_bytes() == (tmp_path / "whole/labels-00000.jsonl").read_bytes()
    assert whole.summary()["proposed"] > 0, "the test is to store something"


def test_probabilities_are_kept_where_they_are_asked_for(tmp_path):
    teacher, pictures = small_net(2), images(3)
    config = PseudoConfig(gate=GateConfig(max_area_share=1.0))
    label_images(teacher, list(pictures), pictures.__getitem__, LabelStore(tmp_path / "a"), 0.5, config)
    assert not (tmp_path / "soft").exists()
    store, read = LabelStore(tmp_path / "b"), []

    def fail_at_the_third(id):
        read.append(id)
        if len(read) == 3:
            raise KeyboardInterrupt
        return pictures[id]

    for source in (fail_at_the_third, pictures.__getitem__):
        try:
            label_images(teacher, list(pictures), source, store, 0.5, config, soft=tmp_path / "soft")
        except KeyboardInterrupt:
            store = LabelStore(tmp_path / "b")
            assert all((tmp_path / "soft" / f"{id}.png").is_file() for id in store.ids())
    assert sorted(path.stem for path in (tmp_path / "soft").iterdir()) == sorted(store.ids()) == sorted(pictures)
    for id, picture in pictures.items():
        expected = predict(teacher, standardise(picture.grey()), config.views).probability
        np.testing.assert_allclose(read_soft(tmp_path / "soft" / f"{id}.png"), expected, atol=0.5 / 255 + 1e-6)
    assert (tmp_path / "a/labels-00000.jsonl").read_bytes() == (tmp_path / "b/labels-00000.jsonl").read_bytes()


def test_a_broken_teacher_is_named(tmp_path):
    teacher, pictures = small_net(), images(1)
    nn.init.constant_(teacher[0].weight, float("nan"))
    with pytest.raises(RunError, match="output for image 'i0' is not finite"):
        label_images(teacher, ["i0"], pictures.__getitem__, LabelStore(tmp_path), 0.5, PseudoConfig())
