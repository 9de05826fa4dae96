"""Prior peaks: rendered targets are proposed, and the operators' support is what it says."""

import numpy as np
import pytest
import torch

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.data.synth import infrared
from fewlabel.sam.everything import segment_everything
from fewlabel.sam.families import load
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank
from fewlabel.scalpel.propose import prior_peaks


def scene(places, height=60.0, sigma=1.5, size=(70, 81), seed=0):
    """Noisy slope in 14-bit units with Gaussian targets at (row, column)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = 6000 + 2.0 * rows + rng.normal(0, 4, size)
    for row, column in places:
        pixels += height * np.exp(-0.5 * ((rows - row) ** 2 + (columns - column) ** 2) / sigma**2)
    return pixels.astype(np.float32)


def nearest(points, row, column):
    return np.hypot(points[:, 0] - column - 0.5, points[:, 1] - row - 0.5).min()


def test_the_strongest_peaks_are_the_targets():
    places = [(12, 20), (40, 60), (55, 9)]
    found = prior_peaks(scene(places))
    assert all(nearest(found.proposals.points[:3], *place) <= 1.5 for place in places)
    assert (np.diff(found.proposals.strengths) <= 0).all()
    assert found.support[:3].all()
    assert found.bright.all()


def test_responses_are_the_banks_and_the_strength_is_what_enough_operators_reach():
    grey = scene([(30, 30), (50, 70)])
    with torch.no_grad():
        bank = OperatorBank()(torch.from_numpy(standardise(grey))[None, None])[0].clamp_min(0).numpy()
    for agree in (1, 3, 4):
        found = prior_peaks(grey, scales=(1,), agree=agree, floor=0.2)
        columns, rows = found.proposals.points.astype(int).T
        np.testing.assert_allclose(found.responses, bank[:, rows, columns].T, atol=1e-5)
        assert found.responses.shape[1] == len(OPERATOR_NAMES)
        np.testing.assert_array_equal(found.support, found.responses >= 0.2)
        assert (found.support.sum(1) >= agree).all()
        np.testing.assert_allclose(found.proposals.strengths, np.sort(found.responses, axis=1)[:, -agree], atol=1e-6)


def test_a_bank_of_some_operators_is_asked_for_all_of_those():
    grey, names = scene([(30, 30), (50, 70)]), ("blob_response", "ring_top_hat")
    found = prior_peaks(grey, bank=OperatorBank(names), scales=(1,))
    assert found.responses.shape[1] == found.support.shape[1] == 2
    np.testing.assert_allclose(found.proposals.strengths, found.responses.min(axis=1), atol=1e-6)
    assert all(nearest(found.proposals.points[:2], *place) <= 1.5 for place in ((30, 30), (50, 70)))
    with pytest.raises(DataError, match="use 1 to 2 operators"):
        prior_peaks(grey, bank=OperatorBank(names), agree=3)


def test_gain_and_offset_do_not_matter_and_a_flat_image_has_none():
    grey = scene([(30, 30)])
    np.testing.assert_array_equal(
        prior_peaks(3 * grey - 500, most=3).proposals.points[0], prior_peaks(grey, most=3).proposals.points[0]
    )
    assert len(prior_peaks(np.full((20, 30), 7.0)).proposals) == 0


def test_polarity():
    grey = scene([(20, 20)]) + scene([(50, 60)], height=-60.0) - 6000
    bright, dark, both = (prior_peaks(grey, polarity=polarity) for polarity in ("bright", "dark", "both"))
    assert nearest(bright.proposals.points[:1], 20, 20) <= 1.5
    assert nearest(dark.proposals.points[:1], 50, 60) <= 1.5
    assert not dark.bright.any()
    assert all(nearest(both.proposals.points[:2], *place) <= 1.5 for place in ((20, 20), (50, 60)))
    assert sorted(both.bright[:2]) == [False, True]


def test_a_reduced_image_shows_a_target_that_is_too_large_for_the_operators():
    grey = scene([(40, 45)], sigma=8.0)
    assert len(prior_peaks(grey, scales=(1,)).proposals) == 0
    found = prior_peaks(grey, scales=(1, 2))
    assert nearest(found.proposals.points[:1], 40, 45) <= 3
    assert found.scales[0] == 2


def test_rendered_targets_are_among_ten_peaks():
    """Seeds that chose neither the level nor the number of peaks."""
    hits = []
    for seed in range(40):
        drawn = infrared.render(np.random.default_rng([11, seed]), 128)
        points = prior_peaks(drawn.radiance.astype(np.float32)).proposals.points
        assert len(points) <= 10
        for number in range(1, int(drawn.labels.max()) + 1):
            rows, columns = np.nonzero(drawn.labels == number)
            gaps = np.hypot(points[:, :1] - columns - 0.5, points[:, 1:] - rows - 0.5)
            hits.append(gaps.min(initial=np.inf) <= 1.5)
    assert len(hits) > 30
    assert np.mean(hits) >= 0.85


def test_proposals_lead_sam_to_the_target():
    grey = scene([(40, 45)], height=120.0, size=(96, 96))
    truth = scene([(40, 45)], height=120.0, size=(96, 96), seed=0) - scene([], size=(96, 96), seed=0) > 48
    proposals = prior_peaks(grey).proposals
    found = segment_everything(
        load("nano"), torch.from_numpy(to_unit(standardise(grey)))[None], proposals, min_quality=0.3, min_stability=0.1
    )
    overlap = [(mask & truth).sum() / (mask | truth).sum() for mask in found.masks()]
    assert max(overlap) >= 0.5
    assert len(found) <= len(proposals)


@pytest.mark.parametrize(
    ("grey", "options"),
    [
        (np.zeros((3, 4, 5)), {}),
        (np.full((8, 8), np.nan), {}),
        (np.zeros((8, 8)), {"agree": 5}),
        (np.zeros((8, 8)), {"scales": ()}),
        (np.zeros((8, 8)), {"polarity": "grey"}),
    ],
)
def test_bad_input_is_one_sentence(grey, options):
    with pytest.raises(DataError, match="propose"):
        prior_peaks(grey, **options)
