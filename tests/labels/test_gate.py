import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewlabel.labels.gate import Candidate, GateConfig, decide

GOOD = {"quality": 0.9, "spread": 0.05, "area": 12, "contrast": 3.0, "support": 0.4}
CONFIG = GateConfig(min_quality=0.5, max_spread=0.2, min_area=2, max_area_share=0.01, min_contrast=0.5, min_support=0.2)


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
        ({"support": 0.2}, ("accepted", "confident")),
        ({"support": 0.19}, ("ignored", "unsupported")),
        ({"support": 0.0, "spread": 0.3}, ("ignored", "disputed")),
        ({"support": 0.0, "contrast": 0.4}, ("rejected", "dark")),
    ],
)
def test_each_rule(change, expected):
    assert decide(Candidate(**(GOOD | change)), 100 * 100, CONFIG) == expected


@given(
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.integers(1, 5000),
    st.floats(-5, 20),
    st.floats(0, 2),
    st.floats(0, 0.2),
    st.floats(0, 0.2),
)
def test_better_evidence_never_lowers_the_verdict(quality, spread, area, contrast, support, more, less):
    rank = {"rejected": 0, "ignored": 1, "accepted": 2}
    before, _ = decide(Candidate(quality, spread, area, contrast, support), 10_000, CONFIG)
    better = Candidate(quality + more, spread - less, area, contrast + more, support + more)
    after, _ = decide(better, 10_000, CONFIG)
    assert rank[after] >= rank[before]


def test_without_a_limit_nothing_is_unsupported():
    config = CONFIG.model_copy(update={"min_support": 0.0})
    assert decide(Candidate(**(GOOD | {"support": 0.0})), 100 * 100, config) == ("accepted", "confident")


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="min_qality"):
        GateConfig(min_qality=0.3)
