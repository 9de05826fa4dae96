"""The gate of the refinement, and the figures that say what refinement did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fewlabel.s4m.refine_gate import RefineGate, RefineStats, accepted, iou_change, mask_iou


def decide(gate, iou=0.8, quality=0.8, area=100, teacher=100):
    values = (torch.tensor([value]) for value in (iou, quality, area, teacher))
    return bool(accepted(*values, gate))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"iou": 0.5}, True),
        ({"iou": 0.49}, False),
        ({"quality": 0.6}, True),
        ({"quality": 0.59}, False),
        ({"area": 80}, True),
        ({"area": 79}, False),
        ({"area": 150}, True),
        ({"area": 151}, False),
    ],
)
def test_each_limit(change, expected):
    gate = RefineGate(min_iou=0.5, min_quality=0.6, min_growth=0.8, max_growth=1.5)
    assert decide(gate, **change) is expected


def test_an_empty_mask_passes_no_gate():
    everything = RefineGate(min_iou=0, min_quality=0, min_growth=0, max_growth=1e9)
    assert decide(everything, iou=0.0, quality=0.0, area=1)
    assert not decide(everything, iou=0.0, quality=0.0, area=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_gate_never_accepts_more(seed, first, second, quality):
    generator = torch.Generator().manual_seed(seed)
    iou, predicted = torch.rand((2, 30), generator=generator)
    areas = torch.randint(1, 200, (2, 30), generator=generator)
    loose, strict = sorted((first, second))
    before = accepted(iou, predicted, *areas, RefineGate(min_iou=loose, min_quality=quality / 2))
    after = accepted(iou, predicted, *areas, RefineGate(min_iou=strict, min_quality=quality))
    assert not (after & ~before).any()


@pytest.mark.parametrize("wrong", [{"min_iou": 1.5}, {"min_growth": 1.5}, {"max_growth": 0.5}, {"tau": 0.5}])
def test_options_are_checked(wrong):
    with pytest.raises(ValidationError):
        RefineGate(**wrong)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_iou_is_that_of_sets_of_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand((2, 4, 5, 6), generator=generator) < torch.rand((2, 4, 1, 1), generator=generator)
    second[0] = first[0]
    first[1], second[1] = False, False
    for a, b, value in zip(first, second, mask_iou(first, second), strict=True):
        pixels, others = ({tuple(spot) for spot in mask.nonzero().tolist()} for mask in (a, b))
        assert float(value) == pytest.approx(len(pixels & others) / max(len(pixels | others), 1))


def test_iou_of_three_answers_with_one_mask():
    masks = torch.rand((2, 3, 5, 6), generator=torch.Generator().manual_seed(0)) < 0.5
    teacher = masks[:, 1]
    values = mask_iou(masks, teacher[:, None])
    assert values.shape == (2, 3)
    assert (values[:, 1] == 1).all()
    assert float(values[1, 2]) == float(mask_iou(masks[1, 2], teacher[1]))


def test_stats_of_images_add_up():
    first = RefineStats(count=4, accepted=3, empty=0, duplicates=1, total_iou=3.2)
    second = RefineStats(count=1, accepted=0, empty=1, total_iou=0.3)
    total = sum((first, second), RefineStats())
    assert total == RefineStats(5, 3, 1, 1, 3.5)
    assert total.acceptance == pytest.approx(0.6)
    assert total.mean_iou == pytest.approx(0.7)
    assert (RefineStats().acceptance, RefineStats().mean_iou) == (0, 0)


def span(first, last):
    mask = torch.zeros((1, 20), dtype=torch.bool)
    mask[0, first:last] = True
    return mask


def test_change_against_the_truth():
    truth = torch.stack([span(0, 6), span(10, 20)])
    before = torch.stack([span(0, 4), span(12, 20), span(7, 9)])
    after = torch.stack([span(0, 6), span(0, 6), span(7, 10)])
    change = iou_change(before, after, truth)
    # The second mask wandered to the other object: a loss, although it covers that one exactly.
    torch.testing.assert_close(change, torch.tensor([[4 / 6, 1.0], [0.8, 0.0], [0.0, 0.0]]))
    assert torch.equal(iou_change(before, after, truth[:0]), torch.zeros(3, 2))
    assert iou_change(before[:0], after[:0], truth).shape == (0, 2)
