"""The pictures of an example: small palette PNGs of images and maps, with outlines drawn on top as vectors.

Targets are a few pixels across, so each picture comes twice: whole, and as a window in which every pixel is visible.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image as PilImage

from fewlabel.core.masks import component_boxes, components
from fewlabel.report.contents import Example

GREYS = 64
MAP_LEVELS = 32
LONGEST = 256
"""Whole pictures are reduced by a whole factor until no side is longer (pixels)."""
LEAST, MOST = 32, 96
"""Smallest and largest side of an enlarged window (pixels)."""
ACCEPTED = np.array([255, 150, 20], dtype=np.float32)
IGNORED = np.array([150, 110, 255], dtype=np.float32)


@dataclass(frozen=True)
class Mark:
    """An outline with a number on a picture.

    Attributes:
        verdict: What the gate said, or `found` for a box of the student; decides the colour.
        number: The number of a proposal or the score of a box, written at the upper right of the outline.
        x: Right border of the outline, in pixels of the image.
        y: Upper border.
        whole: SVG path in the whole picture.
        zoom: SVG path in the enlarged window; empty when out of sight.
    """

    verdict: str
    number: int | str
    x: int
    y: int
    whole: str
    zoom: str


@dataclass(frozen=True)
class Panel:
    """One map of an example.

    Attributes:
        title: What it is.
        description: The same in a sentence, for readers who cannot see it.
        whole: Whole map as a PNG data address.
        zoom: Window of the map as a PNG data address, one PNG pixel per image pixel.
        truth: SVG path of the true targets' outline in the window; empty when unknown or out of sight.
        outline: SVG path of the predicted targets' outline in the window; empty when there is none.
        marks: Outlines with numbers on top.
        whole_truth: SVG path of the true targets in the whole picture; empty where it is not drawn there.
    """

    title: str
    description: str
    whole: str
    zoom: str
    truth: str
    outline: str
    marks: tuple[Mark, ...] = ()
    whole_truth: str = ""


@dataclass(frozen=True)
class Window:
    """A square part of an image, in pixels: rows [top, top + size), columns [left, left + size)."""

    top: int
    left: int
    size: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The part of `array` (H, W) or (H, W, 3) inside the window."""
        return array[self.top : self.top + self.size, self.left : self.left + self.size]


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Map an image to display greys.

    Args:
        image: float (H, W), any scale; non-finite pixels count as the lowest value.

    Returns:
        uint8 (H, W) in [0, GREYS): linear between the 0.5th and the 99.9th percentile; 0 for a constant image.
    """
    values = _finite(image)
    low, high = np.percentile(values, [0.5, 99.9])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return _levels(values, float(low), float(high), GREYS)


def map_levels(values: np.ndarray, *, unit: bool = False) -> np.ndarray:
    """Map a response or probability to colour levels.

    Args:
        values: float (H, W); non-finite pixels count as the lowest value.
        unit: Whether the scale is fixed to [0, 1] (probabilities); otherwise it runs from the lowest to the highest
            value.

    Returns:
        uint8 (H, W) in [0, MAP_LEVELS).
    """
    finite = _finite(values)
    low, high = (0.0, 1.0) if unit else (float(finite.min()), float(finite.max()))
    return _levels(finite, low, high, MAP_LEVELS)


def overlay_levels(image: np.ndarray, target: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Map an image with its pseudo-label on top to palette entries of `overlay_palette`.

    Args:
        image: float (H, W).
        target: bool (H, W), accepted target pixels.
        weight: float (H, W), 0 = ignored; None for 1 everywhere.

    Returns:
        uint8 (H, W): grey level, plus GREYS on ignored pixels, plus 2 × GREYS on accepted target pixels.
    """
    ignored = np.zeros(image.shape, dtype=bool) if weight is None else weight <= 0
    kind = np.where(ignored, 1, np.where(target, 2, 0)).astype(np.uint8)
    return grey_levels(image) + kind * np.uint8(GREYS)


def grey_palette() -> np.ndarray:
    """uint8 (GREYS, 3): black to white."""
    return np.repeat(np.linspace(0, 255, GREYS).round().astype(np.uint8)[:, None], 3, axis=1)


def map_palette() -> np.ndarray:
    """uint8 (MAP_LEVELS, 3): the perceptually even colours that matplotlib calls magma."""
    return (colormaps["magma"](np.linspace(0, 1, MAP_LEVELS))[:, :3] * 255).round().astype(np.uint8)


def overlay_palette() -> np.ndarray:
    """uint8 (3 × GREYS, 3): greys, greys under the ignored tint, greys under the accepted colour."""
    grey = grey_palette().astype(np.float32)
    tinted = [grey, 0.5 * grey + 0.5 * IGNORED, 0.25 * grey + 0.75 * ACCEPTED]
    return np.concatenate(tinted).round().astype(np.uint8)


