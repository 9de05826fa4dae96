"""Splits: nested, stratified, repeatable, and proof against editing."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.split import Split, make_split
from fewlabel.data.split_order import STRATA

IDS = [f"{i:03d}" for i in range(213)]
AREAS = {id: float((i * 37) % 90) for i, id in enumerate(IDS)}


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.001, 1), (0.01, 2), (0.05, 11), (0.1, 21), (0.2, 43), (1.0, 213), (1, 213), (None, 213)]
)
def test_share_is_rounded_to_nearest_and_at_least_one(fraction, count):
    split = make_split(IDS, AREAS, fraction=fraction, seed=0, test_ids=["t"])
    assert len(split.labelled) == count and len(split.unlabelled) == 213 - count and split.test == ("t",)
    assert sorted(split.labelled + split.unlabelled) == IDS
    assert len(split.validation) in ({0} if count == 1 else {max(1, count // 5), count // 5 + 1})


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 120),
    seed=st.integers(0, 2**32),
    fractions=st.lists(st.floats(0.001, 1), min_size=2, max_size=4),
    share=st.one_of(st.just(0.0), st.floats(0, 0.95)),
    masked=st.floats(0.2, 1),
    kinds=st.integers(1, 30),
)
def test_splits_of_a_seed_are_nested(count, seed, fractions, share, masked, kinds):
    ids = [f"i{k}" for k in range(count)]
    areas = {id: float(k % kinds) for k, id in enumerate(ids) if k < max(1, round(masked * count))}
    before = None
    for fraction in sorted(fractions):
        try:
            split = make_split(ids, areas, fraction=fraction, seed=seed, validation_share=share)
        except DataError:
            assert fraction * count + 0.5 >= len(areas)
            break
        assert set(split.labelled) <= set(areas)
        assert Counter(split.labelled + split.unlabelled) == Counter(ids)
        assert split.train, "one labelled image always trains"
        if len(split.labelled) >= 2 and share:
            assert split.validation
        if before is not None:
            assert set(before.train) <= set(split.train) and set(before.validation) <= set(split.validation)
        before = split


def test_two_labelled_give_one_of_each():
    split = make_split(IDS, AREAS, fraction=2 / 213, seed=3)
    assert (len(split.train), len(split.validation)) == (1, 1)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_every_size_group_keeps_its_share(fraction, seed):
    split = make_split(IDS, AREAS, fraction=fraction, seed=seed)
    sized = np.array(sorted(area for area in AREAS.values() if area > 0))
    edges = [part[0] for part in np.array_split(sized, STRATA)]

    def groups(ids: tuple[str, ...]) -> np.ndarray:
        found = [np.searchsorted(edges, AREAS[id], side="right") if AREAS[id] > 0 else 0 for id in ids]
        return np.bincount(found, minlength=STRATA + 1)

    expected = groups(tuple(IDS)) * fraction
    assert np.abs(groups(split.labelled) - expected).max() <= 2  # 1 of the sampling, 1 of areas equal to an edge
    assert np.abs(groups(split.validation) - expected * 0.2).max() <= 2.5


GOLDEN = [
    (0.1, 0, 0.2, "5b0962d2d9a61dee7da058277a74b6224198f2ed1fec5df11e807ea564c14917", "Misc_138", "Misc_40"),
    (0.05, 3, 0.2, "06b167272f12a83b3796f8092e023fdc0b4b47049f679803b38d991021bc2727", "Misc_142", "Misc_7"),
    (None, 7, 0.25, "9b285a359cba4f17b720fadcfdcd9a1ad83388efb79fe6d160285390498c067b", "Misc_83", "Misc_104"),
    (0.02, 1, 0.2, "a7bbffe08e0dfc7f2fb9b3f1b902b4f9e41de6ae0132cfea273f6924c2e911a0", "Misc_50", "Misc_26"),
]
"""Splits that benchmarks were measured with: share, seed, validation share, hash, first training and validation id."""


@pytest.mark.parametrize(("fraction", "seed", "share", "sha256", "first", "held"), GOLDEN)
@pytest.mark.parametrize("options", [{}, {"groups": {}}, {"classes": {}}, {"classes": "one"}, {"groups": "alone"}])
def test_splits_stay_as_benchmarks_know_them(tmp_path, fraction, seed, share, sha256, first, held, options):
    ids = [f"Misc_{i}" for i in range(1, 214)]
    areas = {id: float((i * 37) % 90) for i, id in enumerate(ids)}
    options = dict(options)
    if options.get("classes") == "one":
        options["classes"] = {id: (0,) for id in ids if areas[id]}
    if options.get("groups") == "alone":
        options["groups"] = {id: f"group of {id}" for id in ids}
    split = make_split(
        ids, areas, fraction=fraction, seed=seed, validation_share=share, test_ids=["t1", "t2"], **options
    )
    assert (split.train[0], split.validation[0]) == (first, held)
    if split.groups is None:
        assert split.sha256 == sha256
        split.save(tmp_path / "split.json")
        assert list(json.loads((tmp_path / "split.json").read_text())) == [
            *("seed", "fraction", "train", "validation", "unlabelled", "test", "sha256")
        ]
    plain = make_split(ids, areas, fraction=fraction, seed=seed, validation_share=share, test_ids=["t1", "t2"])
    assert replace(split, groups=None, sha256="") == replace(plain, sha256="")


def test_a_count_gives_exactly_so_many_and_the_same_as_its_fraction():
    for count in (1, 2, 20, 213):
        split = make_split(IDS, AREAS, fraction=None, count=count, seed=4, test_ids=["t"])
        assert len(split.labelled) == count and split.count == count and split.fraction is None
        same = make_split(IDS, AREAS, fraction=count / 213, seed=4, test_ids=["t"])
        assert (split.train, split.validation) == (same.train, same.validation) and split.sha256 != same.sha256
    with pytest.raises(RecipeError, match="both a fraction .* and a count"):
        make_split(IDS, AREAS, fraction=0.1, count=3, seed=0)
    with pytest.raises(RecipeError, match="count is 0"):
        make_split(IDS, AREAS, fraction=None, count=0, seed=0)
    with pytest.raises(DataError, match="count 214 asks for 214 masks, but only 213 exist: lower the count"):
        make_split(IDS, AREAS, fraction=None, count=214, seed=0)


def test_order_of_ids_does_not_matter_and_the_seed_does():
    one = make_split(IDS, AREAS, fraction=0.1, seed=1)
    assert one == make_split(IDS[::-1], dict(reversed(AREAS.items())), fraction=0.1, seed=1)
    assert set(one.labelled) != set(make_split(IDS, AREAS, fraction=0.1, seed=2).labelled)


def test_only_images_with_masks_are_labelled():
    areas = {id: AREAS[id] for id in IDS[:30]}
    split = make_split(IDS, areas, fraction=None, seed=0)
    assert set(split.labelled) == set(IDS[:30]) and len(split.unlabelled) == 183
    assert set(make_split(IDS, areas, fraction=0.1, seed=0).labelled) <= set(IDS[:30])
    with pytest.raises(DataError, match="asks for 43 masks, but only 30 exist"):
        make_split(IDS, areas, fraction=0.2, seed=0)
    with pytest.raises(DataError, match="no training image has a mask"):
        make_split(IDS, {}, fraction=None, seed=0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, 10, float("nan")])
def test_fractions_out_of_range(fraction):
    with pytest.raises(RecipeError, match=r"expected a share in \(0, 1\]"):
        make_split(IDS, AREAS, fraction=fraction, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_validation_share_out_of_range(share):
    with pytest.raises(RecipeError, match="validation_share"):
        make_split(IDS, AREAS, fraction=0.1, seed=0, validation_share=share)


def test_repeated_ids_are_refused():
    with pytest.raises(DataError, match="given twice"):
        make_split([*IDS, "000"], AREAS, fraction=0.1, seed=0)
    with pytest.raises(DataError, match="training and test"):
        make_split(IDS, AREAS, fraction=0.1, seed=0, test_ids=["000"])


def test_file_gives_the_same_split_back(tmp_path):
    groups = {id: id[:2] for id in IDS}
    for options in (
        {"fraction": 0.1},
        {"fraction": None},
        {"fraction": None, "count": 9},
        {"fraction": 0.2, "groups": groups},
    ):
        split = make_split(IDS, AREAS, seed=0, test_ids=["t"], **options)
        split.save(tmp_path / "split.json")
        assert Split.load(tmp_path / "split.json") == split


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["train"].append(value["unlabelled"].pop()),
        lambda value: value["validation"].reverse(),
        lambda value: value.update(seed=9),
        lambda value: value.update(sha256="0" * 64),
        lambda value: value.pop("test"),
        lambda value: value.update(train="000"),
        lambda value: value.update(fraction="much"),
        lambda value: value.update(count=20),
        lambda value: value.update(groups="none"),
    ],
)
def test_edited_files_are_refused(tmp_path, change):
    path = tmp_path / "split.json"
    make_split(IDS, AREAS, fraction=0.1, seed=0).save(path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="split.json .*make the split again"):
        Split.load(path)


def test_published_set_at_ten_percent(real_data: Path):
    data = SirstDataset(real_data / "NUAA-SIRST")
    areas = {id: float(np.median(data.labelled(id).instances.areas())) for id in data.train_ids}
    split = make_split(data.train_ids, areas, fraction=0.1, seed=0, test_ids=data.test_ids)
    assert len(split.labelled) == 21 and len(split.unlabelled) == 192
    assert split.sha256 == "6ae35488674ab5612ef4dfd2ef5712c022c1d32f4112f16d1d76e05b49aee16d"
    for fraction, seed, sha256 in (
        (0.05, 0, "33c883aaf319c9b72966a6add89bf9ca431cb5d5e232f3327dbb2781be74cb00"),
        (0.2, 1, "d699e5a89c3a675994a0151b13a57c11c0918a659530f42f329f71ec3c283fb6"),
        (None, 0, "a4ff4d7a2efa4fe97a05d03ec5881c11ec88a6b82829921bf9a78d8f065c0c11"),
    ):
        assert sha256 == make_split(data.train_ids, areas, fraction=fraction, seed=seed, test_ids=data.test_ids).sha256
