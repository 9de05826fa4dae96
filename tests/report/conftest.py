"""A synthetic run for the report's tests: real arrays, made from one seed."""

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as PilImage
from scipy import ndimage

from fewlabel.report.page import DataFacts, Example, PseudoLabels, ReportData, RouterWeights, ScoreRow, StageTime

OPERATORS = ("top-hat", "local contrast", "Hessian blob", "diffusion residual")


VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Collects tags with their attributes and the text, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Page]:
    """Reads a page."""
    return Page


@pytest.fixture(scope="session")
def decode_png() -> Callable[[str], np.ndarray]:
    """Reads a PNG in a data address: uint8 (H, W, 3)."""

    def decode(address: str) -> np.ndarray:
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"), validate=True)
        return np.asarray(PilImage.open(io.BytesIO(data)).convert("RGB"))

    return decode


def make_example(seed: int = 0, size: tuple[int, int] = (256, 256), name: str = "") -> Example:
    """A cloud field with two small targets, of which the student misses one in odd seeds."""
    rng = np.random.default_rng(seed)
    height, width = size
    sky = ndimage.gaussian_filter(rng.normal(size=size), 9)
    image = sky / sky.std() + 0.15 * rng.normal(size=size)
    truth = np.zeros(size, dtype=bool)
    rows, columns = np.mgrid[:height, :width]
    spots = [(int(rng.integers(12, height - 12)), int(rng.integers(12, width - 12))) for _ in range(2)]
    for index, (row, column) in enumerate(spots):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        image += (5 - 2 * index) * np.exp(-distance / (2 * (1.6 - 0.4 * index) ** 2))
        truth |= distance <= (3 - index) ** 2
    image = ((image - image.mean()) / image.std()).astype(np.float32)
    smooth = ndimage.gaussian_filter(image, 1)
    priors = np.stack(
        [
            ndimage.white_tophat(image, size=9),
            np.maximum(smooth - ndimage.uniform_filter(image, 15), 0),
            np.maximum(-ndimage.gaussian_laplace(image, 1.5), 0),
            np.abs(image - ndimage.gaussian_filter(image, 4)),
        ]
    ).astype(np.float32)
    score = priors[2] / priors[2].max()
    teacher = 1 / (1 + np.exp(-(12 * score - 5)))
    student = teacher.copy()
    if seed % 2:
        student[np.hypot(rows - spots[1][0], columns - spots[1][1]) < 9] *= 0.3
    target = teacher > 0.6
    weight = np.where((teacher > 0.25) & ~target, 0, 1).astype(np.float32)
    return Example(name or f"Misc_{seed + 17}", image, truth, priors, teacher, target, weight, student)


def make_curve(seed: int, steps: int, best: float) -> list[dict[str, object]]:
    """Loss and validation records as the training loop logs them."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, object]] = []
    for step in range(20, steps + 1, 20):
        loss = 0.05 + 1.2 * np.exp(-4 * step / steps) + 0.05 * abs(rng.normal())
        records.append({"step": step, "lr": 1e-3 * (1 - step / steps), "loss": float(loss), "seconds": step / 10})
        if step % 200 == 0:
            value = best * (1 - np.exp(-5 * step / steps)) + rng.normal()
            records.append({"step": step, "val": {"IoU": float(value), "Pd": 90.0}})
    return records


def make_row(method: str, iou: float, niou: float, pd: float, fa: float) -> ScoreRow:
    """Scores as scores.json holds them: 120 targets in four bins, and a curve through the operating point."""
    found = [round(share * pd / 100) for share in (18, 50, 40, 12)]
    bins = [
        {"smallest": low, "largest": high, "targets": targets, "found": hits, "Pd": 100 * hits / targets}
        for low, high, targets, hits in zip((1, 10, 26, 82), (9, 25, 81, None), (18, 50, 40, 12), found, strict=True)
    ]
    curve = {
        "thresholds": [0.02, 0.1, 0.5, 0.9, 0.99],
        "Pd": [pd - 3, pd + 1, pd, pd - 6, pd - 20],
        "Fa": [9000.0, 8 * fa, fa, fa / 6, 0.0],
        "matching": "nearest",
        "images": 214,
        "targets": 120,
    }
    scores = {"IoU": iou, "nIoU": niou, "hIoU": 0.8 * niou, "Pd": pd, "Fa": fa, "Pd_by_area": bins, "roc": curve}
    return ScoreRow.from_scores(method, scores | {"matching": "nearest", "images": 214})


def make_data(count: int = 3) -> ReportData:
    """A full report."""
    rng = np.random.default_rng(7)
    return ReportData(
        title="NUAA-SIRST, one label in ten",
        recipe="data:\n  name: NUAA-SIRST\n  fraction: 0.1\nsam: nano\nstudent:\n  name: acm\n  steps: 4000\n",
        facts=DataFacts("NUAA-SIRST", 17, 4, 192, 214, 0.1, 0, 24),
        student="acm",
        sam="nano",
        scores=(
            make_row("labels-only", 52.41, 50.2, 84.7, 61.0),
            make_row("synthetic-pretrained", 57.0, 55.1, 88.2, 48.3),
            make_row("teacher", 62.9, 60.0, 93.0, 40.2),
            make_row("fewlabel", 61.23, 60.9, 94.1, 70.4),
            make_row("all-labels", 70.3, 69.4, 97.2, 20.1),
        ),
        pseudo_labels=PseudoLabels(
            192,
            181,
            22,
            28,
            {"confident": 181, "dark": 2, "disputed": 9, "small": 26, "unsure": 13},
            {"IoU": 58.3, "hIoU": 44.4, "Pd": 90.2, "Fa": 12.5},
        ),
        curves={
            "teacher": make_curve(1, 2000, 62),
            "student, synthetic": make_curve(2, 2000, 40),
            "student": make_curve(3, 4000, 61),
            "labels only": make_curve(4, 4000, 52),
        },
        router=RouterWeights(
            OPERATORS,
            {f"block {i}": (tuple(rng.dirichlet([4, 3, 2, 1])), tuple(rng.dirichlet([8, 4, 2, 1]))) for i in (2, 5, 8)},
            {f"block {i}": [(s, 1 - 0.1 * i * s / 4000) for s in range(100, 2001, 100)] for i in (2, 5, 8)},
        ),
        operators=OPERATORS,
        examples=[make_example(seed) for seed in range(count)],
        stages=(StageTime("teach", 812.0, 1410.0), StageTime("label", 95.0), StageTime("train", 1650.0, 1290.0)),
        versions={"fewlabel": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        hardware="2 CPU cores",
        notes=(
            "The method follows the idea of Scalpel-SAM; its operators, router and losses are fewlabel's own design.",
        ),
        created="2026-11-20",
    )


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    """A full report with three examples."""
    return make_data()


@pytest.fixture(scope="session")
def example_maker() -> Callable[..., Example]:
    """Makes an example from a seed, a size and a name."""
    return make_example
