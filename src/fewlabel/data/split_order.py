"""The order in which images become labelled, and which of them validate.

Works on units: groups of images that must not be torn apart, most often of one image each. Units are numbers 0..N-1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import accumulate

import numpy as np

STRATA = 4
"""Groups of equal count by target size; units without a target form one more."""


def rarest_class(classes: Sequence[Collection[int]]) -> list[int]:
    """For each unit the one of its classes that the fewest units show, -1 for a unit of no class.

    An image of several classes can be in one stratum only; under its rarest class it is of most use.

    Args:
        classes: Class ids of each unit.

    Returns:
        One class id per unit; the smaller id where two classes are as rare.
    """
    units = Counter(number for found in classes for number in set(found))
    return [min(found, key=lambda number: (units[number], number), default=-1) for found in classes]


def stratified_order(
    areas: np.ndarray, kinds: Sequence[int], rng: np.random.Generator
) -> tuple[list[int], list[tuple[int, int]]]:
    """All units in an order whose every front part holds each stratum in proportion, and the stratum of each.

    Strata are the units without a target and, for each kind, quartiles of the target size.

    Args:
        areas: float (N,), target size of each unit, 0 without targets.
        kinds: (N,), class by which a unit is counted.
        rng: Decides.

    Returns:
        The units, and for each place the stratum (kind, number) of its unit.
    """
    shuffled = rng.permutation(len(areas))  # decides between equal areas
    ranked = shuffled[np.argsort(areas[shuffled], kind="stable")]
    empty, sized = ranked[areas[ranked] <= 0], ranked[areas[ranked] > 0]
    strata = [((-1, 0), empty)]
    of_kind = np.asarray(kinds)
    for kind in sorted(set(of_kind[sized].tolist())) or [0]:
        quartiles = np.array_split(sized[of_kind[sized] == kind], STRATA)
        strata += [((kind, number), members) for number, members in enumerate(quartiles, start=1)]
    places: list[tuple[float, float, tuple[int, int], int]] = []
    for stratum, members in strata:
        # Systematic sampling: member r of n takes the place (r + u) / n on the unit interval.
        start = rng.random()
        for rank, member in enumerate(rng.permutation(members)):
            places.append(((rank + start) / len(members), rng.random(), stratum, int(member)))
    places.sort()
    return [member for *_, member in places], [stratum for *_, stratum, _ in places]


def cover_first(order: Sequence[int], classes: Sequence[Collection[int]]) -> tuple[list[int], int]:
    """Move units to the front that show every class between them.

    For each class, the rarest first, the first unit of the order that shows it is taken unless one taken before does.
    So a front part that held every class anyway holds the same units as before, and front parts stay nested.

    Args:
        order: The units.
        classes: Class ids of each unit.

    Returns:
        The new order, and how many units were put in front.
    """
    units = Counter(number for found in classes for number in set(found))
    front: list[int] = []
    for number in sorted(units, key=lambda number: (units[number], number)):
        if not any(number in classes[unit] for unit in front):
            front.append(next(unit for unit in order if number in classes[unit]))
    chosen = set(front)
    return [*front, *(unit for unit in order if unit not in chosen)], len(front)


def validation_places(
    strata: Sequence[tuple[int, int]], share: float, sizes: Sequence[int], kept: int = 0
) -> list[bool]:
    """Which places of the order validate, decided from the front so that every front part keeps its choice.

    Of the first n >= 2 places of one image each, at least ``max(1, floor(n * share))`` and at most one more validate.
    Within each block of places that adds one, the place whose stratum lags most behind its share is taken. A larger
    unit is taken only where it brings the validating images nearer to their share (the first: where they are at most
    one half); otherwise a smaller or later one is waited for.

    Args:
        strata: Stratum of each place.
        share: Share of the images that validate, in [0, 1).
        sizes: Images of each place.
        kept: Places at the front that train, whatever comes of it.

    Returns:
        For each place whether it validates; the first never does.
    """
    held = [False] * len(strata)
    if share == 0 or not strata:
        return held
    seen: dict[tuple[int, int], int] = defaultdict(int, {strata[0]: 1})
    chosen: dict[tuple[int, int], int] = defaultdict(int)
    first = max(1, kept)  # the first place trains: a single labelled image is of no use as validation
    totals = list(accumulate(sizes))
    start, done = 1, 0

    def fits(place: int) -> bool:
        """Whether a unit of several images brings the front that ends with it nearer to its share."""
        size, aim = sizes[place], totals[place] * share
        nearer = not done or done + size - aim <= aim - done
        return size == 1 or (nearer and done + size <= max(aim, totals[place] / 2))

    for end in range(2, len(strata) + 1):
        seen[strata[end - 1]] += 1
        wanted = max(1, math.floor(totals[end - 1] * share + 1e-9))
        if wanted <= done:
            continue
        fitting = [place for place in range(max(start, first), end) if fits(place)]
        if not fitting:
            continue
        best = max(
            fitting,
            key=lambda place: (
                -abs(done + sizes[place] - wanted),
                seen[strata[place]] * share - chosen[strata[place]],
            ),
        )
        held[best] = True
        chosen[strata[best]] += 1
        start, done = end, done + sizes[best]
    return held
