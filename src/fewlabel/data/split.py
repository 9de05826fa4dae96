"""Which training images count as labelled, which of those validate, and a file that proves it later.

One seed gives one order of the images that have masks; a fraction takes the front of that order. So the splits of one
seed are nested: what is labelled (and what validates) at 5 % also is at 10 % and at 20 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.core.files import read_json, sha256_json, write_json

STRATA = 4
"""Groups of equal count by target size; images without a target form one more."""


@dataclass(frozen=True)
class Split:
    """A data set's ids by their use. Every id is in exactly one of the four parts.

    Attributes:
        seed: What the order was drawn from.
        fraction: Labelled share of the training images, or None: every image that has a mask is labelled.
        train: Labelled ids that train.
        validation: Labelled ids that choose among models; part of the labelled share.
        unlabelled: Training ids whose masks, if any, are not looked at.
        test: Held-out ids.
        sha256: Hash of all the above.
    """

    seed: int
    fraction: float | None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    unlabelled: tuple[str, ...]
    test: tuple[str, ...]
    sha256: str

    @property
    def labelled(self) -> tuple[str, ...]:
        """Training and validation ids together."""
        return self.train + self.validation

    def save(self, path: Path) -> None:
        """Write the split as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, is no split, or its ids do not match its hash.
        """
        value = read_json(path)
        try:
            split = cls(
                seed=int(value["seed"]),
                fraction=None if value["fraction"] is None else float(value["fraction"]),
                train=_ids(value["train"]),
                validation=_ids(value["validation"]),
                unlabelled=_ids(value["unlabelled"]),
                test=_ids(value["test"]),
                sha256=str(value["sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a split file ({error}): make the split again.") from error
        if split.sha256 != _hash(split):
            raise DataError(f"{path} was edited: its ids do not match its sha256, so make the split again.")
        return split


def make_split(
    ids: Sequence[str],
    areas: Mapping[str, float],
    *,
    fraction: float | None,
    seed: int,
    validation_share: float = 0.2,
    test_ids: Sequence[str] = (),
) -> Split:
    """Choose the labelled images and their validation part, stratified by target size.

    The number of labelled images is ``fraction`` of all ``ids``, rounded to nearest (halves up), at least one. Images
    are grouped by target size into quartiles and one group without targets; every front part of the order holds each
    group in proportion, to about one image. Of n labelled images about ``validation_share`` validate: exactly one of
    two, none of one.

    Args:
        ids: The training ids; their order does not matter.
        areas: Target size (any measure, such as the median area in pixels; 0 = no target) of the images with masks.
        fraction: Labelled share of the training images in (0, 1], or None to use every mask.
        seed: Decides the order of images.
        validation_share: Share of the labelled images that validate, in [0, 1).
        test_ids: Held-out ids, recorded in the split.

    Returns:
        The split; its parts keep the drawn order (train, validation) or are sorted (unlabelled); test is as given.

    Raises:
        RecipeError: ``fraction`` or ``validation_share`` is out of range.
        DataError: An id is repeated or in both parts, or there are fewer masks than labelled images.
    """
    if fraction is not None and not 0 < fraction <= 1:
        raise RecipeError(f"fraction is {fraction}, expected a share in (0, 1]: write 0.1 for 10 % of the images.")
    if not 0 <= validation_share < 1:
        raise RecipeError(f"validation_share is {validation_share}, expected a share in [0, 1): write 0.2 for 20 %.")
    _refuse_repeats(ids, test_ids)
    masked = sorted(set(ids) & set(areas))
    count = len(masked) if fraction is None else max(1, math.floor(fraction * len(ids) + 0.5))
    if not masked:
        raise DataError("no training image has a mask: add masks for the images that are to be labelled.")
    if count > len(masked):
        raise DataError(
            f"fraction {fraction} of {len(ids)} training images asks for {count} masks, but only {len(masked)} exist: "
            "lower the fraction or add masks."
        )
    rng = np.random.default_rng(seed)
    order, strata = _stratified_order(masked, np.array([areas[id] for id in masked], np.float64), rng)
    validates = _validation_places(strata, validation_share)
    train = tuple(id for id, held in zip(order[:count], validates[:count], strict=True) if not held)
    validation = tuple(id for id, held in zip(order[:count], validates[:count], strict=True) if held)
    unlabelled = tuple(sorted(set(ids) - set(order[:count])))
    split = Split(seed, fraction, train, validation, unlabelled, tuple(test_ids), "")
    return Split(**{**asdict(split), "sha256": _hash(split)})


def _stratified_order(ids: list[str], areas: np.ndarray, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """All ids in an order whose every front part holds each size group in proportion, and the group of each."""
    shuffled = rng.permutation(len(ids))  # decides between equal areas
    ranked = shuffled[np.argsort(areas[shuffled], kind="stable")]
    empty, sized = ranked[areas[ranked] <= 0], ranked[areas[ranked] > 0]
    places: list[tuple[float, float, int, int]] = []
    for stratum, members in enumerate([empty, *np.array_split(sized, STRATA)]):
        # Systematic sampling: member r of n takes the place (r + u) / n on the unit interval.
        start = rng.random()
        for rank, member in enumerate(rng.permutation(members)):
            places.append(((rank + start) / len(members), rng.random(), stratum, int(member)))
    places.sort()
    return [ids[member] for *_, member in places], [stratum for *_, stratum, _ in places]


def _validation_places(strata: Sequence[int], share: float) -> list[bool]:
    """Which places of the order validate, decided from the front so that every front part keeps its choice.

    Of the first n places, n >= 2, at least ``max(1, floor(n * share))`` and at most one more validate. Within each
    block of places that adds one, the place whose group lags most behind its share is taken.
    """
    held = [False] * len(strata)
    if share == 0 or not strata:
        return held
    seen: dict[int, int] = defaultdict(int, {strata[0]: 1})
    chosen: dict[int, int] = defaultdict(int)
    start, done = 1, 0  # the first place trains: a single labelled image is of no use as validation
    for end in range(2, len(strata) + 1):
        seen[strata[end - 1]] += 1
        if max(1, math.floor(end * share + 1e-9)) <= done:
            continue
        best = max(range(start, end), key=lambda place: seen[strata[place]] * share - chosen[strata[place]])
        held[best] = True
        chosen[strata[best]] += 1
        start, done = end, done + 1
    return held


def _refuse_repeats(ids: Sequence[str], test_ids: Sequence[str]) -> None:
    for part, members in (("training", ids), ("test", test_ids)):
        repeated = {id for id in members if members.count(id) > 1} if len(set(members)) < len(members) else set()
        if repeated:
            raise DataError(f"{len(repeated)} {part} ids are given twice ({_some(repeated)}): list each image once.")
    both = set(ids) & set(test_ids)
    if both:
        raise DataError(f"{len(both)} ids are training and test images at once ({_some(both)}): keep each in one part.")


def _hash(split: Split) -> str:
    """SHA-256 over everything but the hash."""
    return sha256_json({key: value for key, value in asdict(split).items() if key != "sha256"})


def _ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(id, str) for id in value):
        raise TypeError("a part is not a list of ids")
    return tuple(value)


def _some(ids: Iterable[str]) -> str:
    """The first ids of a set, for a message."""
    names = sorted(ids)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
