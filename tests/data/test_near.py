"""Codes that differ in a few bits: the same pairs as comparing all, each once, and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data import near
from fewlabel.data.near import MOST, near_pairs


def brute_force(codes: np.ndarray, distance: int) -> dict[tuple[int, int], int]:
    values = [int(code) for code in codes]
    found = {}
    for i, one in enumerate(values):
        for j in range(i + 1, len(values)):
            if (bits := (one ^ values[j]).bit_count()) <= distance:
                found[i, j] = bits
    return found


def all_pairs(codes: np.ndarray, distance: int) -> list[tuple[tuple[int, int], int]]:
    return [
        ((int(i), int(j)), int(bits))
        for pairs in near_pairs(codes, distance)
        for i, j, bits in zip(pairs.first, pairs.second, pairs.distance, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), flips=st.integers(0, 14), distance=st.integers(0, MOST))
def test_same_pairs_as_comparing_all_and_each_once(seed, count, flips, distance):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 4, dtype=np.uint64)
    codes = base[rng.integers(0, 4, count)]
    for _ in range(flips):
        codes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    found = all_pairs(codes, distance)
    assert len(found) == len(dict(found)) and dict(found) == brute_force(codes, distance)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_pairs_do_not_depend_on_how_many_candidates_are_compared_at_a_time(monkeypatch, chunk):
    codes = np.random.default_rng(0).integers(0, 40, 80, dtype=np.uint64)
    monkeypatch.setattr(near, "CHUNK", chunk)
    assert dict(all_pairs(codes, 4)) == brute_force(codes, 4)


@pytest.mark.parametrize("distance", [-1, MOST + 1])
def test_distances_out_of_range(distance):
    with pytest.raises(ValueError, match="expected 0 to 11"):
        next(near_pairs(np.zeros(2, np.uint64), distance))


def test_a_hundred_thousand_codes_take_seconds():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    codes[50_000] = codes[7] ^ np.uint64(0b111 << 30 | 0b111)
    began = time.process_time()
    assert dict(all_pairs(codes, 6)) == {(7, 50_000): 6}
    assert time.process_time() - began < 10  # 1 s on an idle core; comparing all takes minutes
