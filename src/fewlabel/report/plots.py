"""The wide picture for a project's front page, drawn from one example of a run."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fewlabel.core.errors import RunError
from fewlabel.core.files import write_bytes
from fewlabel.report.contents import Example
from fewlabel.report.pictures import (
    Window,
    find_window,
    grey_levels,
    grey_palette,
    map_levels,
    map_palette,
    overlay_levels,
    overlay_palette,
)

PAPER, INK, QUIET = "#10151b", "#eef2f5", "#9aa7b2"
TRUTH, FOUND = "#4cc9f0", "#a6ff4d"


def hero(example: Example, path: Path, *, prior: int = 0, prior_name: str = "white-box prior", dpi: int = 160) -> None:
    """Draw image, prior, teacher, pseudo-label and student side by side, each with its target enlarged, as a PNG.

    Args:
        example: An example that holds all five maps.
        path: The PNG file to write; 12 x 3.1 inches at `dpi`.
        prior: Which of the example's priors to show.
        prior_name: What to call it.
        dpi: Pixels per inch.

    Raises:
        RunError: The example lacks one of the maps.
    """
    teacher, target, student = example.teacher, example.target, example.student
    if teacher is None or target is None or student is None or not 0 <= prior < len(example.priors):
        raise RunError(
            f"Example {example.id!r} lacks prior {prior}, a teacher, a pseudo-label or a student map; the wide picture "
            "needs all of them, so choose an unlabelled training image of a finished run."
        )
    part = _square(find_window(example, least=24), example.image.shape)
    image, target, teacher, student = (part.cut(values) for values in (example.image, target, teacher, student))
    truth, weight = (None if values is None else part.cut(values) for values in (example.truth, example.weight))
    response = part.cut(example.priors[prior])
    window = find_window(Example(example.id, image, truth, response[None], teacher, target, weight, student), least=24)
    columns = (
        ("image", "blue: human label", grey_palette()[grey_levels(image)], None),
        (prior_name, "a physical prior", map_palette()[map_levels(response)], None),
        ("teacher", "SAM + adapter; green: above 0.5", map_palette()[map_levels(teacher, unit=True)], teacher > 0.5),
        (
            "pseudo-label",
            "violet: ignored",
            overlay_palette()[overlay_levels(image, target, weight)],
            None,
        ),
        ("student", "the network that ships", map_palette()[map_levels(student, unit=True)], student > 0.5),
    )
    figure = Figure(figsize=(12, 3.1), dpi=dpi, facecolor=PAPER)
    for index, (title, note, picture, found) in enumerate(columns):
        left, width = 0.012 + index * 0.1968, 0.184
        axes = figure.add_axes((left, 0.03, width, 0.712))
        _show(axes, picture)
        box = Rectangle((window.left - 0.5, window.top - 0.5), window.size, window.size, fill=False, ec=INK, lw=0.8)
        axes.add_patch(box)
        corner = _far_corner(window, image.shape)
        inset = axes.inset_axes((*corner, 0.46, 0.46))
        _show(inset, window.cut(picture))
        inset.set_aspect("equal")
        for spine in inset.spines.values():
            spine.set(visible=True, color=INK, linewidth=1.2)
        if truth is not None:
            _trace(inset, window.cut(truth), TRUTH)
        if found is not None:
            _trace(inset, window.cut(found), FOUND)
        figure.text(left, 0.885, title, color=INK, fontsize=13, fontweight="bold", va="center")
        figure.text(left, 0.797, note, color=QUIET, fontsize=9.5, va="center")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", facecolor=PAPER, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _show(axes: Axes, picture: np.ndarray) -> None:
    """Show uint8 (H, W, 3) without ticks or frame, each pixel a sharp square."""
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _trace(axes: Axes, mask: np.ndarray, colour: str) -> None:
    """Draw the pixel edges of a bool (H, W) mask; pixel centres lie at whole coordinates."""
    padded = np.pad(mask, 1)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        axes.plot([column - 0.5, column + 0.5], [row - 0.5, row - 0.5], color=colour, lw=1.4)
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        axes.plot([column - 0.5, column - 0.5], [row - 0.5, row + 0.5], color=colour, lw=1.4)
    axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _square(window: Window, shape: tuple[int, ...]) -> Window:
    """The largest square of an image (H, W) that holds `window`, as near to its centre as the borders allow."""
    size = min(shape)
    top, left = (start + (window.size - size) // 2 for start in (window.top, window.left))
    return Window(min(max(top, 0), shape[0] - size), min(max(left, 0), shape[1] - size), size)


def _far_corner(window: Window, shape: tuple[int, ...]) -> tuple[float, float]:
    """Lower left of the inset, as shares of the axes (y up), in the corner farthest from the window."""
    row, column = window.top + window.size / 2, window.left + window.size / 2
    return (0.02 if column > shape[1] / 2 else 0.52), (0.52 if row > shape[0] / 2 else 0.02)
