"""All pairs of 64-bit codes that differ in a few bits, without comparing every code with every other one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

BLOCKS = 4
"""A code is cut into this many blocks of 16 bits."""

MOST = 11
"""Largest distance: beyond it so many neighbours of a block have to be looked up that comparing all is as quick."""

CHUNK = 1 << 20
"""Candidates compared at a time, which bounds the memory."""

_ONES = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


class Pairs(NamedTuple):
    """Some pairs of codes.

    Attributes:
        first: int64 (P,), index of one code.
        second: int64 (P,), index of the other, the larger one.
        distance: int64 (P,), number of bits in which they differ.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def near_pairs(codes: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Find all pairs within a Hamming distance.

    If two codes differ in at most d bits, one of four blocks differs in at most d // 4 (the pigeonhole principle). So
    for each block, codes are sorted by it, and each code is compared with those alone whose block is among the few
    neighbours of its own. For 100,000 random codes and d = 6 these are 10 million comparisons instead of 5 billion.

    Args:
        codes: uint64 (N,).
        distance: Most bits that may differ, 0 to 11.

    Yields:
        Blocks of pairs, each pair once in all; at most about a million at a time.

    Raises:
        ValueError: ``distance`` is out of range.
    """
    if not 0 <= distance <= MOST:
        raise ValueError(f"distance is {distance}, expected 0 to {MOST}")
    radius = distance // BLOCKS
    blocks = [np.asarray(codes >> np.uint64(16 * block) & np.uint64(0xFFFF), np.int64) for block in range(BLOCKS)]
    flips = [sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in combinations(range(16), r)]
    for block, keys in enumerate(blocks):
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << 16) + 1))
        for flip in flips:
            for first, second in _candidates(keys ^ flip, order, starts):
                apart = [_ONES[np.bitwise_xor(part[first], part[second])] for part in blocks]
                total = np.asarray(np.sum(apart, axis=0, dtype=np.int64))
                # A pair that an earlier block has found is passed over here.
                fresh = (total <= distance) & np.all([earlier > radius for earlier in apart[:block]], axis=0)
                if fresh.any():
                    yield Pairs(first[fresh], second[fresh], total[fresh])


def _candidates(wanted: np.ndarray, order: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j), i < j, where the key of j is ``wanted[i]``; ``starts[k]`` is where key k begins in ``order``."""
    counts = starts[wanted + 1] - starts[wanted]
    total = np.concatenate([[0], np.cumsum(counts)])
    begin = 0
    while begin < len(wanted):
        end = max(begin + 1, int(np.searchsorted(total, total[begin] + CHUNK, side="right")) - 1)
        part = slice(begin, end)
        first = np.repeat(np.arange(begin, end), counts[part])
        offset = np.arange(len(first)) - np.repeat(total[part] - total[begin], counts[part])
        second = order[np.repeat(starts[wanted[part]], counts[part]) + offset]
        ahead = first < second
        yield first[ahead], second[ahead]
        begin = end
