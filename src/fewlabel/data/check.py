"""Looking at every file of a data set once, before anything is trained on it.

Errors, which keep an image from being used: a listed id without an image, listed twice, or with two files of one stem;
a file that cannot be read (empty, truncated, no image, NaN); an image of less than 8 pixels in a direction; a mask of
another size; an image of one value (such as all black); a missing mask where one is demanded.
Only counted, because it is legal: an image without targets, a target that covers more than half of its image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_rejected
from fewlabel.core.progress import track
from fewlabel.core.types import Image
from fewlabel.data.dataset import Dataset, Problem, first_of
from fewlabel.data.pixels import FileError

MIN_SIDE = 8
"""Smallest height and width that training and evaluation take."""

AREA_EDGES = (1, 2, 5, 10, 25, 81)
"""Lower edges of the target area histogram in pixels; above 80 px a target no longer counts as small (SPIE)."""

NAMED = 5
"""Most images that a line of the report names."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found. Images that were rejected are in no count but ``rejected``.

    Attributes:
        name: The data set.
        train: Usable training images.
        test: Usable test images.
        masks: Usable images that have a mask.
        heights: Smallest, median and largest height; zeros without images.
        widths: Likewise for the width.
        stored: Number of images by what their files hold, such as ``"uint16, 16 bit, 1 channel"``.
        targets: Number of targets (8-connected components) over all masks.
        target_areas: Number of targets by area in pixels, by the edges `AREA_EDGES`: ``"1"``, ``"2-4"`` to ``"81+"``.
        without_targets: Ids of images whose mask is empty.
        large_targets: Ids of images of which one target covers more than half.
        rejected: What cannot be used, and why; one entry per problem.
        areas: Median target area in pixels of every image with a mask, 0 without targets: `make_split` takes it.
    """

    name: str
    train: int
    test: int
    masks: int
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    stored: dict[str, int]
    targets: int
    target_areas: dict[str, int]
    without_targets: tuple[str, ...]
    large_targets: tuple[str, ...]
    rejected: tuple[Problem, ...]
    areas: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON value of all counts and lists."""
        value = dict(vars(self))
        value["rejected"] = [{"id": p.id, "file": str(p.file), "reason": p.reason} for p in self.rejected]
        return value

    def lines(self) -> list[str]:
        """The report as plain lines for a terminal."""
        area = ", ".join(f"{count} of {label} px" for label, count in self.target_areas.items() if count)
        advice = (
            "no labels: no image has a mask, so nothing can be trained; draw a mask for some training images and put it"
            " into the folder masks/ under the image's name (nonzero = target)"
        )
        swapped = "if these masks have target and background swapped, invert them"
        return [
            f"{self.name}: {self.train} training and {self.test} test images, {self.masks} with masks",
            f"sizes: {_span(self.heights)} rows, {_span(self.widths)} columns (smallest, median, largest)",
            f"stored as: {'; '.join(f'{count} x {kind}' for kind, count in self.stored.items()) or 'nothing'}",
            f"targets: {self.targets}" + (f" ({area})" if area else ""),
            f"images without targets: {_named(self.without_targets)}",
            *(
                [f"a target covers more than half of {_named(self.large_targets)}: {swapped}"]
                if self.large_targets
                else []
            ),
            f"rejected: {len(self.rejected)}",
            *([] if self.masks else [advice]),
        ]


@dataclass(frozen=True)
class _Finding:
    """What one image turned out to be."""

    id: str
    size: tuple[int, int] = (0, 0)
    stored: str = ""
    areas: np.ndarray | None = None
    problem: Problem | None = None


def check(
    dataset: Dataset,
    *,
    keep_going: bool = False,
    require_masks: Collection[str] = (),
    rejected_csv: Path | None = None,
) -> CheckReport:
    """Decode every listed image and mask once.

    Args:
        dataset: The data set; a reader opened with ``strict=False`` also reports what is wrong with its lists.
        keep_going: False: the first problem (after counting all) is raised. True: problems are listed as rejected.
        require_masks: Ids that have to have a mask, for example those that are to be labelled or tested.
        rejected_csv: Where to write the rejected list (columns id, file, reason), also when it is empty.

    Returns:
        The report.

    Raises:
        DataError: There is a problem and ``keep_going`` is False; or, with it, no image is left.
    """
    ids = list(dict.fromkeys((*dataset.train_ids, *dataset.test_ids)))
    known = {problem.id for problem in dataset.problems}
    look = partial(_look, dataset, frozenset(require_masks))
    # Decoders release the interpreter lock, so threads are enough; only small findings are kept, never pixels.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        todo = [id for id in ids if id not in known]
        findings = list(track(threads.map(look, todo), f"checking {dataset.name}", total=len(todo)))
    problems = [*dataset.problems, *(finding.problem for finding in findings if finding.problem is not None)]
    if rejected_csv is not None:
        write_rejected(rejected_csv, ((problem.id, problem.file, problem.reason) for problem in problems))
    if problems and not keep_going:
        raise DataError(first_of(dataset.name, problems))
    good = [finding for finding in findings if finding.problem is None]
    if not good:
        first = f"; the first problem: {problems[0].reason}" if problems else ": add images or exclude fewer."
        raise DataError(f"{dataset.name} has no usable image among the {len(ids)} that it lists{first}")
    return _report(dataset, good, tuple(problems))


