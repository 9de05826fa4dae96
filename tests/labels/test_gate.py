import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewlabel.labels.gate import Candidate, GateConfig, decide

GOOD = {"quality": 0.9, "spread": 0.05, "area": 12, "contrast": 3.0}
CONFIG = GateConfig(min_quality=0.5, max_spread=0.2, min_area=2, max_area_share=0.01, min_contrast=0.5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("accepted", "confident")),
        ({"quality": 0.49}, ("ignored", "unsure")),
        ({"quality": 0.5}, ("accepted", "confident")),
        ({"spread": 0.21}, ("ignored", "disputed")),
        ({"area": 1}, ("rejected", "small")),
        ({"area": 101}, ("rejected", "large")),
        ({"area": 100}, ("accepted", "confident")),
        ({"contrast": 0.5}, ("rejected", "dark")),
        ({"contrast": -1.0, "quality": 0.1}, ("rejected", "dark")),
    ],
)
def test_each_rule(change, expected):
    assert decide(Candidate(**(GOOD | change)), 100 * 100, CONFIG) == expected


@given(
    st.floats(0, 1), st.floats(0, 0.5), st.integers(1, 5000), st.floats(-5, 20), st.floats(0, 0.2), st.floats(0, 0.2)
)
def test_better_evidence_never_lowers_the_verdict(quality, spread, area, contrast, more, less):
    rank = {"rejected": 0, "ignored": 1, "accepted": 2}
    before, _ = decide(Candidate(quality, spread, area, contrast), 10_000, CONFIG)
    after, _ = decide(Candidate(quality + more, spread - less, area, contrast + more), 10_000, CONFIG)
    assert rank[after] >= rank[before]


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="min_qality"):
        GateConfig(min_qality=0.3)
