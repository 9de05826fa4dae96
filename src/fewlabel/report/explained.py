"""A page on chosen images: what each part of the method made of them, and why the gate judged as it did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import RunError
from fewlabel.core.files import write_text
from fewlabel.report.contents import Example
from fewlabel.report.page import render
from fewlabel.report.pictures import (
    Mark,
    Window,
    grey_levels,
    grey_palette,
    map_levels,
    map_palette,
    outline,
    pictures,
    png_address,
    reduce_levels,
    window_around,
)
from fewlabel.report.summary import sam_line

SHOWN = 24
"""Most proposals drawn and listed per image: an untrained teacher proposes hundreds."""
MAP_SIDE = 96
"""Longest side of a gate's picture in pixels."""
VERDICTS = ("accepted", "ignored", "rejected")


@dataclass(frozen=True)
class LevelGates:
    """What the router of one level of the encoder decided for one image.

    Attributes:
        level: Name of the level.
        image: E gates of the image as a whole, sum 1.
        tokens: float32 (E, H, W) final gates, aligned with the image, sum 1 over E; None where they are those of
            `image` at every token.
    """

    level: str
    image: Sequence[float]
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Proposal:
    """One target that the teacher proposed, and what the gate said.

    Attributes:
        verdict: `accepted`, `ignored` or `rejected`.
        reason: The gate's word.
        why: The same as a clause with the figure and the limit.
        figures: What the gate looked at, by name.
        truth: IoU with the true target that it overlaps best, 0 where it overlaps none; None where unknown.
    """

    verdict: str
    reason: str
    why: str
    figures: Mapping[str, float]
    truth: float | None = None


@dataclass(frozen=True, eq=False)
class ExplainedImage:
    """One image and all that was made of it.

    Attributes:
        example: The image, its priors, the teacher's probability, the pseudo-label and the student's probability.
        part: What the image was used for, a sentence without its full stop.
        trained: Whether the student was given this pseudo-label.
        proposals: The proposed targets: accepted, ignored, rejected.
        labels: int32 (H, W), number of the proposal at each pixel, from 1 in the order of `proposals`; 0 = none.
        missed: True targets that no proposal overlaps; None where the truth is unknown.
        gates: The router's gates, level by level; empty for a teacher without router.
    """

    example: Example
    part: str
    trained: bool
    proposals: Sequence[Proposal]
    labels: np.ndarray
    missed: int | None = None
    gates: Sequence[LevelGates] = ()

    def __post_init__(self) -> None:
        if self.labels.shape != self.example.image.shape:
            raise RunError(
                f"The proposals of image {self.example.id!r} are drawn on {self.labels.shape} pixels beside an image "
                f"of {self.example.image.shape}; pass labels of the image's size."
            )


@dataclass(frozen=True)
class Explanation:
    """Everything that the page shows. All text is escaped on the page.

    Attributes:
        title: Name of the run.
        data: Name of the data set.
        sam: Name of the SAM that was adapted.
        threshold: Probability of the teacher above which a pixel was proposed.
        operators: Names of the images' priors, in order.
        experts: Names of the E experts that gates choose among.
        images: The images.
        notes: Sentences that a reader must know.
        boxes: Whether the student gives boxes.
    """

    title: str
    data: str
    sam: str
    threshold: float
    operators: Sequence[str]
    experts: Sequence[str]
    images: Sequence[ExplainedImage]
    notes: Sequence[str] = field(default_factory=tuple)
    boxes: bool = False


def build(data: Explanation) -> str:
    """Turn an explanation into one HTML page that loads nothing; a pure function of `data`."""
    return render(
        "explained.html.j2",
        data=data,
        sam=sam_line(data.sam),
        images=[_image(image, data) for image in data.images],
    )


def write(data: Explanation, path: Path) -> None:
    """Write `build(data)` to `path` as UTF-8, atomically."""
    write_text(path, build(data))


def _image(image: ExplainedImage, data: Explanation) -> dict[str, Any]:
    """An image as plain values for the template."""
    drawn = pictures(image.example, data.operators)
    window, count = Window(**drawn["window"]), len(image.example.priors)
    shown = list(enumerate(image.proposals, start=1))[:SHOWN]
    marks = [asdict(_mark(image.labels == number, one.verdict, number, window)) for number, one in shown]
    first, *others = drawn["panels"]
    results = [panel | ({"marks": marks} if panel["title"] == "pseudo-label" else {}) for panel in others[count:]]
    return drawn | {
        "part": image.part,
        "trained": image.trained,
        "results": [first, *results],
        "priors": others[:count],
        "counts": {kind: sum(one.verdict == kind for one in image.proposals) for kind in VERDICTS},
        "proposals": [_row(image, number, one) for number, one in shown],
        "columns": list(image.proposals[0].figures) if image.proposals else [],
        "hidden": len(image.proposals) - len(shown),
        "missed": image.missed,
        "levels": [_level(level) for level in image.gates],
    }


def _mark(mask: np.ndarray, verdict: str, number: int, window: Window) -> Mark:
    """Outline and number of a proposal, bool (H, W): in the whole picture, and in the window where it is seen there."""
    rows, columns = np.nonzero(mask)
    zoom = outline(window.cut(mask))
    return Mark(verdict, number, int(columns.max()) + 1, int(rows.min()), outline(mask), zoom)


def _row(image: ExplainedImage, number: int, proposal: Proposal) -> dict[str, Any]:
    """A proposal for the table: its figures, and a picture of its surroundings with its outline."""
    mask = image.labels == number
    rows, columns = np.nonzero(mask)
    window = window_around(mask)
    truth = image.example.truth
    return {
        "number": number,
        "verdict": proposal.verdict,
        "reason": proposal.reason,
        "why": proposal.why,
        "place": f"{(rows.min() + rows.max()) // 2}, {(columns.min() + columns.max()) // 2}",
        "figures": list(proposal.figures.values()),
        "truth": proposal.truth,
        "side": window.size,
        "picture": png_address(grey_levels(window.cut(image.example.image)), grey_palette()),
        "outline": outline(window.cut(mask)),
        "truth_outline": "" if truth is None else outline(window.cut(truth)),
    }


def _level(level: LevelGates) -> dict[str, Any]:
    """The gates of one level: per expert the image gate and, where tokens differ, a picture of the final gate.

    The pictures of a level share a scale from 0 to twice an even choice, or to the level's highest gate if that is
    more, so that they can be compared with each other.
    """
    cells: list[dict[str, Any]] = [{"image": float(gate), "picture": ""} for gate in level.image]
    if level.tokens is None:
        return {"level": level.level, "cells": cells, "top": None}
    top = max(min(2 / len(level.image), 1.0), float(level.tokens.max()))
    height, width = level.tokens.shape[1:]
    factor = -(-max(height, width) // MAP_SIDE)
    for cell, tokens in zip(cells, level.tokens, strict=True):
        small = reduce_levels(map_levels(tokens / top, unit=True), factor)
        cell["picture"] = png_address(small, map_palette())
        cell |= {"mean": float(tokens.mean()), "low": float(tokens.min()), "high": float(tokens.max())}
    size = {"height": -(-height // factor), "width": -(-width // factor)}
    return {"level": level.level, "cells": cells, "top": top, **size}
