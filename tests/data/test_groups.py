"""Groups of images: from names, and several groupings at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.data.groups import join_groups, pattern_groups


def test_the_first_group_of_the_pattern_is_the_key():
    ids = ["road_001", "road_002", "sea_1_007"]
    assert pattern_groups(ids, r"^(.+)_\d+$") == {"road_001": "road", "road_002": "road", "sea_1_007": "sea_1"}
    assert pattern_groups(ids, r"(?:road|sea)_(\d)") == {"road_001": "0", "road_002": "0", "sea_1_007": "1"}


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        (r"^(road", RecipeError, "no regular expression"),
        (r"^road", RecipeError, "no parentheses"),
        (r"^(?:road)", RecipeError, "no parentheses"),
        (r"^(road)_", DataError, r"1 of 2 image names do not match .*'sea_1'"),
        (r"^(road)?", DataError, r"1 of 2 image names"),
        (r"^(x*)", DataError, r"2 of 2 image names"),
    ],
)
def test_patterns_that_say_nothing_are_refused(pattern, error, words):
    with pytest.raises(error, match=words):
        pattern_groups(["road_1", "sea_1"], pattern)


def test_joined_groups_hold_together_what_any_of_them_does():
    sequences = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}
    copies = {"a2": "x", "b1": "x", "d": "y", "e": "y"}
    joined = join_groups(sequences, copies)
    assert joined == {"a1": "a1", "a2": "a1", "b1": "a1", "b2": "a1", "c1": "c1", "d": "d", "e": "d"}
    assert join_groups() == {} and join_groups({"a": "b", "b": "a"}) == {"a": "a", "b": "b"}


@given(st.lists(st.dictionaries(st.integers(0, 15), st.integers(0, 8)), max_size=3))
def test_joined_groups_are_the_connected_components(groupings):
    ids = sorted({id for grouping in groupings for id in grouping})
    pairs = [(a, b) for grouping in groupings for a in grouping for b in grouping if grouping[a] == grouping[b]]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    labels = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(16, 16)), directed=False)[1]
    joined = join_groups(*({f"{a:02d}": str(b) for a, b in grouping.items()} for grouping in groupings))
    assert set(joined) == {f"{id:02d}" for id in ids}
    for a in ids:
        assert joined[f"{a:02d}"] == f"{min(b for b in ids if labels[b] == labels[a]):02d}"
