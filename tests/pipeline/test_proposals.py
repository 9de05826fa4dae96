"""Numbers of proposals on a map, their overlap with the truth, and the gate's reasons in words."""

import numpy as np
import pytest

from fewlabel.core.masks import encode
from fewlabel.core.types import Instances
from fewlabel.labels.gate import Candidate, GateConfig, decide
from fewlabel.labels.store import PseudoLabel
from fewlabel.pipeline.proposals import because, missed, painted, true_overlaps

SIZE = (12, 20)


def box(top: int, left: int, height: int = 2, width: int = 2) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_proposals_are_numbered_by_verdict_and_the_band_has_no_number() -> None:
    accepted, ignored, rejected = [box(0, 0), box(0, 8)], [box(5, 5)], [box(9, 15)]
    label = PseudoLabel(
        "a",
        SIZE,
        Instances.from_masks(np.stack(accepted)),
        (*map(encode, ignored), encode(box(3, 3, 1, 9))),
        Instances.from_masks(np.stack(rejected)),
        ("confident", "confident", "unsure", "dark"),
    )
    expected = sum(number * mask for number, mask in enumerate((*accepted, *ignored, *rejected), start=1))
    np.testing.assert_array_equal(painted(label), expected)


def test_overlaps_are_intersection_over_union_with_the_best_true_target() -> None:
    labels = 1 * box(0, 0, 2, 3) + 2 * box(6, 6) + 3 * box(10, 0)
    truth = box(0, 1, 2, 4) | box(6, 7, 2, 1) | box(3, 18)
    assert true_overlaps(labels, 3, truth) == pytest.approx([4 / 10, 2 / 4, 0])
    assert missed(labels, truth) == 1  # the one at 3, 18
    assert true_overlaps(labels, 3, None) == [None] * 3 and missed(labels, None) is None
    nothing = np.zeros(SIZE, np.int32)
    assert true_overlaps(nothing, 0, truth) == [] and missed(nothing, truth) == 3
    assert missed(labels, np.zeros(SIZE, bool)) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"area": 2}, "small: 2 px is less than 3 px"),
        ({"area": 500}, "large: 500 px is more than 100 px, 1 % of the image"),
        ({"contrast": -0.5}, "dark: a contrast of -0.50 is not above 0: no brighter than its surroundings"),
        ({"quality": 0.31}, "unsure: a quality of 0.31 is below 0.5"),
        ({"spread": 0.4}, "disputed: a spread over the views of 0.40 is above 0.3"),
        ({"support": 0.02}, "unsupported: a support by the operators of 0.02 is below 0.1"),
        ({}, "confident: within every limit of the gate"),
    ],
)
def test_every_reason_of_the_gate_names_its_figure_and_its_limit(changes: dict[str, float], words: str) -> None:
    gate = GateConfig(min_area=3)
    figures = {"quality": 0.9, "spread": 0.1, "area": 20.0, "contrast": 2.0, "support": 1.0} | changes
    _, reason = decide(Candidate(**figures), 10_000, gate)  # type: ignore[arg-type]
    assert f"{reason}: {because(reason, figures, 10_000, gate)}" == words


def test_a_word_of_another_gate_stays_without_explanation() -> None:
    figures = dict.fromkeys(("quality", "spread", "area", "contrast", "support"), 0.0)
    assert because("elsewhere", figures, 100, GateConfig()) == ""
