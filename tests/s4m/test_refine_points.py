"""Prompts for SAM: cells drawn by their weight without replacement, their coordinates, neighbours and boxes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.masks import boxes
from fewlabel.s4m.pseudo import Pseudo, content_cells
from fewlabel.s4m.refine_points import draw_cells, log_weights, neighbours, prompt_points, tight_boxes, to_pixels
from fewlabel.sam.promptable import PAD_LABEL

SIZE, GRID = (48, 64), (12, 16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(seed, count=3, cells=GRID):
    """Pseudo-labels of noisy random rectangles within the content, all with at least one cell."""
    rng = np.random.default_rng(seed)
    logits = torch.full((count, *GRID), -6.0)
    for plane in logits:
        y, x = rng.integers(cells[0]), rng.integers(cells[1])
        plane[y : min(y + rng.integers(1, 6), cells[0]), x : min(x + rng.integers(1, 6), cells[1])] = 3.0
    logits += torch.from_numpy(rng.normal(0, 0.8, logits.shape).astype(np.float32))
    masks = logits > 0
    masks[:, cells[0] :], masks[:, :, cells[1] :] = False, False
    return Pseudo(masks, logits, torch.zeros(count, dtype=torch.int64), torch.ones(count))


def rectangle(y, x, height, width):
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


def cells_of(points):
    """Rows and columns of the stride-4 cells that points lie in the middle of."""
    columns, rows = ((points - 2) / 4).unbind(-1)
    assert torch.equal(rows, rows.round())
    assert torch.equal(columns, columns.round())
    return rows.long(), columns.long()


def test_centres_of_cells_at_stride_4():
    cells = torch.tensor([[0, 0], [2, 15], [11, 3]])
    assert to_pixels(cells, GRID, SIZE).tolist() == [[2, 2], [62, 10], [14, 46]]


def test_centres_of_cells_when_the_grid_does_not_divide_the_image():
    assert to_pixels(torch.tensor([[1, 2]]), (3, 4), (10, 18))[0].tolist() == pytest.approx([2.5 * 4.5, 1.5 * 10 / 3])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3), st.tuples(st.integers(8, 48), st.integers(8, 64)))
def test_points_of_the_paper_lie_in_their_mask_and_differ(seed, count, draws, content):
    pseudo = blobs(seed, cells=content_cells(GRID, SIZE, content))
    pseudo = Pseudo(*(part[pseudo.masks.flatten(1).any(1)] for part in vars(pseudo).values()))
    points, labels = prompt_points(pseudo, SIZE, content, seeded(seed), count, draws)
    assert points.shape == (len(pseudo), draws, count, 2)
    for mask, some, marks in zip(pseudo.masks, points.flatten(1, 1), labels, strict=True):
        for draw, held in zip(some, marks == 1, strict=True):
            rows, columns = cells_of(draw[held])
            assert mask[rows, columns].all()
            assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(rows)
            assert len(rows) == min(count, int(mask.sum()))  # padding only where the mask has no more cells
    assert set(labels.unique().tolist()) <= {1, PAD_LABEL}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.tuples(st.integers(8, 48), st.integers(8, 64)))
def test_points_of_the_published_code_lie_in_the_content(seed, content):
    pseudo = blobs(seed, cells=content_cells(GRID, SIZE, content))
    points, labels = prompt_points(pseudo, SIZE, content, seeded(seed), 4, 2, "softmax")
    assert (labels == 1).all()  # the smallest content has four cells
    assert (points < torch.tensor([content[1], content[0]])).all()


def test_one_cell_is_drawn_as_often_as_its_weight_says():
    weights = torch.tensor([[0.5, 0.0, 2.0], [1.0, 0.25, 4.25]])
    cells, held = draw_cells(weights.log().expand(40_000, -1, -1), 1, seeded())
    counts = torch.zeros(2, 3).index_put_((cells[:, 0, 0], cells[:, 0, 1]), torch.ones(40_000), accumulate=True)
    assert held.all()
    torch.testing.assert_close(counts / 40_000, weights / 8, atol=0.01, rtol=0)


def test_without_replacement_is_one_draw_after_the_other():
    """Of weights w the pair (i, j) comes with probability w_i w_j / (1 - w_i)."""
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    cells, _ = draw_cells(weights.log()[None].expand(40_000, 1, 4), 2, seeded(1))
    pairs = (cells[:, 0, 1] * 4 + cells[:, 1, 1]).bincount(minlength=16) / 40_000
    for i, j in permutations(range(4), 2):
        expected = float(weights[i] * weights[j] / (1 - weights[i]))
        assert float(pairs[4 * i + j]) == pytest.approx(expected, abs=0.01)
    assert all(pairs[5 * i] == 0 for i in range(4))


def test_weights_of_the_paper_and_of_the_published_code():
    pseudo = blobs(4)
    paper = log_weights(pseudo, GRID, "mask").exp()
    torch.testing.assert_close(paper, pseudo.logits.sigmoid() * pseudo.masks)
    cells = (9, 10)
    published = log_weights(pseudo, cells, "softmax").flatten(1).softmax(1).unflatten(1, GRID)
    expected = pseudo.logits[:, :9, :10].flatten(1).softmax(1).unflatten(1, cells)
    torch.testing.assert_close(published[:, :9, :10], expected)
    assert published[:, 9:].sum() + published[:, :, 10:].sum() == 0


def test_the_published_code_is_far_more_peaked():
    """Figures of the specification: of 1000 logits about N(5, 2), 992 cells count in effect against 215."""
    logits = 5 + 2 * torch.randn((1, 25, 40), generator=seeded(2))
    pseudo = Pseudo(torch.ones_like(logits).bool(), logits, torch.zeros(1, dtype=torch.int64), torch.ones(1))
    share = [log_weights(pseudo, (25, 40), kind).flatten().softmax(0) for kind in ("mask", "softmax")]
    effective = [float(torch.exp(-(p * p.log()).sum())) for p in share]
    assert effective[0] > 960
    assert effective[1] < 400


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_boxes_are_those_of_the_masks(seed):
    masks = blobs(seed, count=5).masks
    masks = masks[masks.flatten(1).any(1)]
    np.testing.assert_array_equal(tight_boxes(masks).numpy(), boxes(masks.numpy()))


def test_neighbours_are_the_nearest_other_objects():
    row = torch.stack([rectangle(2, 0, 3, 2), rectangle(2, 3, 3, 3), rectangle(2, 9, 3, 2), rectangle(2, 14, 3, 2)])
    assert neighbours(row, 2).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert neighbours(row, 5)[0].tolist() == [1, 2, 3, -1, -1]
    assert neighbours(row[:1], 2).tolist() == [[-1, -1]]


def test_of_two_that_touch_the_one_with_the_nearer_centre_is_first():
    masks = torch.stack([rectangle(0, 4, 4, 4), rectangle(0, 8, 12, 8), rectangle(4, 4, 2, 4)])
    assert neighbours(masks, 1)[0].tolist() == [2]


def test_another_guess_at_the_same_object_is_no_neighbour():
    masks = torch.stack([rectangle(2, 2, 6, 6), rectangle(2, 2, 6, 5), rectangle(4, 4, 2, 2), rectangle(10, 12, 2, 2)])
    assert neighbours(masks, 2)[0].tolist() == [3, -1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_background_points_lie_on_others_and_not_on_the_mask_itself(seed, negatives):
    pseudo = blobs(seed, count=4)
    pseudo = Pseudo(*(part[pseudo.masks.flatten(1).any(1)] for part in vars(pseudo).values()))
    points, labels = prompt_points(pseudo, SIZE, SIZE, seeded(seed), 2, 2, "mask", negatives)
    assert points.shape == (len(pseudo), 2, 2 + negatives, 2)
    near = neighbours(pseudo.masks, negatives)
    for index, mask in enumerate(pseudo.masks):
        for rank, other in enumerate(near[index].tolist()):
            place = 2 + rank
            there = pseudo.masks[other] & ~mask if other >= 0 else torch.zeros_like(mask)
            assert ((labels[index, :, place] == 0) == there.any()).all()
            assert (labels[index, :, place] != 1).all()
            if there.any():
                assert there[cells_of(points[index, :, place])].all()


def test_draws_and_seeds():
    pseudo = blobs(1)
    state = torch.get_rng_state()
    first, again, other = (prompt_points(pseudo, SIZE, SIZE, seeded(s), 3, 4)[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(torch.get_rng_state(), state)
