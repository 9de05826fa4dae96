"""Splits with classes and groups: every class is labelled, no group is torn, fronts stay nested."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.split import Split, make_split
from fewlabel.data.split_order import cover_first, rarest_class, validation_places

IDS = [f"{i:03d}" for i in range(200)]
AREAS = {id: 1.0 + (i * 37) % 90 for i, id in enumerate(IDS)}


def shown(split: Split, classes: dict[str, tuple[int, ...]]) -> set[int]:
    return {number for id in split.train for number in classes[id]}


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=6, max_size=60),
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_every_class_is_learnt_and_fronts_are_nested(kinds, counts, seed, share):
    classes = {f"i{k}": tuple(sorted(kind)) for k, kind in enumerate(kinds)}
    areas = {id: float(len(kind)) for id, kind in classes.items()}
    every = {number for kind in kinds for number in kind}
    assume(len(every) > 1)
    before: Split | None = None
    for count in sorted(min(count, len(kinds)) for count in counts):
        try:
            split = make_split(
                list(classes), areas, fraction=None, count=count, seed=seed, classes=classes, validation_share=share
            )
        except DataError as error:
            assert count < len(every) and "cannot show every class" in str(error) and before is None
            continue
        assert len(split.labelled) == count and shown(split, classes) == every
        if before is not None:
            assert set(before.train) <= set(split.train) and set(before.validation) <= set(split.validation)
        before = split


def test_a_rare_class_is_in_every_split_and_others_keep_their_share():
    classes = {id: (0,) if i % 2 else (1,) for i, id in enumerate(IDS)} | {"017": (0, 2)}
    for seed in range(20):
        split = make_split(IDS, AREAS, fraction=0.1, seed=seed, classes=classes)
        assert "017" in split.train and len(split.labelled) == 20
        found = Counter(number for id in split.labelled for number in classes[id])
        assert abs(found[0] - 10) <= 2 and abs(found[1] - 10) <= 2 and found[2] == 1


def test_sizes_are_balanced_within_each_class():
    classes = {id: (i % 2,) for i, id in enumerate(IDS)}
    areas = {id: 1.0 + i for i, id in enumerate(IDS)}  # in the order of the ids, so quartiles are known
    split = make_split(IDS, areas, fraction=0.2, seed=1, classes=classes)
    found = Counter((classes[id][0], (IDS.index(id)) // 50) for id in split.labelled)
    assert all(abs(found[kind, quartile] - 5) <= 1 for kind in (0, 1) for quartile in range(4))


def test_a_class_that_cannot_be_had_is_named():
    classes = {"a": (0,), "b": (1,), "c": (2,), "d": (0,)}
    areas = dict.fromkeys(classes, 4.0)
    with pytest.raises(
        DataError, match="2 labelled images cannot show every class, class 'ship' cannot.* at least 3 im"
    ):
        make_split(list(classes), areas, fraction=0.5, seed=0, classes={**classes, "b": (1,)}, class_names=["ship"] * 3)
    names = ["sky", "sea", "ship"]
    with pytest.raises(DataError, match="class 'ship' cannot be had: only groups with missing masks show it"):
        make_split(
            [*classes, "e"],
            areas,
            fraction=0.4,
            seed=0,
            classes=classes,
            class_names=names,
            groups={"c": "torn", "e": "torn"},
        )


def test_covering_moves_few_units_and_none_where_every_class_is_there_anyway():
    classes = [{0}, {0}, {1}, {0, 2}, {2}, {1}]
    order, kept = cover_first([0, 1, 2, 3, 4, 5], classes)
    assert (order, kept) == ([2, 3, 0, 1, 4, 5], 2)  # 1 and 2 are as rare; the unit that shows 2 shows 0 too
    assert set(order[:4]) == {0, 1, 2, 3}  # the front of 4 held every class before, and holds the same
    assert rarest_class([{0, 1}, {0}, {0}, set()]) == [1, 0, 0, -1]


def grouping(sizes: list[int]) -> dict[str, str]:
    return {f"g{g:02d}i{i:02d}": f"g{g:02d}" for g, size in enumerate(sizes) for i in range(size)}


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    fractions=st.lists(st.floats(0.01, 1), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_groups_are_never_torn_and_fronts_are_nested(sizes, fractions, seed, share):
    groups = grouping(sizes)
    areas = {id: float(i % 7) for i, id in enumerate(groups)}
    before: Split | None = None
    for fraction in sorted(fractions):
        split = make_split(list(groups), areas, fraction=fraction, seed=seed, groups=groups, validation_share=share)
        parts: dict[str, set[str]] = defaultdict(set)
        for part in ("train", "validation", "unlabelled"):
            for id in getattr(split, part):
                parts[groups[id]].add(part)
        assert all(len(found) == 1 for found in parts.values()) and split.train
        assert sorted((*split.labelled, *split.unlabelled)) == sorted(groups)
        wanted = max(1, int(fraction * len(groups) + 0.5))
        assert abs(len(split.labelled) - wanted) < max(sizes)
        assert len(split.validation) <= 1 + len(split.labelled) / 2
        if before is not None:
            assert set(before.train) <= set(split.train) and set(before.validation) <= set(split.validation)
        before = split


def test_a_share_is_met_as_nearly_as_whole_groups_allow():
    groups = grouping([5] * 40)
    areas = dict.fromkeys(groups, 3.0)
    for fraction, count in ((0.1, 20), (0.11, 20), (0.115, 25), (0.001, 5), (1.0, 200)):
        split = make_split(list(groups), areas, fraction=fraction, seed=2, groups=groups)
        assert len(split.labelled) == count
        assert abs(len(split.validation) - 0.2 * count) <= 5
    assert len(make_split(list(groups), areas, fraction=None, count=35, seed=2, groups=groups).labelled) == 35
    with pytest.raises(DataError, match="count is 33, .* make up 30 or 35 labelled images"):
        make_split(list(groups), areas, fraction=None, count=33, seed=2, groups=groups)
    with pytest.raises(DataError, match="count is 2, .* make up 5 labelled images"):
        make_split(list(groups), areas, fraction=None, count=2, seed=2, groups=groups)


def test_groups_with_missing_masks_stay_unlabelled():
    groups = grouping([4] * 10)
    areas = {id: 3.0 for id in groups if id != "g03i01"}
    for seed in range(10):
        split = make_split(list(groups), areas, fraction=0.9, seed=seed, groups=groups)
        assert {id for id in groups if id.startswith("g03")} == set(split.unlabelled)
    with pytest.raises(DataError, match="group 'g03' has masks for 3 of its 4 images"):
        make_split(list(groups), areas, fraction=None, seed=0, groups=groups)
    with pytest.raises(DataError, match="39 images are to be labelled, but only 36 are in groups"):
        make_split(list(groups), areas, fraction=None, count=39, seed=0, groups=groups)


def test_test_images_in_groups_are_passed_over_and_the_grouping_is_recorded():
    groups = grouping([2] * 5)
    areas = dict.fromkeys(groups, 3.0)
    one = make_split(list(groups), areas, fraction=0.5, seed=0, groups=groups, test_ids=["t"])
    other = make_split(list(groups), areas, fraction=0.5, seed=0, groups=groups | {"t": "g00"}, test_ids=["t"])
    assert one == other and one.groups is not None and one.test == ("t",)
    assert one.sha256 != make_split(list(groups), areas, fraction=0.5, seed=0, groups=dict.fromkeys(groups, "g")).sha256


def test_an_id_that_is_named_like_a_group_is_not_drawn_into_it():
    groups = {"a": "c", "b": "c"}
    found = {
        make_split(["a", "b", "c"], dict.fromkeys("abc", 1.0), fraction=0.3, seed=seed, groups=groups).labelled
        for seed in range(20)
    }
    assert {frozenset(ids) for ids in found} == {frozenset("c"), frozenset("ab")}


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([1, 1], [False, True]),
        ([5, 100], [False, False]),  # 100 of 105 would validate
        ([100, 5], [False, True]),
        ([5, 100, 5, 5], [False, False, True, True]),  # 23 of 115 are wanted: both small ones
        ([5, 5, 5, 15], [False, True, False, False]),  # 6 of 30 are wanted and 5 are there: 20 would be further off
        ([4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [i in (1, 7) for i in range(10)]),
    ],
)
def test_large_groups_never_validate_more_than_half(sizes, held):
    places = validation_places([(0, 1)] * len(sizes), 0.2, sizes)
    assert places == held
    for end in range(1, len(sizes) + 1):
        done = sum(size for size, chosen in zip(sizes[:end], places, strict=False) if chosen)
        assert done <= sum(sizes[:end]) / 2


def test_order_of_ids_does_not_matter():
    groups, areas = grouping([3] * 9), {id: float(np.sin(i) + 2) for i, id in enumerate(grouping([3] * 9))}
    classes = {id: (i % 3,) for i, id in enumerate(groups)}
    options = {"fraction": 0.5, "seed": 5}
    one = make_split(list(groups), areas, groups=groups, classes=classes, **options)
    other = make_split(
        list(groups)[::-1],
        dict(reversed(areas.items())),
        groups=dict(reversed(groups.items())),
        classes=dict(reversed(classes.items())),
        **options,
    )
    assert one == other


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8), wanted=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_count_that_groups_cannot_meet_names_the_nearest_that_they_can(sizes, wanted, seed):
    groups = {f"g{group}_{member}": f"g{group}" for group, size in enumerate(sizes) for member in range(size)}
    assume(wanted <= len(groups))
    reachable = {sum(some) for count in range(1, len(sizes) + 1) for some in combinations(sizes, count)}

    def labelled(count):
        areas = dict.fromkeys(groups, 1.0)
        return make_split(list(groups), areas, fraction=None, count=count, seed=seed, groups=groups).labelled

    try:
        assert len(labelled(wanted)) == wanted in reachable
    except DataError as error:
        said = str(error)
        assert said.startswith(f"count is {wanted}, ") and said.endswith(".") and "\n" not in said
        nearest = [max((n for n in reachable if n < wanted), default=0), min(n for n in reachable if n > wanted)]
        names = " or ".join(str(number) for number in nearest if number)
        assert (f"the nearest numbers are {names};" in said) == (wanted not in reachable)
        assert ("take another seed" in said) == (wanted in reachable)
        for number in re.search(r"make up (\d+)(?: or (\d+))? labelled", said).groups():
            assert number is None or len(labelled(int(number))) == int(number)
