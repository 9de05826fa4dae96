"""Pictures of many objects: the image in its colours, each object outlined in a colour of its own or of its fate."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PilImage

from fewlabel.core.errors import RunError
from fewlabel.core.masks import decode
from fewlabel.core.types import Instances
from fewlabel.report.pictures import outline

COLOURS = 8
"""Colours of outlines."""
NUMBERED = 30
"""Most objects of a picture whose scores are written beside them; all are told where the mouse rests."""
FATES = ("accepted", "kept", "dropped")
"""What becomes of a pseudo-label in refinement: SAM's mask, the teacher's mask, none."""


@dataclass(frozen=True, eq=False)
class ObjectPanel:
    """Objects on one copy of a picture.

    Attributes:
        title: What they are.
        note: What else there is to say of them, without a full stop; may be empty.
        objects: The objects, of the picture's size.
        fates: One of `FATES` for each; empty where each has a colour of its own.
        scored: Whether the scores mean something.
    """

    title: str
    note: str
    objects: Instances
    fates: Sequence[str] = ()
    scored: bool = False

    def __post_init__(self) -> None:
        if self.fates and len(self.fates) != len(self.objects):
            raise RunError(
                f"Panel {self.title!r} of the report holds {len(self.objects)} objects and {len(self.fates)} fates;"
                " pass one for each, or none."
            )


@dataclass(frozen=True, eq=False)
class ObjectPicture:
    """One image, or a window of it, with its objects by different sources.

    Attributes:
        id: Name of the image.
        pixels: float32 (3, h, w), any scale; what is shown.
        size: Rows and columns of the whole image.
        panels: The sources.
    """

    id: str
    pixels: np.ndarray
    size: tuple[int, int]
    panels: Sequence[ObjectPanel]

    def __post_init__(self) -> None:
        shown = self.pixels.shape[1:]
        for panel in self.panels:
            if tuple(panel.objects.size) != shown:
                raise RunError(
                    f"Picture {self.id!r} of the report has {shown} pixels but objects of {panel.objects.size} in"
                    f" {panel.title!r}; cut them to the same window."
                )


def draw(picture: ObjectPicture, classes: Sequence[str] = ()) -> dict[str, Any]:
    """A picture as plain values for the template.

    Args:
        picture: The picture.
        classes: Names of the classes by id; told where the mouse rests if there are two or more.

    Returns:
        `id`, `address` of the image, `height` and `width` of what is shown, `extent` in words, and `panels`: title,
        note, count, and per object its look, path, text, score (empty where it is not written) and the place of that.
    """
    height, width = (int(side) for side in picture.pixels.shape[1:])
    part = "" if (height, width) == tuple(picture.size) else f"the middle {height} × {width} px of "
    return {
        "id": picture.id,
        "address": photo_address(picture.pixels),
        "height": height,
        "width": width,
        "extent": f"{part}{picture.size[0]} × {picture.size[1]} px",
        "panels": [
            {
                "title": panel.title,
                "note": panel.note,
                "count": len(panel.objects),
                "objects": _objects(panel, classes),
            }
            for panel in picture.panels
        ],
    }


def _objects(panel: ObjectPanel, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Each object's look, path, text, and corner of its score."""
    objects = panel.objects
    looks = list(panel.fates) or [f"o{number}" for number in distinct_colours(objects.boxes)]
    drawn = []
    for number, look in enumerate(looks):
        x0, y0, x1, y1 = (int(edge) for edge in objects.boxes[number])
        name = classes[int(objects.classes[number])] if len(classes) > 1 else ""
        score = f"{objects.scores[number]:.2f}" if panel.scored else ""
        mask = decode(objects.rles[number])[y0:y1, x0:x1]
        row, column = _inner_pixel(mask)
        drawn.append(
            {
                "look": look,
                "path": outline(mask, y0, x0),
                "text": " ".join(part for part in (name, score, look if panel.fates else "") if part),
                "score": score if len(objects) <= NUMBERED else "",
                "x": x0 + column + 0.5,
                "y": y0 + row + 0.5,
            }
        )
    return drawn


def _inner_pixel(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of the pixel of a mask, bool (H, W), not empty, that is nearest to its middle."""
    rows, columns = np.nonzero(mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return int(rows[nearest]), int(columns[nearest])


def distinct_colours(boxes: np.ndarray) -> list[int]:
    """A colour for each object such that neighbours differ.

    Args:
        boxes: float (N, 4), xyxy in pixel edges.

    Returns:
        N numbers below `COLOURS`: each is the one least used so far among those that no earlier object with a box that
        touches this one's has; among all where its neighbours have them all.
    """
    chosen: list[int] = []
    used = np.zeros(COLOURS, np.int64)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        before = boxes[:number]
        near = (before[:, 0] <= x1) & (before[:, 2] >= x0) & (before[:, 1] <= y1) & (before[:, 3] >= y0)
        taken = {chosen[place] for place in np.flatnonzero(near)}
        free = [colour for colour in range(COLOURS) if colour not in taken] or list(range(COLOURS))
        colour = min(free, key=lambda one: used[one])
        used[colour] += 1
        chosen.append(colour)
    return chosen


def photo_address(pixels: np.ndarray) -> str:
    """Encode a picture in colour as a JPEG in a data address.

    Args:
        pixels: float (3, H, W), any scale; the three channels share it, so that hues stay.

    Returns:
        `data:image/jpeg;base64,...`: linear between the 0.5th and the 99.9th percentile, so that a dark image is seen.
    """
    low, high = np.percentile(pixels, [0.5, 99.9])
    if high <= low:
        low, high = float(pixels.min()), max(float(pixels.max()), float(pixels.min()) + 1)
    levels = (255 * np.clip((pixels - low) / (high - low), 0, 1)).round().astype(np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
