"""The page of a check: what a data set holds, and pictures of what looks wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_text
from fewlabel.data.check_report import CheckReport
from fewlabel.data.dataset import Dataset
from fewlabel.data.duplicates import NEAR
from fewlabel.report.page import render
from fewlabel.report.pictures import grey_levels, grey_palette, outline, png_address, reduce_levels

SHOWN = 24
"""Most pairs that a section draws."""
LISTED = 100
"""Most rejected images, names and classes that a section lists."""
LONGEST = 128
"""Pictures are reduced by a whole factor until no side is longer (pixels)."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one image.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        drawn_height: Rows of the image that the picture stands for: whole blocks, a little more than the image.
        drawn_width: Columns likewise.
        address: The picture as a PNG data address.
        truth: SVG path of the targets' outline, in pixels of the image; empty without labels.
    """

    height: int
    width: int
    drawn_height: int
    drawn_width: int
    address: str
    truth: str


@dataclass(frozen=True)
class Section:
    """Pairs of images that have something in common.

    Attributes:
        title: What they are.
        text: What that means and what to do.
        pairs: (first id, second id, what they have in common).
    """

    title: str
    text: str
    pairs: Sequence[tuple[str, str, str]]


def sections(report: CheckReport) -> list[Section]:
    """The kinds of pairs that a check has found, without empty ones."""
    copies = report.duplicates
    kinds = (
        (
            "Test images like a training image",
            "The first of each pair is a test image. Its score flatters: the network has seen the scene. Published"
            " lists are left as they are: report the share. In lists of your own, put such pairs on one side.",
            copies.across,
        ),
        (
            "Twins among the training images",
            "They count twice in training. Where one is labelled and the other validates, the choice among models"
            " flatters: split with near duplicates kept together.",
            copies.train,
        ),
        ("Twins among the test images", "They count twice in the scores.", copies.test),
    )
    found = [
        Section(title, text, [(twin.first, twin.second, _likeness(twin.distance, twin.equal)) for twin in twins])
        for title, text, twins in kinds
    ]
    found.append(
        Section(
            "Different images with the very same mask",
            "One of each pair may have got the other's mask. Targets that were pasted at one place look like that too.",
            [(one, other, "same mask") for one, other in report.same_labels],
        )
    )
    return [section for section in found if section.pairs]


def thumbnails(dataset: Dataset, ids: Iterable[str]) -> dict[str, Thumbnail]:
    """Pictures of some images, with their targets; an image that can no longer be read is left out."""
    found = {}
    for id in dict.fromkeys(ids):
        try:
            if dataset.has_mask(id):
                labelled = dataset.labelled(id)
                image, truth = labelled.image, outline(labelled.instances.semantic())
            else:
                image, truth = dataset.image(id), ""
        except DataError:
            continue
        factor = -(-max(image.size) // LONGEST)
        levels = reduce_levels(grey_levels(image.grey()), factor)
        height, width = (factor * side for side in levels.shape)
        found[id] = Thumbnail(*image.size, height, width, png_address(levels, grey_palette()), truth)
    return found


def build(report: CheckReport, pictures: Mapping[str, Thumbnail]) -> str:
    """Turn a check into one HTML page that loads nothing.

    Args:
        report: What was found.
        pictures: Pictures of images by id; a pair of which one is missing is named but not drawn.

    Returns:
        The page; a pure function of its arguments. All text is escaped.
    """
    return render(
        "check.html.j2",
        report=report,
        near=NEAR,
        verdict=_verdict(report),
        warnings=report.warnings(),
        sections=[
            {
                "title": section.title,
                "text": section.text,
                "count": len(section.pairs),
                "pairs": [
                    {
                        "names": (one, other),
                        "likeness": likeness,
                        "pictures": [pictures[one], pictures[other]] if one in pictures and other in pictures else [],
                    }
                    for one, other, likeness in section.pairs[:SHOWN]
                ],
            }
            for section in sections(report)
        ],
        charts=[chart for chart in _charts(report) if chart["rows"]],
        rejected=report.rejected[:LISTED],
        without_targets=report.without_targets[:LISTED],
    )


def write(report: CheckReport, dataset: Dataset, path: Path) -> None:
    """Write the page of a check to `path` as UTF-8, atomically; reads the images that it shows."""
    shown = [id for section in sections(report) for pair in section.pairs[:SHOWN] for id in pair[:2]]
    write_text(path, build(report, thumbnails(dataset, shown)))


def _likeness(distance: int, equal: bool) -> str:
    if equal:
        return "equal pixels"
    return f"{distance} of 64 bits differ" if distance else "equal hash"


def _verdict(report: CheckReport) -> str:
    """One sentence on the whole."""
    images, rejected = report.train + report.test, len({problem.id for problem in report.rejected})
    if rejected:
        return f"{rejected} of {images + rejected} images cannot be used."
    warnings = len(report.warnings())
    if warnings:
        return f"All {images} images can be used; {warnings} thing{'' if warnings == 1 else 's'} to look at."
    return f"All {images} images can be used, and nothing looks wrong."


def _charts(report: CheckReport) -> list[dict[str, Any]]:
    """Histograms as rows of name, count and the bar's length in percent of the largest."""
    classes = {}
    if len(report.classes) > 1:
        shown = sorted(report.classes, key=lambda name: -report.classes[name])[:LISTED]
        classes = {f"{name} (in {report.class_images[name]} images)": report.classes[name] for name in shown}
    tables = (
        ("Target area", "pixels", "targets", report.target_areas if report.targets else {}),
        ("Classes", "class", "targets", classes),
        ("Image size", "rows x columns", "images", report.sizes),
        ("Stored as", "samples", "images", report.stored),
    )
    return [
        {
            "title": title,
            "of": of,
            "unit": unit,
            "rows": [
                {"name": name, "count": count, "bar": 100 * count / max(max(counts.values()), 1)}
                for name, count in counts.items()
            ],
        }
        for title, of, unit, counts in tables
    ]
