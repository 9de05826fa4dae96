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
    # Arrays of places in `ids` throughout: lists for each of 100,000 images would take more than all that is known of
    # them. Images of one code are one node of the search: a camera at rest gives thousands, and millions of pairs.
    codes = np.fromiter((hashes[id] for id in ids), np.uint64, len(ids))
    nodes, node_of = np.unique(codes, return_inverse=True)
    numbers: dict[bytes, int] = {}
    copy_of = np.fromiter((numbers.setdefault(digests[id], len(numbers)) for id in ids), np.int64, len(ids))
    members, copies = (_first_two(groups, len(train)) for groups in (node_of, copy_of))
    nearest, labels = _search(nodes, members[:, :, 0] >= 0, distance)

    def twin(place: int, part: int) -> Twin | None:
        """The nearest image of a part: an equal one, one of the same code, or one of the nearest node."""
        node = int(node_of[place])
        for group, equal in ((copies[part, copy_of[place]], True), (members[part, node], False)):
            other = next((other for other in group.tolist() if other not in (place, -1)), None)
            if other is not None:
                return Twin(ids[place], ids[other], 0, equal)
        bits, near = divmod(int(nearest[part, node]), len(nodes))
        return Twin(ids[place], ids[members[part, near, 0]], bits, False) if bits <= distance else None

    cluster_of = labels[node_of]
    linked = np.flatnonzero(np.bincount(cluster_of)[cluster_of] > 1)
    clusters: dict[int, list[str]] = defaultdict(list)
    for place in linked.tolist():
        clusters[int(cluster_of[place])].append(ids[place])
    training, held_out = range(len(train)), range(len(train), len(ids))
    return Duplicates(
        across=_sorted(twin(place, 0) for place in held_out),
        train=_sorted(twin(place, 0) for place in training),
        test=_sorted(twin(place, 1) for place in held_out),
        clusters=tuple(tuple(cluster) for cluster in clusters.values()),
    )


def _first_two(groups: np.ndarray, train: int) -> np.ndarray:
    """The first two places of each group in each part.

    Args:
        groups: int64 (N,), group of each place, 0..G-1, each with a place.
        train: Places before this one are of the first part, the others of the second.

    Returns:
        int64 (2, G, 2), -1 where there is none.
    """
    count = int(groups.max()) + 1
    found = np.full((2, count, 2), -1, np.int64)
    for part, places in enumerate((np.arange(train), np.arange(train, len(groups)))):
        order = places[np.argsort(groups[places], kind="stable")]
        names, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
        found[part, names, 0] = order[starts]
        found[part, names[sizes > 1], 1] = order[starts[sizes > 1] + 1]
    return found


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
