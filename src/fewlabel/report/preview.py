"""A page that shows what training will see: labelled images, and crops of them as they are placed and varied."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.files import write_text
from fewlabel.report.page import render
from fewlabel.report.pictures import (
    LONGEST,
    grey_levels,
    outline,
    overlay_levels,
    overlay_palette,
    png_address,
    reduce_levels,
)


@dataclass(frozen=True, eq=False)
class View:
    """An image or a crop of one, as a network would be given it.

    Attributes:
        title: What it is.
        image: float32 (H, W), any scale.
        target: bool (H, W).
        weight: float32 (H, W), 0 = ignored in the loss.
        targets: Number of targets that are in it.
    """

    title: str
    image: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    targets: int


@dataclass(frozen=True)
class Row:
    """One image and crops of it.

    Attributes:
        name: The image.
        whole: All of it; None for a rendered scene, which is as large as its crop.
        crops: What training sees.
    """

    name: str
    whole: View | None
    crops: Sequence[View]


@dataclass(frozen=True)
class Preview:
    """Everything that the page shows. All text is escaped on the page.

    Attributes:
        title: Name of the recipe or data set.
        size: Side of the crops in pixels.
        settings: Names and values of the options that vary the crops, with what they mean.
        rows: Labelled images.
        scenes: Rendered scenes, where the recipe trains on some.
    """

    title: str
    size: int
    settings: Sequence[tuple[str, str, str]]
    rows: Sequence[Row]
    scenes: Sequence[Row] = ()


def build(data: Preview) -> str:
    """Turn a preview into one HTML page that loads nothing; a pure function of `data`."""
    return render(
        "preview.html.j2",
        data=data,
        groups=[[_row(row) for row in rows] for rows in (data.rows, data.scenes)],
    )


def write(data: Preview, path: Path) -> None:
    """Write `build(data)` to `path` as UTF-8, atomically."""
    write_text(path, build(data))


def _row(row: Row) -> dict[str, Any]:
    views = ([] if row.whole is None else [row.whole]) + list(row.crops)
    return {"name": row.name, "views": [_view(view) for view in views]}


def _view(view: View) -> dict[str, Any]:
    """A view as plain values: large images are reduced so that no small target is lost, outlines keep every pixel."""
    height, width = view.image.shape
    factor = -(-max(height, width) // LONGEST)
    ignored = overlay_levels(view.image, np.zeros_like(view.target), view.weight)
    levels = reduce_levels(ignored if (view.weight <= 0).any() else grey_levels(view.image), factor)
    return {
        "title": view.title,
        "targets": view.targets,
        "height": height,
        "width": width,
        "picture_height": levels.shape[0] * factor,
        "picture_width": levels.shape[1] * factor,
        "picture": png_address(levels, overlay_palette()),
        "outline": outline(view.target),
    }
