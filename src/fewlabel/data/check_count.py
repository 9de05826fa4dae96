"""From what is kept of each image to the report of a check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fewlabel.data.check_report import CheckReport
from fewlabel.data.dataset import Dataset, Problem
from fewlabel.data.duplicates import find_duplicates

AREA_EDGES = (1, 2, 5, 10, 25, 81, 1024, 9216)
"""Lower edges of the target area histogram in pixels; above 80 px a target no longer counts as small (SPIE), and from
32 x 32 and 96 x 96 px on as medium and large (COCO)."""

SIZES = 12
"""Most image sizes that are counted one by one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is kept of one usable image: some numbers, never pixels.

    Attributes:
        id: The image.
        size: Rows and columns.
        stored: What its file holds, such as ``"uint16, 16 bit, 1 channel"``.
        hash: Perceptual hash of its grey values.
        digest: Digest of its pixels.
        labels: What its labels hold, or None without any.
    """

    id: str
    size: tuple[int, int]
    stored: str
    hash: int
    digest: bytes
    labels: LabelFinding | None


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """What is kept of the labels of one image.

    Attributes:
        areas: Number of targets by area, one for each of `AREA_EDGES`.
        median: Median area in pixels; 0 without targets.
        largest: Largest area.
        classes: Number of targets by class id.
        digest: Digest of masks and classes; None without targets.
        repeated: Targets whose mask another target of the image has too.
        hollow: Targets without a pixel.
    """

    areas: tuple[int, ...]
    median: float
    largest: int
    classes: tuple[tuple[int, int], ...]
    digest: bytes | None
    repeated: int
    hollow: int


def make_report(dataset: Dataset, good: Sequence[Finding], problems: Sequence[Problem]) -> CheckReport:
    """Count over the usable images of a data set.

    Args:
        dataset: Tells parts, classes and groups; no file is opened.
        good: The usable images.
        problems: What cannot be used.

    Returns:
        The report.
    """
    by_id = {finding.id: finding for finding in good}
    train, test = ([id for id in part if id in by_id] for part in (dataset.train_ids, dataset.test_ids))
    masked = {finding.id: finding.labels for finding in good if finding.labels is not None}
    bins = np.array([labels.areas for labels in masked.values()], np.int64).reshape(-1, len(AREA_EDGES)).sum(axis=0)
    targets, images = Counter[int](), Counter[int]()
    for labels in masked.values():
        targets.update(dict(labels.classes))
        images.update(number for number, _ in labels.classes)
    sizes = Counter(f"{finding.size[0]} x {finding.size[1]}" for finding in good).most_common()
    classes_of = {id: tuple(number for number, _ in labels.classes) for id, labels in masked.items() if labels.classes}
    other = {"other": sum(count for _, count in sizes[SIZES:])} if len(sizes) > SIZES else {}

    def where(condition: Callable[[LabelFinding], object]) -> tuple[str, ...]:
        return tuple(id for id, labels in masked.items() if condition(labels))

    return CheckReport(
        name=dataset.name,
        train=len(train),
        test=len(test),
        masks=len(masked),
        heights=_extent(finding.size[0] for finding in good),
        widths=_extent(finding.size[1] for finding in good),
        stored=dict(Counter(finding.stored for finding in good).most_common()),
        targets=sum(targets.values()),
        target_areas={_label(i): int(count) for i, count in enumerate(bins)},
        without_targets=where(lambda labels: not labels.classes),
        large_targets=tuple(
            id for id, labels in masked.items() if 2 * labels.largest > by_id[id].size[0] * by_id[id].size[1]
        ),
        rejected=tuple(problems),
        areas={id: labels.median for id, labels in masked.items()},
        sizes=dict(sizes[:SIZES]) | other,
        classes={name: targets[number] for number, name in enumerate(dataset.classes)},
        class_images={name: images[number] for number, name in enumerate(dataset.classes)},
        classes_of=classes_of if len(targets) > 1 else {},
        duplicates=find_duplicates(train, test, {f.id: f.hash for f in good}, {f.id: f.digest for f in good}),
        same_labels=tuple(_same_labels(by_id[id] for id in (*train, *test))),
        repeated_targets=where(lambda labels: labels.repeated),
        hollow_targets=where(lambda labels: labels.hollow),
        torn_groups=tuple(sorted({dataset.group(id) for id in train} & {dataset.group(id) for id in test})),
    )


def area_bins(areas: np.ndarray) -> tuple[int, ...]:
    """Number of targets by area, int64 (N,), for each of `AREA_EDGES`; targets without a pixel are in none."""
    bins = np.searchsorted(AREA_EDGES, areas[areas > 0], side="right") - 1
    return tuple(np.bincount(bins, minlength=len(AREA_EDGES)).tolist())


def _same_labels(findings: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Images whose labels equal those of an earlier image of other pixels, with that image."""
    seen: dict[bytes, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.labels is None or finding.labels.digest is None:
            continue
        earlier = seen[finding.labels.digest]
        other = next((one for one in earlier if one.digest != finding.digest), None)
        if other is not None:
            yield finding.id, other.id
        if len(earlier) < 2 and (not earlier or other is not None):  # two of different pixels answer every question
            earlier.append(finding)


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
