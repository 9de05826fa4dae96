"""Prompts from a grid and from responses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.sam.prompters import (
    Proposals,
    boxes,
    coarse_masks,
    grid_points,
    grow,
    peaks,
    robust_level,
    with_boxes,
)

maps = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10_000))


def smooth_map(height, width, seed, levels=9):
    """A map with few levels, so that plateaus and ties occur."""
    return np.random.default_rng(seed).integers(0, levels, (height, width)).astype(np.float32)


def brute_peaks(response, level, distance, most):
    """The rule itself: pixel by pixel, pair by pair."""
    height, width = response.shape
    found = []
    for r, c in np.ndindex(response.shape):
        around = response[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2]
        if response[r, c] > level and response[r, c] == around.max():
            found.append((-response[r, c], r * width + c))
    kept = []
    for _, place in sorted(found):
        r, c = divmod(place, width)
        if len(kept) < most and all(np.hypot(r - a, c - b) >= distance for a, b in kept):
            kept.append((r, c))
    return [(c + 0.5, r + 0.5) for r, c in kept]


class TestGrid:
    def test_points_are_cell_centres_of_the_image(self):
        assert grid_points(2, (8, 4)).tolist() == [[1, 2], [3, 2], [1, 6], [3, 6]]

    @given(st.integers(1, 12), st.integers(1, 300), st.integers(1, 300))
    @settings(max_examples=30, deadline=None)
    def test_points_lie_inside_and_are_evenly_spread(self, side, height, width):
        points = grid_points(side, (height, width))
        assert points.shape == (side * side, 2)
        assert (points > 0).all()
        assert (points < [width, height]).all()
        np.testing.assert_allclose(points.mean(0), [width / 2, height / 2], rtol=1e-5)


class TestPeaks:
    @settings(max_examples=80, deadline=None)
    @given(maps, st.floats(0.5, 6), st.integers(0, 6), st.sampled_from([-1.0, 0.0, 3.0]))
    def test_as_brute_force(self, shape, distance, most, floor):
        response = smooth_map(*shape)
        got = peaks(response, deviations=0, floor=floor, distance=distance, most=most)
        level = max(floor, np.median(response))
        assert [tuple(point) for point in got.points] == brute_peaks(response, level, distance, most)

    def test_targets_stand_out_of_noise_and_their_number_does_not_raise_the_level(self):
        rng = np.random.default_rng(0)
        response = rng.normal(size=(60, 80))
        places = [(5, 7), (30, 70), (50, 20)]
        for strength, (row, column) in zip((20, 30, 25), places, strict=True):
            response[row, column] = strength
        got = peaks(response, deviations=6)
        assert got.points.tolist() == [[70.5, 30.5], [20.5, 50.5], [7.5, 5.5]]
        assert got.strengths.tolist() == [30, 25, 20]
        assert robust_level(response, 6, 0) == pytest.approx(6, rel=0.1)

    def test_flat_map_gives_none_and_a_plateau_one(self):
        assert len(peaks(np.full((9, 9), 3.0))) == 0
        plateau = np.zeros((9, 9))
        plateau[3:6, 3:6] = 1
        assert peaks(plateau).points.tolist() == [[3.5, 3.5]]

    @pytest.mark.parametrize("response", [np.zeros((2, 3, 4)), np.zeros((0, 4)), np.full((3, 3), np.nan)])
    def test_what_is_no_map_is_refused(self, response):
        for make in (peaks, boxes, coarse_masks):
            with pytest.raises(DataError, match="one finite map"):
                make(response)


class TestComponents:
    @settings(max_examples=50, deadline=None)
    @given(maps, st.integers(1, 5))
    def test_boxes_and_masks_are_those_of_the_strongest_components(self, shape, most):
        response = smooth_map(*shape, levels=4)
        level = max(1.0, float(np.median(response)))
        labels, count = components(response > level)
        heights = [response[labels == n].max() for n in range(1, count + 1)]
        order = sorted(range(count), key=lambda n: (-heights[n], n))[:most]
        boxed = boxes(response, deviations=0, floor=1.0, margin=0, most=most)
        coarse = coarse_masks(response, deviations=0, floor=1.0, most=most)
        assert len(boxed) == len(coarse) == len(order)
        for i, number in enumerate(order):
            own = labels == number + 1
            rows, columns = np.nonzero(own)
            assert boxed.boxes[i].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.array_equal(coarse.regions == i + 1, own)
            x, y = (coarse.points[i] - 0.5).astype(int)
            assert own[y, x]
            assert response[y, x] == boxed.strengths[i] == coarse.strengths[i] == heights[number]

    def test_margin_stops_at_the_border(self):
        response = np.zeros((10, 12))
        response[0:2, 9:11] = 1
        assert boxes(response, margin=2).boxes.tolist() == [[7, 0, 12, 4]]


class TestGrow:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_half_way_to_the_surroundings(self, sign):
        image = np.full((40, 40), 100.0)
        image[10:14, 20:25] += sign * 50
        image[14, 20:25] += sign * 20  # less than half way
        image[30:33, 30:33] += sign * 50  # not connected
        region = grow(image, np.array([22.5, 11.5]))
        want = np.zeros_like(region)
        want[10:14, 20:25] = True
        assert np.array_equal(region, want)
        proposals = Proposals(np.ones(1, np.float32), np.array([[22.5, 11.5]], np.float32))
        assert with_boxes(image, proposals).boxes.tolist() == [[19, 9, 26, 15]]

    def test_a_point_on_the_far_edge_belongs_to_the_last_pixel(self):
        image = np.zeros((20, 20))
        image[-1, -1] = 5
        assert grow(image, np.array([20.0, 20.0])).sum() == 1


class TestProposals:
    def test_centres(self):
        boxes_only = Proposals(np.ones(1, np.float32), boxes=np.array([[0, 2, 4, 8]], np.float32))
        assert boxes_only.centres.tolist() == [[2, 5]]
        assert len(boxes_only) == 1

    @pytest.mark.parametrize("points", [None, np.zeros((2, 2), np.float32), np.zeros((3, 3), np.float32)])
    def test_counts_must_agree(self, points):
        with pytest.raises(DataError, match="one per strength"):
            Proposals(np.ones(3, np.float32), points)