def png_address(levels: np.ndarray, palette: np.ndarray) -> str:
    """Encode palette entries as a PNG in a data address.

    Args:
        levels: uint8 (H, W), entries of `palette`.
        palette: uint8 (P, 3), P <= 256.

    Returns:
        `data:image/png;base64,...`; equal arrays give equal text.
    """
    picture = PilImage.fromarray(np.ascontiguousarray(levels))
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def reduce_levels(levels: np.ndarray, factor: int) -> np.ndarray:
    """Shrink by a whole factor, keeping the highest entry of each block, so that no small bright target is lost.

    Args:
        levels: uint8 (H, W).
        factor: Block side, at least 1.

    Returns:
        uint8 (ceil(H / factor), ceil(W / factor)); blocks at the border repeat the last row and column.
    """
    if factor == 1:
        return levels
    height, width = levels.shape
    padded = np.pad(levels, ((0, -height % factor), (0, -width % factor)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return np.asarray(blocks.max(axis=(1, 3)))


def outline(mask: np.ndarray, top: int = 0, left: int = 0) -> str:
    """SVG path along the pixel edges between a mask and its surroundings.

    Args:
        mask: bool (H, W).
        top: Row of the picture that the mask begins at.
        left: Column of the picture likewise.

    Returns:
        Horizontal and vertical strokes in pixel-edge coordinates (x right, y down; pixel (r, c) of the picture
        covers [c, c + 1] x [r, r + 1]); edges on the border of the array are drawn too. Empty for an empty mask.
    """
    padded = np.pad(mask.astype(bool), 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): edge above row r
    along = padded[1:-1, 1:] != padded[1:-1, :-1]  # (H, W + 1): edge left of column c
    strokes = [f"M{left + start} {top + y}h{length}" for y, row in enumerate(across) for start, length in _runs(row)]
    for x, column in enumerate(along.T, left):
        strokes += [f"M{x} {top + start}v{length}" for start, length in _runs(column)]
    return "".join(strokes)


def box_path(boxes: np.ndarray, window: Window | None = None) -> str:
    """SVG path of rectangles.

    Args:
        boxes: float (N, 4) xyxy in pixel edges of the image.
        window: Draw in its coordinates, without the boxes that lie outside it; None for the whole image.

    Returns:
        One closed rectangle per box, to a tenth of a pixel; parts beyond the picture are left to the page to cut.
    """
    if window is not None:
        boxes = boxes - np.array([window.left, window.top] * 2)
        boxes = boxes[(boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < window.size).all(1)]
    return "".join(f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z" for x0, y0, x1, y1 in boxes)


def find_window(example: Example, least: int = LEAST, most: int = MOST) -> Window:
    """Choose the window to enlarge.

    It lies on a true target that the student missed, if there is one; else on the largest true target; else on the
    largest accepted pseudo-label; else on the highest response of the student, the teacher or the image.

    Args:
        example: The example.
        least: Smallest side in pixels.
        most: Largest side in pixels.

    Returns:
        A square window inside the image; its side is at most the image's shorter side.
    """
    return window_around(_spot(example), least, most)


def window_around(spot: np.ndarray, least: int = LEAST, most: int = MOST) -> Window:
    """A square window on some pixels, twice as large as their extent.

    Args:
        spot: bool (H, W), not empty.
        least: Smallest side in pixels.
        most: Largest side in pixels.

    Returns:
        A window inside the image; its side is at most the image's shorter side.
    """
    height, width = spot.shape
    rows, columns = np.nonzero(spot)
    extent = int(max(np.ptp(rows), np.ptp(columns))) + 1
    size = min(max(least, 2 * extent), most, height, width)
    top = int(rows.min() + rows.max() + 1 - size) // 2
    left = int(columns.min() + columns.max() + 1 - size) // 2
    return Window(min(max(top, 0), height - size), min(max(left, 0), width - size), size)


def panels(example: Example, operators: Sequence[str] = ()) -> tuple[Window, list[Panel]]:
    """Draw every map that an example holds.

    Args:
        example: The example.
        operators: Names of the priors in order; missing names become `prior 1`, `prior 2`, …

    Returns:
        The enlarged window, and the panels: image with the truth, priors, teacher, pseudo-label, student.
    """
    window = find_window(example)
    factor = -(-max(example.image.shape) // LONGEST)
    truth = "" if example.truth is None else outline(window.cut(example.truth))
    grey = grey_levels(example.image)

    def panel(title: str, text: str, levels: np.ndarray, palette: np.ndarray, found: np.ndarray | None = None) -> Panel:
        whole, zoom = png_address(reduce_levels(levels, factor), palette), png_address(window.cut(levels), palette)
        return Panel(title, text, whole, zoom, truth, "" if found is None else outline(window.cut(found)))

    known = "without a known truth" if example.truth is None else f"with {components(example.truth)[1]} true target(s)"
    drawn = [panel("image", f"Infrared image {known}", grey, grey_palette())]
    for index, prior in enumerate(example.priors):
        name = operators[index] if index < len(operators) else f"prior {index + 1}"
        drawn.append(panel(name, f"Response of the operator {name}", map_levels(prior), map_palette()))
    if example.teacher is not None:
        levels = map_levels(example.teacher, unit=True)
        drawn.append(panel("teacher", "Probability of the teacher", levels, map_palette(), _above(example.teacher)))
    if example.target is not None:
        text = f"Pseudo-label with {components(example.target)[1]} accepted target(s)"
        levels = overlay_levels(example.image, example.target, example.weight)
        drawn.append(panel("pseudo-label", text, levels, overlay_palette()))
    if example.boxes is not None and example.box_scores is not None:
        drawn.append(_boxes_panel(panel, example, window, grey))
    if example.student is not None:
        levels = map_levels(example.student, unit=True)
        drawn.append(panel("student", "Probability of the student", levels, map_palette(), _above(example.student)))
    return window, drawn


def _boxes_panel(panel: Callable[..., Panel], example: Example, window: Window, grey: np.ndarray) -> Panel:
    """The student's boxes with their scores and, dashed, the true ones, on the image."""
    assert example.boxes is not None and example.box_scores is not None  # the caller has looked
    marks = []
    for box, value in zip(example.boxes, example.box_scores, strict=True):
        right, top = math.ceil(box[2]), math.floor(box[1])
        marks.append(Mark("found", f"{value:.2f}", right, top, box_path(box[None]), box_path(box[None], window)))
    base = panel("student", f"{len(marks)} box(es) of the student", grey, grey_palette())
    if example.truth is None:
        return replace(base, marks=tuple(marks))
    true = component_boxes(*components(example.truth))
    return replace(base, marks=tuple(marks), truth=box_path(true, window), whole_truth=box_path(true))


def pictures(example: Example, operators: Sequence[str] = ()) -> dict[str, Any]:
    """An example as plain values for a template: name, size, enlarged window and panels; see `panels`."""
    window, drawn = panels(example, operators)
    height, width = example.image.shape
    factor = -(-max(height, width) // LONGEST)
    return {
        "id": example.id,
        "height": height,
        "width": width,
        # The reduced picture covers whole blocks, a little more than the image where its side is no multiple.
        "picture_height": -(-height // factor) * factor,
        "picture_width": -(-width // factor) * factor,
        "window": asdict(window),
        "truth": example.truth is not None,
        "panels": [asdict(panel) for panel in drawn],
    }


def _above(probability: np.ndarray) -> np.ndarray:
    """Pixels, bool (H, W), that are called target, at a probability above one half."""
    return _finite(probability) > 0.5


def _found(example: Example) -> np.ndarray | None:
    """Pixels, bool (H, W), that the student calls target or that lie in its boxes; None without a student."""
    if example.student is not None:
        return _above(example.student)
    if example.boxes is None:
        return None
    inside = np.zeros(example.image.shape, dtype=bool)
    for x0, y0, x1, y1 in example.boxes:
        inside[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    return inside


def _finite(values: np.ndarray) -> np.ndarray:
    """float32 copy of `values` in which non-finite entries are replaced by the lowest finite one (0 when none is)."""
    array = np.asarray(values, dtype=np.float32)
    good = np.isfinite(array)
    return np.where(good, array, array[good].min() if good.any() else np.float32(0))


def _levels(values: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """uint8 levels 0 to count - 1 for values between `low` and `high`; all 0 when these are equal."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    share = np.clip((values - low) / (high - low), 0, 1)
    return (share * (count - 1)).round().astype(np.uint8)


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each run of True in a bool vector."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(stop - start)) for start, stop in zip(change[::2], change[1::2], strict=True)]


def _spot(example: Example) -> np.ndarray:
    """Pixels, bool (H, W) and not empty, that the window is centred on."""
    found = _found(example)
    for mask in (example.truth, example.target):
        if mask is None or not mask.any():
            continue
        labels, count = components(mask)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        if mask is example.truth and found is not None:
            hits = np.bincount(labels[found], minlength=count + 1)[1:]
            areas = np.where((hits == 0).any() & (hits > 0), 0, areas)
        return np.asarray(labels == int(np.argmax(areas)) + 1)
    source = next(m for m in (example.student, example.teacher, example.image) if m is not None)
    spot = np.zeros(example.image.shape, dtype=bool)
    spot.flat[int(np.argmax(_finite(source)))] = True
    return spot
