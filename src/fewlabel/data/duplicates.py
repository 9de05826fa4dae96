"""Copies and near copies among the images of a data set, above all of test images among the training images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fewlabel.data.near import near_pairs

NEAR = 6
"""Most bits in which the perceptual hashes of near duplicates differ.

Set on public data: it finds the test images of NUDT-SIRST that share a background with training images, and next to
nothing in NUAA-SIRST and DSB2018, as `tests/data/test_check_real.py` asserts; a larger bound brings in other scenes."""


@dataclass(frozen=True)
class Twin:
    """Two images that are equal or nearly so.

    Attributes:
        first: One image; of a pair across the split the test image.
        second: The other.
        distance: Bits in which their perceptual hashes differ.
        equal: Whether all their pixels are equal.
    """

    first: str
    second: str
    distance: int
    equal: bool


@dataclass(frozen=True)
class Duplicates:
    """Equal and nearly equal images. Per image and part only its nearest twin is named, so the lists stay short.

    Attributes:
        across: Each test image that has a twin among the training images, with the nearest.
        train: Pairs within the training images, likewise.
        test: Pairs within the test images, likewise.
        clusters: All images that are linked by twins, two or more each, in the order of the data set.
    """

    across: tuple[Twin, ...] = ()
    train: tuple[Twin, ...] = ()
    test: tuple[Twin, ...] = ()
    clusters: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.clusters)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` turns back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Duplicates:
        """Read what `to_json` gave."""
        twins = {part: tuple(Twin(**twin) for twin in value[part]) for part in ("across", "train", "test")}
        return cls(**twins, clusters=tuple(tuple(cluster) for cluster in value["clusters"]))


def find_duplicates(
    train: Sequence[str],
    test: Sequence[str],
    hashes: Mapping[str, int],
    digests: Mapping[str, bytes],
    distance: int = NEAR,
) -> Duplicates:
    """Find equal and nearly equal images.

    Args:
        train: Training ids.
        test: Test ids.
        hashes: Perceptual hash of each image.
        digests: Digest of the pixels of each image.
        distance: Most bits in which the hashes of near duplicates differ, 0 to 11.

    Returns:
        The pairs, nearest first, and the clusters that they form.
    """
    ids = [*train, *test]
    if not ids:
        return Duplicates()
    codes = np.array([hashes[id] for id in ids], np.uint64)
    # Images of one code are one node of the search: a camera at rest gives thousands, and millions of pairs of them.
    nodes, node_of = np.unique(codes, return_inverse=True)
    members: list[tuple[list[str], list[str]]] = [([], []) for _ in nodes]
    copies: dict[bytes, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for place, (id, node) in enumerate(zip(ids, node_of.tolist(), strict=True)):
        part = int(place >= len(train))
        members[node][part].append(id)
        copies[digests[id]][part].append(id)
    filled = np.array([[bool(part) for part in parts] for parts in members]).T
    nearest, labels = _search(nodes, filled, distance)

    def twin(id: str, node: int, part: int) -> Twin | None:
        """The nearest image of a part: an equal one, one of the same code, or one of the nearest node."""
        for group, equal in ((copies[digests[id]], True), (members[node], False)):
            other = next((other for other in group[part] if other != id), None)
            if other is not None:
                return Twin(id, other, 0, equal)
        bits, place = divmod(int(nearest[part, node]), len(nodes))
        return Twin(id, members[place][part][0], bits, False) if bits <= distance else None

    places = list(zip(ids, node_of.tolist(), strict=True))
    clusters: dict[int, list[str]] = defaultdict(list)
    for id, node in places:
        clusters[int(labels[node])].append(id)
    return Duplicates(
        across=_sorted(twin(*place, 0) for place in places[len(train) :]),
        train=_sorted(twin(*place, 0) for place in places[: len(train)]),
        test=_sorted(twin(*place, 1) for place in places[len(train) :]),
        clusters=tuple(tuple(cluster) for cluster in clusters.values() if len(cluster) > 1),
    )


def cluster_groups(duplicates: Duplicates) -> dict[str, str]:
    """Groups for `make_split` that keep near duplicates together: each image's cluster, named by its first image."""
    return {id: cluster[0] for cluster in duplicates.clusters for id in cluster}


def _search(nodes: np.ndarray, filled: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """For each node the nearest other node with images of a part, and the number of its cluster.

    Args:
        nodes: uint64 (N,), distinct codes.
        filled: bool (2, N), whether a node has training and test images.
        distance: Most bits that may differ.

    Returns:
        int64 (2, N), for each part distance times N plus the nearest node; and int (N,), the clusters.
    """
    count = len(nodes)
    nearest = np.full((2, count), np.iinfo(np.int64).max)
    labels = np.arange(count)
    for first, second, bits in near_pairs(nodes, distance):
        for one, other in ((first, second), (second, first)):
            for part in (0, 1):
                reached = filled[part, other]
                np.minimum.at(nearest[part], one[reached], bits[reached] * count + other[reached])
        links = coo_array((np.ones(len(first), bool), (labels[first], labels[second])), shape=(count, count))
        labels = connected_components(links, directed=False)[1][labels]
    return nearest, labels


def _sorted(twins: Any) -> tuple[Twin, ...]:
    """Each pair once, equal ones first, then by distance; the order is kept among the others."""
    found: dict[frozenset[str], Twin] = {}
    for twin in twins:
        if twin is not None:
            found.setdefault(frozenset((twin.first, twin.second)), twin)
    return tuple(sorted(found.values(), key=lambda twin: (not twin.equal, twin.distance)))
