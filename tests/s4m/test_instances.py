"""Objects from logits against a loop over pairs and pixels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.s4m import instances
from fewlabel.s4m.instances import image_instances


def logits(rng, queries=6, classes=3, cells=(9, 11)):
    kinds = torch.from_numpy(rng.normal(0, 2, (queries, classes + 1)).astype(np.float32))
    coarse = torch.from_numpy(rng.normal(-0.5, 3, (1, queries, 3, 4)).astype(np.float32))
    masks = F.interpolate(coarse, size=cells, mode="bicubic")[0]
    masks[0] = -1.0  # a query that sees nothing
    return kinds, masks


def enlarged(cells, y, x, scale=(1.0, 1.0)):
    """The logit at a pixel's centre, bilinear between the centres of cells of four pixels, constant beyond them."""
    places = []
    for place, count, factor in ((y, cells.shape[0], scale[0]), (x, cells.shape[1], scale[1])):
        where = min(max((place + 0.5) * factor / 4 - 0.5, 0.0), count - 1.0)
        low = min(int(where), count - 2) if count > 1 else 0
        places.append((low, min(low + 1, count - 1), where - low))
    (top, bottom, down), (left, right, along) = places
    upper = cells[top, left] * (1 - along) + cells[top, right] * along
    lower = cells[bottom, left] * (1 - along) + cells[bottom, right] * along
    return upper * (1 - down) + lower * down


def brute_force(kinds, masks, content, size, top):
    """(score, class, mask) of each object by falling score, pair by pair and pixel by pixel."""
    rows, columns = math.ceil(content[0] / 4), math.ceil(content[1] / 4)
    scale = (content[0] / size[0], content[1] / size[1])
    probability = {}
    for query, row in enumerate(kinds.double().numpy()):
        for kind in range(len(row) - 1):
            probability[query, kind] = math.exp(row[kind]) / sum(math.exp(value) for value in row)
    found = []
    for query, kind in sorted(probability, key=lambda pair: -probability[pair])[:top]:
        cells = masks[query, :rows, :columns].double().numpy()
        plane = np.array([[enlarged(cells, y, x, scale) for x in range(size[1])] for y in range(size[0])])
        assume(np.abs(plane).min() > 1e-5)  # on which side of 0 it falls is not a matter of rounding
        mask = plane > 0
        if mask.any():
            found.append((probability[query, kind] * np.mean(1 / (1 + np.exp(-plane[mask]))), kind, mask))
    return sorted(found, key=lambda item: -item[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 36), st.integers(1, 44), st.sampled_from([1, 4, 100]))
def test_equals_a_loop_over_pairs_and_pixels(seed, height, width, top):
    kinds, masks = logits(np.random.default_rng(seed))
    expected = brute_force(kinds, masks, (height, width), (height, width), top)
    found = image_instances(kinds, masks, (height, width), top=top, source="teacher")
    assert found.size == (height, width) and found.source == "teacher" and found.round == 0
    assert len(found) == len(expected)
    assert np.allclose(found.scores, [score for score, _, _ in expected], atol=1e-5)
    assert found.scores.dtype == np.float32 and found.classes.dtype == np.int64
    for mask, kind, (_, wanted, truth) in zip(found.masks(), found.classes, expected, strict=True):
        assert kind == wanted
        assert np.array_equal(mask, truth)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 36), st.integers(1, 44)), st.floats(0.4, 2.5))
def test_a_resized_image_has_objects_at_its_own_size(seed, content, factor):
    kinds, masks = logits(np.random.default_rng(seed), queries=3)
    size = (max(1, round(content[0] * factor)), max(1, round(content[1] / factor)))
    expected = brute_force(kinds, masks, content, size, 4)
    found = image_instances(kinds, masks, content, size=size, top=4)
    assert found.size == size and len(found) == len(expected)
    assert np.allclose(found.scores, [score for score, _, _ in expected], atol=1e-5)
    for mask, (_, _, truth) in zip(found.masks(), expected, strict=True):
        assert np.array_equal(mask, truth)


def test_a_known_object_with_its_score_and_box():
    kinds = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    masks = torch.full((2, 8, 8), -50.0)
    masks[0, 2:4, 3:6] = 50.0  # rows 8 to 15, columns 12 to 23
    found = image_instances(kinds, masks, (30, 31), top=1)
    assert found.boxes.tolist() == [[12, 8, 24, 16]] and found.areas().tolist() == [8 * 12 - 4]  # corners are cut
    assert found.scores == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=1e-3)
    assert found.classes.tolist() == [0] and found.source == "student"


def test_no_object_is_no_class_and_one_query_gives_several_classes():
    kinds = torch.tensor([[1.0, 0.9, 5.0]])
    found = image_instances(kinds, torch.ones(1, 2, 2), (8, 8))
    assert found.classes.tolist() == [0, 1] and found.scores[0] > found.scores[1]
    assert found.scores.sum() < 0.1
    assert found.rles[0] == found.rles[1]


def test_padding_has_no_influence():
    kinds, masks = logits(np.random.default_rng(3))
    content = (17, 22)
    changed = masks.clone()
    changed[:, 5:], changed[:, :, 6:] = 40.0, 40.0
    first, second = (image_instances(kinds, cells, content) for cells in (masks, changed))
    assert first.to_json() == second.to_json()


def test_few_masks_at_a_time_give_the_same_and_no_more_are_held(monkeypatch):
    kinds, masks = logits(np.random.default_rng(4), queries=40)
    whole = image_instances(kinds, masks, (36, 44))
    held = []
    cut_out = instances._cut_out
    monkeypatch.setattr(instances, "PIXELS", 3 * 36 * 44 + 5)
    monkeypatch.setattr(instances, "_cut_out", lambda cells, at: (held.append(len(cells)), cut_out(cells, at))[1])
    parts = image_instances(kinds, masks, (36, 44))
    assert (parts.rles, parts.classes.tolist()) == (whole.rles, whole.classes.tolist())
    assert np.allclose(parts.scores, whole.scores) and np.array_equal(parts.boxes, whole.boxes)
    assert max(held) == 3 and sum(held) <= 40


def test_half_precision_is_taken():
    kinds, masks = logits(np.random.default_rng(5))
    found = image_instances(kinds.bfloat16(), masks.bfloat16(), (36, 44))
    exact = image_instances(kinds.bfloat16().float(), masks.bfloat16().float(), (36, 44))
    assert found.to_json() == exact.to_json() and found.scores.dtype == np.float32


def test_nothing_found():
    found = image_instances(torch.zeros(4, 3), torch.full((4, 5, 5), -3.0), (20, 20))
    assert len(found) == 0 and found.masks().shape == (0, 20, 20)


def test_bad_input_is_refused():
    kinds, masks = logits(np.random.default_rng(6))
    for content in ((37, 44), (36, 45), (0, 5)):
        with pytest.raises(DataError, match=f"{content[0]} x {content[1]} pixels does not lie in maps of 9 x 11"):
            image_instances(kinds, masks, content)
    with pytest.raises(DataError, match="image of 0 x 5 pixels were asked for"):
        image_instances(kinds, masks, (36, 44), size=(0, 5))
