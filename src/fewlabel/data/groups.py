"""Images that belong together, such as the frames of a sequence: a mapping from the id to the name of its group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.data.dataset import Dataset


def dataset_groups(dataset: Dataset) -> dict[str, str]:
    """The groups that a data set's own layout knows of, such as sequences, for all training and test images."""
    return {id: dataset.group(id) for id in (*dataset.train_ids, *dataset.test_ids)}


def pattern_groups(ids: Iterable[str], pattern: str) -> dict[str, str]:
    r"""Groups told from names: what the first group of a regular expression matches.

    ``r"^(.+)_\d+$"`` puts ``road_001`` and ``road_002`` into the group ``road``. The expression may match anywhere in
    the name; anchor it with ``^`` and ``$``.

    Args:
        ids: The images.
        pattern: A regular expression in Python's syntax with at least one group in parentheses.

    Returns:
        The group of each image.

    Raises:
        RecipeError: The expression is not valid or has no group.
        DataError: A name does not match, or its group is empty: it would be unclear where the image belongs.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"The group pattern {pattern!r} is no regular expression ({error}); correct it.") from None
    if not expression.groups:
        raise RecipeError(
            f"The group pattern {pattern!r} has no parentheses; put some around the part of the name that is the group."
        )
    found = {id: match[1] if (match := expression.search(id)) else None for id in ids}
    strangers = sorted(id for id, group in found.items() if not group)
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(found)} image names do not match the group pattern {pattern!r} (such as"
            f" {strangers[0]!r}); widen it, for example with '|', or rename the images."
        )
    return {id: group for id, group in found.items() if group}


def join_groups(*groupings: Mapping[str, str]) -> dict[str, str]:
    """The coarsest need of several groupings: images that any of them holds together are together.

    Args:
        groupings: Each a mapping from the id to a group's name; an id that one of them lacks is alone there.

    Returns:
        One mapping for the ids of all; a group is named after its smallest id.
    """
    parent: dict[str, str] = {}

    def root(id: str) -> str:
        parent.setdefault(id, id)
        while parent[id] != id:
            parent[id] = parent[parent[id]]
            id = parent[id]
        return id

    for grouping in groupings:
        first: dict[str, str] = {}
        for id, group in grouping.items():
            one, other = sorted((root(id), root(first.setdefault(group, id))))
            parent[other] = one
    return {id: root(id) for id in sorted(parent)}
