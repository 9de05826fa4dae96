"""Evidence for proposed targets, each against a loop or a formula, and the limit of support on true targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewlabel.core.masks import components
from fewlabel.core.radiometry import standardise
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.synth import infrared
from fewlabel.labels.gate import GateConfig
from fewlabel.scalpel.bank import OperatorBank
from fewlabel.scalpel.evidence import contrasts, prior_map, stabilities, supports


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_stability_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    probability = np.clip(ndimage.gaussian_filter(rng.uniform(-2, 3, (14, 17)), 1.0), 0, 1).astype(np.float32)
    low, middle, high = 0.35, 0.5, 0.65
    labels, count = components(probability > middle)
    loose, _ = components(probability > low)
    distance = np.stack([ndimage.distance_transform_edt(labels != n) for n in range(1, count + 1)]) if count else None
    found = stabilities(probability, labels, count, low, high)
    assert found.shape == (count,)
    for number in range(1, count + 1):
        tight = ((labels == number) & (probability > high)).sum()
        inside = loose[labels == number][0]
        near = distance[number - 1] <= distance.min(axis=0)  # ties may go either way
        certain = distance[number - 1] < np.delete(distance, number - 1, axis=0).min(axis=0, initial=np.inf)
        most, least = ((loose == inside) & near).sum(), ((loose == inside) & certain).sum()
        assert tight / most - 1e-9 <= found[number - 1] <= tight / least + 1e-9


def test_contrast_against_the_formula():
    image = np.random.default_rng(3).normal(size=(40, 40)).astype(np.float32)
    mask = np.zeros((40, 40), bool)
    mask[18:21, 19:22] = True
    labels, count = components(mask)
    ring = np.zeros_like(mask)
    ring[12:27, 13:28] = True
    ring[16:23, 17:24] = False
    expected = image[mask].mean() - np.median(image[ring])
    np.testing.assert_allclose(contrasts(image, labels, count), [expected], rtol=1e-6)
    full = np.ones((5, 5), np.int32)
    assert contrasts(image[:5, :5], full, 1)[0] == pytest.approx(image[:5, :5].mean() - np.median(image[:5, :5]))


def test_the_prior_is_the_mean_of_the_positive_responses():
    image = np.random.default_rng(0).normal(size=(21, 30)).astype(np.float32)
    bank = OperatorBank()
    with torch.no_grad():
        responses = bank(torch.from_numpy(image)[None, None])[0].numpy()
    np.testing.assert_allclose(prior_map(image, bank), np.maximum(responses, 0).mean(0), atol=1e-6)
    assert prior_map(image, bank).dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_support_against_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    prior = np.abs(rng.normal(size=(22, 26))).astype(np.float32)
    labels, count = components(ndimage.gaussian_filter(rng.normal(size=prior.shape), 1.5) > 0.15)
    found = supports(prior, labels, count)
    near_any = np.zeros(prior.shape, bool)
    for row, column in np.argwhere(labels > 0):
        near_any[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = True
    for number in range(1, count + 1):
        around = np.zeros(prior.shape, bool)
        for row, column in np.argwhere(labels == number):
            around[max(row - 6, 0) : row + 7, max(column - 6, 0) : column + 7] = True
        around &= ~near_any
        outside = prior[around] if around.any() else prior.ravel()
        expected = max(prior[labels == number].max() - np.quantile(outside, 0.9), 0)
        assert found[number - 1] == pytest.approx(expected, abs=1e-6)


def test_a_target_is_supported_and_a_piece_of_an_edge_or_of_noise_is_not():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    grey = 40.0 * (rows > 40) + rng.normal(0, 1, (64, 64))
    grey += 30 * np.exp(-((rows - 16) ** 2 + (columns - 20) ** 2) / (2 * 1.3**2))
    image = standardise(grey.astype(np.float32))
    labels = np.zeros((64, 64), np.int32)
    labels[15:18, 19:22] = 1
    labels[41:44, 30:33] = 2
    labels[15:18, 45:48] = 3
    target, edge, noise = supports(prior_map(image, OperatorBank()), labels, 3)
    limit = GateConfig().min_support
    assert target > 3 * limit
    assert edge < limit and noise < limit


def test_gain_and_offset_of_the_sensor_do_not_matter():
    scene = infrared.render(np.random.default_rng(1), 64)
    grey, labels = scene.radiance.astype(np.float32), scene.labels.astype(np.int32)
    bank, count = OperatorBank(), int(labels.max())
    first = supports(prior_map(standardise(grey), bank), labels, count)
    again = supports(prior_map(standardise(7 * grey + 300), bank), labels, count)
    np.testing.assert_allclose(first, again, atol=1e-3)


@pytest.mark.parametrize(("name", "every"), [("NUAA-SIRST", 5), ("NUDT-SIRST", 15)])
def test_nearly_all_true_targets_of_recorded_images_pass(real_data, name, every):
    """On the training lists alone."""
    dataset = SirstDataset(real_data / name)
    bank, found = OperatorBank(), []
    for id in dataset.train_ids[::every]:
        sample = dataset.labelled(id)
        labels, count = components(sample.instances.semantic())
        found.extend(supports(prior_map(standardise(sample.image.grey()), bank), labels, count))
    assert len(found) > 40
    assert np.mean(np.array(found) >= GateConfig().min_support) >= 0.98
