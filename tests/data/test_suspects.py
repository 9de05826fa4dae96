"""Labels and predictions that disagree: what is counted, in which order, and why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.data.suspects import compare_labels, rank_suspects


def blob(*spots: tuple[int, int, float], side: int = 3) -> np.ndarray:
    plane = np.zeros((40, 50))
    for row, column, value in spots:
        plane[row : row + side, column : column + side] = value
    return plane


def test_agreement_is_no_suspicion():
    mask = blob((4, 4, 1), (20, 30, 1)) > 0
    same = compare_labels("a", mask, np.where(mask, 0.9, 0.1))
    assert (same.doubt, same.total, same.iou, same.missed, same.invented, same.reasons) == (0, 0, 1, 0, 0, ())
    none = compare_labels("b", np.zeros((8, 8), bool), np.full((8, 8), 0.5))
    assert none.iou == 1 and none.doubt == 0 and rank_suspects([same, none]) == []


def test_a_missing_label_and_one_too_many():
    mask = blob((4, 4, 1), (30, 10, 1)) > 0
    probability = blob((4, 4, 0.9), (30, 10, 0.2), (20, 40, 0.8), (10, 20, 0.95))
    suspect = compare_labels("a", mask, probability)
    assert (suspect.missed, suspect.invented) == (1, 2) and suspect.iou == pytest.approx(9 / 36)
    assert suspect.doubt == pytest.approx(0.95) and suspect.total == pytest.approx(0.95 + 0.8 + 0.8)
    assert suspect.reasons == (
        "2 targets without a label, mean probability 0.95 at row 11, column 21",
        "1 target labelled but not predicted, highest probability 0.20 at row 31, column 11",
    )


def test_an_outline_that_is_off():
    mask = blob((4, 4, 1), side=8) > 0
    suspect = compare_labels("a", mask, blob((6, 6, 0.9), side=4))  # 16 of 64 pixels
    assert suspect.iou == pytest.approx(0.25) and suspect.doubt == pytest.approx(0.5)
    assert suspect.reasons == ("1 target labelled with another outline, IoU 0.25 at row 8, column 8",)
    assert compare_labels("a", mask, blob((4, 4, 0.9), side=6)).doubt == 0  # 36 of 64: as well as one can expect


def test_the_threshold_decides_what_is_predicted():
    probability = blob((4, 4, 0.4))
    assert compare_labels("a", np.zeros((40, 50), bool), probability).invented == 0
    assert compare_labels("a", np.zeros((40, 50), bool), probability, threshold=0.3).doubt == pytest.approx(0.4)


def test_the_worst_target_decides_the_order_then_their_sum():
    empty = np.zeros((40, 50), bool)
    one = compare_labels("one", empty, blob((4, 4, 0.9)))
    two = compare_labels("two", empty, blob((4, 4, 0.9), (20, 20, 0.6)))
    sure = compare_labels("sure", empty, blob((4, 4, 0.99)))
    again = compare_labels("again", empty, blob((4, 4, 0.9)))
    assert [suspect.id for suspect in rank_suspects([one, two, sure, again])] == ["sure", "two", "again", "one"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 0.3))
def test_counts_by_brute_force(seed, share):
    rng = np.random.default_rng(seed)
    mask, probability = rng.random((12, 14)) < share, rng.random((12, 14)) ** 3
    suspect = compare_labels("a", mask, probability)
    near = np.ones((3, 3), int)
    given, count = ndimage.label(mask, near)
    found, others = ndimage.label(probability > 0.5, near)
    missed = [n for n in range(1, count + 1) if not (found[given == n] > 0).any()]
    invented = [n for n in range(1, others + 1) if not mask[found == n].any()]
    assert (suspect.missed, suspect.invented) == (len(missed), len(invented))
    doubts = [1 - probability[given == n].max() for n in missed] + [probability[found == n].mean() for n in invented]
    for n in set(range(1, count + 1)) - set(missed):
        target = given == n
        touching = np.isin(found, [m for m in range(1, others + 1) if (target & (found == m)).any()])
        doubts.append(max(0, 1 - 2 * (target & touching).sum() / (target | touching).sum()))
    assert suspect.doubt == pytest.approx(max(doubts, default=0)) and suspect.total == pytest.approx(sum(doubts))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="'a' has shape .* predict at the size"):
        compare_labels("a", np.zeros((4, 5), bool), np.zeros((5, 4)))
    for value in (-0.1, 1.5, np.nan):
        with pytest.raises(DataError, match="pass probabilities"):
            compare_labels("a", np.zeros((4, 5), bool), np.full((4, 5), value))
