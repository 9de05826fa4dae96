"""Twins across and within the parts of a data set, and the groups that they make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data.duplicates import NEAR, Duplicates, Twin, cluster_groups, find_duplicates


def find(train: dict[str, int], test: dict[str, int], equal: dict[str, str] | None = None) -> Duplicates:
    hashes = train | test
    digests = {id: (equal or {}).get(id, id).encode() for id in hashes}
    return find_duplicates(list(train), list(test), hashes, digests)


def test_each_part_and_the_nearest_twin():
    train = {"a": 0, "b": 0b11, "far": 2**63 - 2**20}
    test = {"t": 0b111, "u": 0b11111111 << 40, "v": 0b11111111 << 40 | 1}
    found = find(train, test)
    assert found.across == (Twin("t", "b", 1, False),)
    assert found.train == (Twin("a", "b", 2, False),) and found.test == (Twin("u", "v", 1, False),)
    assert found.clusters == (("a", "b", "t"), ("u", "v"))
    assert cluster_groups(found) == {"a": "a", "b": "a", "t": "a", "u": "u", "v": "u"}


def test_equal_pixels_come_first_and_are_told_from_equal_hashes():
    found = find({"a": 5, "b": 5, "c": 0xFFFF << 40}, {"t": 5, "u": 5, "w": 0xFFFF << 40}, {"t": "b", "w": "c"})
    assert found.across == (Twin("t", "b", 0, True), Twin("w", "c", 0, True), Twin("u", "a", 0, False))
    assert found.train == (Twin("a", "b", 0, False),) and found.test == (Twin("t", "u", 0, False),)


def test_the_limit_and_a_chain():
    codes = {f"i{k}": (1 << 6 * k) - 1 for k in range(4)}  # each 6 bits from the next
    assert NEAR == 6 and find(codes, {}).clusters == (("i0", "i1", "i2", "i3"),)
    assert not find({"a": 0, "b": 0b1111111}, {})
    assert not find({"a": 0}, {"b": 2**64 - 1}) and not find({}, {})


def test_json_there_and_back():
    found = find({"a": 5, "b": 5}, {"t": 4}, {"a": "b"})
    assert Duplicates.from_json(found.to_json()) == found and found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), share=st.floats(0, 1))
def test_same_as_looking_at_all_pairs(seed, count, share):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, 3, dtype=np.uint64)[rng.integers(0, 3, count)]
    for _ in range(4):
        codes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    ids = [f"i{k:02d}" for k in range(count)]
    cut = round(share * count)
    hashes = dict(zip(ids, codes.tolist(), strict=True))
    digests = {id: bytes([hashes[id] % 251, int(rng.integers(2))]) + hashes[id].to_bytes(8, "big") for id in ids}
    found = find_duplicates(ids[:cut], ids[cut:], hashes, digests)

    def rank(one: str, other: str) -> tuple[bool, int]:
        return digests[one] != digests[other], (hashes[one] ^ hashes[other]).bit_count()

    for twins, left, right in ((found.across, ids[cut:], ids[:cut]), (found.train, ids[:cut], ids[:cut])):
        best = {one: min(rank(one, other) for other in right if other != one) for one in left if set(right) - {one}}
        near = {one for one, (_, bits) in best.items() if bits <= NEAR}
        assert all(rank(twin.first, twin.second) == (not twin.equal, twin.distance) for twin in twins)
        assert all(best[twin.first] == (not twin.equal, twin.distance) for twin in twins)
        named = {twin.first for twin in twins}
        assert named == near if twins is found.across else named <= near <= named | {twin.second for twin in twins}
    groups = cluster_groups(found)
    for one in ids:
        for other in ids:
            if (hashes[one] ^ hashes[other]).bit_count() <= NEAR and one != other:
                assert groups[one] == groups[other]


def test_a_camera_at_rest_gives_short_lists():
    count = 20_000
    hashes = {f"{i}": 12345 ^ (1 << i % 30) for i in range(count)}
    found = find_duplicates(list(hashes), [], hashes, {id: id.encode() for id in hashes})
    assert len(found.clusters) == 1 and len(found.train) <= count


@pytest.mark.parametrize("distance", [0, 11])
def test_other_distances(distance):
    hashes = {"a": 0, "b": 2**distance - 1, "c": 2 ** (distance + 13) - 1 << 1}
    found = find_duplicates(list(hashes), [], hashes, {id: id.encode() for id in hashes}, distance)
    assert [(twin.first, twin.second) for twin in found.train] == [("a", "b")]
