"""What a check found: the counts of a data set, as values, lines for a terminal and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewlabel.data.dataset import Problem
from fewlabel.data.duplicates import Duplicates, Twin

NAMED = 5
"""Most images that a line of the report names."""

CLASSES = 12
"""Most classes that the terminal's lines count."""


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
        targets: Number of targets over all masks (of semantic masks: 8-connected components).
        target_areas: Number of targets by area in pixels: ``"1"``, ``"2-4"`` to ``"9216+"``, by the edges of
            `fewlabel.data.check_count.AREA_EDGES`.
        without_targets: Ids of images whose mask is empty.
        large_targets: Ids of images of which one target covers more than half.
        rejected: What cannot be used, and why; one entry per problem.
        areas: Median target area in pixels of every image with a mask, 0 without targets: `make_split` takes it.
        sizes: Number of images by ``"height x width"``: the most frequent, and all others as ``"other"``.
        classes: Number of targets by the name of their class, in the data set's order.
        class_images: Number of images that show the class, likewise.
        classes_of: Class ids of every image with targets, where there are two classes or more: `make_split` takes it.
        duplicates: Equal and nearly equal images.
        same_labels: Pairs of images of different pixels whose masks are equal, each with the first that has this mask.
        repeated_targets: Ids of images in which two targets have the same mask.
        hollow_targets: Ids of images with a target that has no pixel.
        torn_groups: Groups, such as sequences, of which one image trains and another tests.
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
    sizes: dict[str, int]
    classes: dict[str, int]
    class_images: dict[str, int]
    classes_of: dict[str, tuple[int, ...]]
    duplicates: Duplicates
    same_labels: tuple[tuple[str, str], ...]
    repeated_targets: tuple[str, ...]
    hollow_targets: tuple[str, ...]
    torn_groups: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON value of all counts and lists."""
        value = dict(vars(self))
        value["rejected"] = [{"id": p.id, "file": str(p.file), "reason": p.reason} for p in self.rejected]
        value["duplicates"] = self.duplicates.to_json()
        return value

    def lines(self) -> list[str]:
        """The report as plain lines for a terminal."""
        area = ", ".join(f"{count} of {label} px" for label, count in self.target_areas.items() if count)
        return [
            f"{self.name}: {self.train} training and {self.test} test images, {self.masks} with masks",
            f"sizes: {_span(self.heights)} rows, {_span(self.widths)} columns (smallest, median, largest)",
            f"stored as: {'; '.join(f'{count} x {kind}' for kind, count in self.stored.items()) or 'nothing'}",
            f"targets: {self.targets}" + (f" ({area})" if area else ""),
            *self._class_lines(),
            f"images without targets: {_named(self.without_targets)}",
            *self.warnings(),
            f"rejected: {len(self.rejected)}",
            *([] if self.masks else [_NO_MASKS]),
        ]

    def warnings(self) -> list[str]:
        """What is legal but most likely not meant, one sentence each, with the images."""
        copies, test = self.duplicates, max(self.test, 1)
        share = 100 * len(copies.across) / test
        return [
            text
            for found, text in (
                (
                    self.large_targets,
                    f"a target covers more than half of {_named(self.large_targets)}: if these masks have target and"
                    " background swapped, invert them",
                ),
                (
                    copies.across,
                    f"test images that are training images or nearly so: {_twins(copies.across)}; that is {share:.1f} %"
                    " of the test images, whose scores flatter: report it, or keep such pairs on one side",
                ),
                (copies.train, f"twins among the training images: {_twins(copies.train)}"),
                (copies.test, f"twins among the test images: {_twins(copies.test)}"),
                (
                    self.same_labels,
                    f"different images with the very same mask: {_pairs(self.same_labels)}: look whether one of each"
                    " pair has the other's mask; targets pasted at one place look like that too",
                ),
                (
                    self.repeated_targets,
                    f"two targets have the same mask in {_named(self.repeated_targets)}: remove one of each",
                ),
                (self.hollow_targets, f"a target has no pixel in {_named(self.hollow_targets)}: remove or redraw it"),
                (
                    self.torn_groups,
                    f"groups with training and test images: {_named(self.torn_groups)}: put each on one side",
                ),
            )
            if found
        ]

    def _class_lines(self) -> list[str]:
        """Targets and images of each class, where there is more than one."""
        if len(self.classes) < 2:
            return []
        shown = sorted(self.classes, key=lambda name: -self.classes[name])[:CLASSES]
        more = f" and {len(self.classes) - len(shown)} more classes" if len(self.classes) > len(shown) else ""
        counts = ", ".join(f"{self.classes[name]} {name} in {self.class_images[name]} images" for name in shown)
        absent = [name for name, count in self.classes.items() if not count]
        return [f"classes: {counts}{more}"] + ([f"classes without any target: {_named(absent)}"] if absent else [])


_NO_MASKS = (
    "no labels: no image has a mask, so nothing can be trained; label some training images, in any format of"
    " docs/formats.md; the simplest is a mask (nonzero = target) in masks/ under the name of its image in images/"
)


def _named(names: Sequence[str]) -> str:
    """How many names there are, and the first `NAMED` of them."""
    if not names:
        return "0"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(names[:NAMED])}{more})"


def _twins(twins: Sequence[Twin]) -> str:
    equal = sum(twin.equal for twin in twins)
    names = _named([f"{twin.first} {'=' if twin.equal else '~'} {twin.second}" for twin in twins])
    return f"{names}, {equal} with equal pixels" if equal else names


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _named([f"{one} = {other}" for one, other in pairs])


def _span(extent: tuple[int, int, int]) -> str:
    return ", ".join(str(value) for value in extent)