def _look(dataset: Dataset, require_masks: frozenset[str], id: str) -> _Finding:
    """Decode one image, and its mask if there is one."""
    try:
        areas = None
        if dataset.has_mask(id):
            labelled = dataset.labelled(id)
            image, areas = labelled.image, labelled.instances.areas()
        else:
            image = dataset.image(id)
    except DataError as error:
        file = error.file if isinstance(error, FileError) else Path(id)
        return _Finding(id, problem=Problem(id, file, str(error)))
    path = image.path or Path(id)
    if min(image.height, image.width) < MIN_SIDE:
        reason = (
            f"{path} is {image.height} x {image.width} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}: remove it."
        )
        return _Finding(id, problem=Problem(id, path, reason))
    if areas is None and id in require_masks:
        reason = (
            f"{path} has no mask, but test images are scored against theirs, or the split draws the labelled share from"
            f" all training images: add the mask of '{id}' or remove the image."
        )
        return _Finding(id, problem=Problem(id, path, reason))
    low = image.pixels.min(axis=(1, 2))
    if (low == image.pixels.max(axis=(1, 2))).all():
        reason = f"{path} holds one value only ({low[0]:g}), so there is nothing to learn or to find in it: remove it."
        return _Finding(id, problem=Problem(id, path, reason))
    return _Finding(id, (image.height, image.width), _stored(image), areas)


def _report(dataset: Dataset, good: list[_Finding], problems: tuple[Problem, ...]) -> CheckReport:
    """Count over the usable images."""
    usable = {finding.id for finding in good}
    masked = {finding.id: finding.areas for finding in good if finding.areas is not None}
    areas = np.concatenate([*masked.values(), np.zeros(0, np.int64)])
    bins = np.searchsorted(AREA_EDGES, areas, side="right") - 1
    return CheckReport(
        name=dataset.name,
        train=sum(id in usable for id in dataset.train_ids),
        test=sum(id in usable for id in dataset.test_ids),
        masks=len(masked),
        heights=_extent(finding.size[0] for finding in good),
        widths=_extent(finding.size[1] for finding in good),
        stored=dict(Counter(finding.stored for finding in good).most_common()),
        targets=len(areas),
        target_areas={_label(i): int((bins == i).sum()) for i in range(len(AREA_EDGES))},
        without_targets=tuple(id for id, values in masked.items() if not len(values)),
        large_targets=tuple(
            finding.id
            for finding in good
            if finding.areas is not None and 2 * finding.areas.max(initial=0) > finding.size[0] * finding.size[1]
        ),
        rejected=problems,
        areas={id: float(np.median(values)) if len(values) else 0.0 for id, values in masked.items()},
    )


def _stored(image: Image) -> str:
    channels = "1 channel" if image.channels == 1 else f"{image.channels} channels"
    return f"{image.dtype}, {image.bit_depth} bit, {channels}"


def _label(index: int) -> str:
    """The name of one histogram bin."""
    low = AREA_EDGES[index]
    if index + 1 == len(AREA_EDGES):
        return f"{low}+"
    high = AREA_EDGES[index + 1] - 1
    return f"{low}" if low == high else f"{low}-{high}"


def _extent(sides: Iterable[int]) -> tuple[int, int, int]:
    values = np.fromiter(sides, np.int64)
    return int(values.min()), int(np.median(values)), int(values.max())


def _named(ids: Sequence[str]) -> str:
    """How many ids there are, and the first `NAMED` of them."""
    if not ids:
        return "0"
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{len(ids)} ({', '.join(ids[:NAMED])}{more})"


def _span(extent: tuple[int, int, int]) -> str:
    return ", ".join(str(value) for value in extent)
