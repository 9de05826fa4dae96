"""Which training images count as labelled, which of those validate, and a file that proves it later.

One seed gives one order of the images that have masks; a fraction or a number takes the front of that order. So the
splits of one seed are nested: what is labelled (and what validates) at 5 % also is at 10 % and at 20 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.core.files import read_json, sha256_json, write_json
from fewlabel.data.split_order import cover_first, rarest_class, stratified_order, validation_places


@dataclass(frozen=True)
class Split:
    """A data set's ids by their use. Every id is in exactly one of the four parts.

    Attributes:
        seed: What the order was drawn from.
        fraction: Labelled share of the training images, or None: see ``count``.
        train: Labelled ids that train.
        validation: Labelled ids that choose among models; part of the labelled share.
        unlabelled: Training ids whose masks, if any, are not looked at.
        test: Held-out ids.
        sha256: Hash of all the above and, where they are set, of what is below.
        count: Number of labelled images that was asked for; None, with no fraction either: every image that has a mask.
        groups: Hash of the grouping that was kept, or None: every image was free.
    """

    seed: int
    fraction: float | None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    unlabelled: tuple[str, ...]
    test: tuple[str, ...]
    sha256: str
    count: int | None = None
    groups: str | None = None

    @property
    def labelled(self) -> tuple[str, ...]:
        """Training and validation ids together."""
        return self.train + self.validation

    def save(self, path: Path) -> None:
        """Write the split as JSON, atomically."""
        write_json(path, _value(self))

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
                count=int(value["count"]) if "count" in value else None,
                groups=str(value["groups"]) if "groups" in value else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a split file ({error}): make the split again.") from error
        if split.sha256 != _hash(split):
            raise DataError(f"{path} was edited: its ids do not match its sha256, so make the split again.")
        return split


@dataclass(frozen=True)
class _Unit:
    """Images that go the same way."""

    ids: tuple[str, ...]
    area: float
    classes: frozenset[int]


def make_split(
    ids: Sequence[str],
    areas: Mapping[str, float],
    *,
    fraction: float | None,
    seed: int,
    validation_share: float = 0.2,
    test_ids: Sequence[str] = (),
    count: int | None = None,
    classes: Mapping[str, Collection[int]] | None = None,
    class_names: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
) -> Split:
    """Choose the labelled images and their validation part, stratified by class and target size.

    The number of labelled images is ``count``, or ``fraction`` of all ``ids``, rounded to nearest (halves up), at least
    one. Images are grouped by class (the rarest that they show), within it by target size into quartiles, and one group
    without targets; every front part of the order holds each in proportion, to about one image. Of n labelled images
    about ``validation_share`` validate: exactly one of two, none of one.

    With two classes or more, every class that a training image with a mask shows is shown by a labelled image that
    trains; the few images that see to it never validate, so of two there may be none that does.

    With ``groups``, the images of one group are all labelled and train, all labelled and validate, or all unlabelled.
    A group is labelled as a whole or not at all, so one with an image without mask is unlabelled; a fraction is met as
    nearly as whole groups allow, by one group at least, and a count exactly.

    Args:
        ids: The training ids; their order does not matter.
        areas: Target size (any measure, such as the median area in pixels; 0 = no target) of the images with masks.
        fraction: Labelled share of the training images in (0, 1], or None: ``count``, or without it every mask.
        seed: Decides the order of images.
        validation_share: Share of the labelled images that validate, in [0, 1).
        test_ids: Held-out ids, recorded in the split.
        count: Number of labelled images, instead of a fraction.
        classes: Class ids that the targets of each image have; an image that is not named shows none.
        class_names: Their names, for messages.
        groups: Group of each image; one that is not named is alone. Test images are passed over.

    Returns:
        The split; its parts keep the drawn order (train, validation) or are sorted (unlabelled); test is as given.

    Raises:
        RecipeError: ``fraction``, ``count`` or ``validation_share`` is out of range, or both of the former are given.
        DataError: An id is repeated or in both parts; there are fewer masks than labelled images; so few labelled
            images cannot show every class; no number of whole groups makes up ``count``, or every mask is to be used
            but a group has masks for a part of its images.
    """
    _refuse_numbers(fraction, count, validation_share)
    _refuse_repeats(ids, test_ids)
    masked = sorted(set(ids) & set(areas))
    wanted = _wanted(len(ids), len(masked), fraction, count)
    every_mask = fraction is None and count is None
    units = _units(ids, masked, areas, classes or {}, groups or {}, every_mask=every_mask)
    shown = [unit.classes for unit in units]
    _refuse_lack(units, wanted, frozenset(n for id in masked for n in (classes or {}).get(id, ())), class_names)
    rng = np.random.default_rng(seed)
    order, drawn = stratified_order(np.array([unit.area for unit in units], np.float64), rarest_class(shown), rng)
    stratum, kept = dict(zip(order, drawn, strict=True)), 0
    if len(frozenset[int]().union(*shown)) > 1:
        order, kept = cover_first(order, shown)
    sizes = [len(units[number].ids) for number in order]
    taken = _front(sizes, wanted, kept, exact=count is not None)
    if taken < kept:
        raise DataError(_too_few_for_classes([units[number] for number in order[:kept]], taken, class_names))
    validates = validation_places([stratum[number] for number in order], validation_share, sizes, kept)
    train, validation = (
        tuple(
            id
            for number, held in zip(order[:taken], validates[:taken], strict=True)
            if held is part
            for id in units[number].ids
        )
        for part in (False, True)
    )
    split = Split(
        seed=seed,
        fraction=fraction,
        train=train,
        validation=validation,
        unlabelled=tuple(sorted(set(ids) - set(train) - set(validation))),
        test=tuple(test_ids),
        sha256="",
        count=count,
        groups=None if groups is None else sha256_json({id: groups[id] for id in ids if id in groups}),
    )
    return replace(split, sha256=_hash(split))


def _refuse_numbers(fraction: float | None, count: int | None, validation_share: float) -> None:
    if fraction is not None and count is not None:
        raise RecipeError(f"both a fraction ({fraction}) and a count ({count}) of labelled images are given: keep one.")
    if fraction is not None and not 0 < fraction <= 1:
        raise RecipeError(f"fraction is {fraction}, expected a share in (0, 1]: write 0.1 for 10 % of the images.")
    if count is not None and count < 1:
        raise RecipeError(f"count is {count}, expected at least 1 labelled image: write 20 for exactly 20.")
    if not 0 <= validation_share < 1:
        raise RecipeError(f"validation_share is {validation_share}, expected a share in [0, 1): write 0.2 for 20 %.")


def _wanted(images: int, masked: int, fraction: float | None, count: int | None) -> int:
    """Number of labelled images that is asked for; DataError if there are not so many masks."""
    if not masked:
        raise DataError("no training image has a mask: add masks for the images that are to be labelled.")
    wanted = masked if count is None else count
    if fraction is not None:
        wanted = max(1, math.floor(fraction * images + 0.5))
    if wanted > masked:
        asked = f"fraction {fraction} of {images} training images" if count is None else f"count {count}"
        raise DataError(
            f"{asked} asks for {wanted} masks, but only {masked} exist: "
            f"lower the {'fraction' if count is None else 'count'} or add masks."
        )
    return wanted


def _units(
    ids: Sequence[str],
    masked: Sequence[str],
    areas: Mapping[str, float],
    classes: Mapping[str, Collection[int]],
    groups: Mapping[str, str],
    *,
    every_mask: bool,
) -> list[_Unit]:
    """What can be labelled: sorted single images, and groups whose images all have masks, by their first image."""
    members: dict[tuple[bool, str], list[str]] = {}
    for id in sorted(ids):
        members.setdefault((True, groups[id]) if id in groups else (False, id), []).append(id)
    known, units = set(masked), []
    for (_, name), group in members.items():
        with_mask = [id for id in group if id in known]
        if len(with_mask) == len(group):
            area = float(np.median([areas[id] for id in group]))
            units.append(_Unit(tuple(group), area, frozenset(n for id in group for n in classes.get(id, ()))))
        elif with_mask and every_mask:
            raise DataError(
                f"group {name!r} has masks for {len(with_mask)} of its {len(group)} images, so using every mask would"
                " tear it: add the missing masks, remove these images, or give a fraction or count."
            )
    return units


def _refuse_lack(units: Sequence[_Unit], wanted: int, classes: frozenset[int], names: Sequence[str]) -> None:
    """Raise if groups with missing masks leave too few images, or a class that only they show."""
    usable = sum(len(unit.ids) for unit in units)
    if usable < wanted:
        raise DataError(
            f"{wanted} images are to be labelled, but only {usable} are in groups whose images all have masks: add"
            " masks to complete more groups, label fewer, or split without groups."
        )
    missing = classes.difference(*(unit.classes for unit in units))
    if missing:
        raise DataError(
            f"class {_classes(missing, names)} cannot be had: only groups with missing masks show it, so complete one"
            " of them or split without groups."
        )


def _front(sizes: Sequence[int], wanted: int, kept: int, *, exact: bool) -> int:
    """Number of units at the front whose images come nearest to ``wanted``, the fewer of two; DataError as told."""
    totals = list(accumulate(sizes))
    best = min(range(len(totals)), key=lambda place: abs(totals[place] - wanted))
    if exact and totals[best] != wanted:
        fronts, sums = _around(totals[max(kept, 1) - 1 :], wanted), _sums(sizes)  # fewer would not show every class
        said = f"whole groups in the order of this seed make up {fronts} labelled images: ask for so many"
        if wanted in sums:
            raise DataError(f"count is {wanted}, but {said}, give a fraction, or take another seed.")
        nearest = _around(sums, wanted)
        raise DataError(
            f"count is {wanted}, which no whole groups have together, the nearest numbers are {nearest}; {said}, or"
            " give a fraction."
        )
    return best + 1


def _around(totals: Sequence[int], wanted: int) -> str:
    """The nearest of rising numbers below and above another."""
    below, above = [total for total in totals if total < wanted], [total for total in totals if total > wanted]
    return " or ".join(str(total) for total in (*below[-1:], *above[:1]))


def _sums(sizes: Iterable[int]) -> list[int]:
    """Every number of images above 0 that some whole groups have together, in rising order."""
    reached = 1  # bit n: n images can be had
    for size in sizes:
        reached |= reached << size
    return [number for number, bit in enumerate(reversed(f"{reached:b}")) if number and bit == "1"]


def _too_few_for_classes(cover: Sequence[_Unit], taken: int, names: Sequence[str]) -> str:
    """The sentence that names the classes that the first units do not show."""
    shown = frozenset[int]().union(*(unit.classes for unit in cover[:taken]))
    missing = frozenset[int]().union(*(unit.classes for unit in cover)) - shown
    images = sum(len(unit.ids) for unit in cover[:taken])
    return (
        f"{images} labelled image{'' if images == 1 else 's'} cannot show every class, class {_classes(missing, names)}"
        f" cannot be had: label at least {sum(len(unit.ids) for unit in cover)} images, or merge classes."
    )


def _classes(numbers: Iterable[int], names: Sequence[str]) -> str:
    return _some(repr(names[number]) if number < len(names) else str(number) for number in numbers)


def _refuse_repeats(ids: Sequence[str], test_ids: Sequence[str]) -> None:
    for part, members in (("training", ids), ("test", test_ids)):
        repeated = {id for id in members if members.count(id) > 1} if len(set(members)) < len(members) else set()
        if repeated:
            raise DataError(f"{len(repeated)} {part} ids are given twice ({_some(repeated)}): list each image once.")
    both = set(ids) & set(test_ids)
    if both:
        raise DataError(f"{len(both)} ids are training and test images at once ({_some(both)}): keep each in one part.")


def _value(split: Split) -> dict[str, Any]:
    """The split as JSON; what an image-wise split by fraction does not have is left out, so its hash is as ever."""
    return {key: value for key, value in asdict(split).items() if key not in ("count", "groups") or value is not None}


def _hash(split: Split) -> str:
    """SHA-256 over everything but the hash."""
    return sha256_json({key: value for key, value in _value(split).items() if key != "sha256"})


def _ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(id, str) for id in value):
        raise TypeError("a part is not a list of ids")
    return tuple(value)


def _some(ids: Iterable[str]) -> str:
    """The first ids of a set, for a message."""
    names = sorted(ids)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
