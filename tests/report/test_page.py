import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewlabel.core.errors import RunError
from fewlabel.report.page import (
    DataFacts,
    Example,
    PseudoLabels,
    ReportData,
    RouterWeights,
    ScoreRow,
    StageTime,
    build,
    number,
    router,
    write,
)


@pytest.fixture(scope="module")
def html(report_data: ReportData) -> str:
    return build(report_data)


@pytest.fixture(scope="module")
def page(html: str, read_page: Callable[[str], Any]) -> Any:
    return read_page(html)


def test_equal_data_gives_equal_bytes(report_data: ReportData, html: str, tmp_path: Path) -> None:
    write(report_data, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_bytes() == html.encode("utf-8")


def test_nothing_is_loaded_from_elsewhere(page: Any, html: str) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,")
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


def test_pictures_have_texts_and_tables_have_headers(page: Any) -> None:
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    # 3 examples x 8 panels x 2, 4 trainings x 2 charts, 1 chart of the router, 1 of Pd against Fa
    assert len(drawings) == 3 * 8 * 2 + 4 * 2 + 1 + 1
    assert all(found.get("role") == "img" and found.get("aria-label") for found in drawings)
    assert all(found.get("scope") for tag, found in page.tags if tag == "th")
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) == 5
    assert ("html", {"lang": "en"}) in page.tags


def test_the_summary_and_the_numbers_are_on_the_page(page: Any, report_data: ReportData) -> None:
    text = " ".join(page.text.split())
    assert "fewlabel beat training on the labels only by 8.8 points of IoU (61.2 % against 52.4 %)" in text
    assert "+8.8" in text and "−9.1" in text
    assert "hIoU ↑" in text and "48.7" in text and "44.4" in text  # of fewlabel, and of the pseudo-labels
    assert "proposed 231 targets in 192 images; the gate accepted 181 of them (coverage 78.4 %)" in text
    assert "result of nano-SAM and says nothing about Meta's SAM" in text
    assert "42m37s together, on 2 CPU cores" in text
    for name in (
        "Synthetic pre-training, then labels",
        "Hessian blob",
        "block 5",
        "disputed 9",
        "2.13.0",
        "fraction: 0.1",
    ):
        assert name in text
    assert all(example.id in text for example in report_data.examples)


def test_the_router_part_names_its_gates_and_its_unit(page: Any) -> None:
    text = " ".join(page.text.split())
    assert text.count("image gate") >= 3 and text.count("final gate") >= 3 and "token gate" not in text
    assert "Entropy of the final gates: 1 = all experts used alike" in text and "nats" not in text
    (chart,) = [a for tag, a in page.tags if tag == "svg" and "entropy" in (a.get("aria-label") or "")]
    assert "last: block 2 0.90, block 5 0.75, block 8 0.60." in str(chart["aria-label"])


def test_the_entropy_of_even_gates_lies_on_the_level_of_one() -> None:
    """Gates that are never decided log an entropy of 1, which the chart shows on its dashed line."""
    points = [(step, 1.0) for step in range(0, 100, 10)]
    drawn = router(RouterWeights(("a", "b"), {"block 0": ((0.5, 0.5), (0.5, 0.5))}, {"all": points}))
    assert drawn is not None
    assert [row["gate"] for row in drawn["rows"]] == ["image gate", "final gate"]
    level = re.search(r'class="level"[^>]* y1="([\d.]+)"', drawn["chart"])
    (path,) = re.findall(r'(?:points|d)="([^"]*,[^"]*)"', drawn["chart"])
    heights = {float(y) for y in re.findall(r"[\d.]+,([\d.]+)", path)}
    assert level is not None and heights == {float(level[1])}


def test_bars_stay_between_nothing_and_the_full_width(html: str) -> None:
    widths = [float(value) for value in re.findall(r'class="bar[^"]*" style="width:([\d.]+)%"', html)]
    assert len(widths) == 5 * 5 + 5 * 4  # scores, and Pd by area
    assert max(widths) == 100.0 and min(widths) >= 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (PseudoLabels(192, 0, 0, 0), "Warning: the teacher proposed no target in 192 unlabelled images"),
        (PseudoLabels(1, 0, 2, 5), "accepted none of the 7 targets that the teacher proposed in 1 unlabelled image,"),
        (PseudoLabels(192, 1, 0, 0), ""),
        (PseudoLabels(0, 0, 0, 0), ""),
    ],
)
def test_a_teacher_that_taught_no_target_is_named_at_the_top(
    read_page: Callable[[str], Any], report_data: ReportData, labels: PseudoLabels, said: str
) -> None:
    text = " ".join(read_page(build(replace(report_data, pseudo_labels=labels, examples=()))).text.split())
    top = text[: text.index("Scores on the test images")]
    assert said in top and ("Warning" in top) == bool(said)


def test_every_text_is_escaped(
    read_page: Callable[[str], Any], report_data: ReportData, example_maker: Callable[..., Example]
) -> None:
    evil = "<script>alert('1 & 2')</script>\"><img src=x>"
    data = replace(
        report_data,
        title=evil,
        recipe=evil,
        facts=replace(report_data.facts, name=evil),
        student=evil,
        sam=evil,
        hardware=evil,
        notes=(evil,),
        created=evil,
        scores=(ScoreRow(evil, {"IoU": 1.0}, evil), ScoreRow("fewlabel", {"IoU": 2.0}, "nearest", evil)),
        pseudo_labels=PseudoLabels(1, 1, 0, 1, {evil: 1}),
        curves={evil: report_data.curves["teacher"]},
        router=RouterWeights((evil, "b"), {evil: ((0.5, 0.5), (0.5, 0.5))}, {evil: [(1, 0.5), (2, 0.4)]}),
        stages=(StageTime(evil, 1.0),),
        versions={evil: evil},
        examples=[example_maker(0, (40, 40), evil)],
    )
    html = build(data)
    page = read_page(html)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert "<script" not in html and "&lt;script&gt;" in html


def test_missing_parts_leave_no_trace(
    read_page: Callable[[str], Any], report_data: ReportData, example_maker: Callable[..., Example]
) -> None:
    html = build(ReportData("bare", "", DataFacts("d", 1, 0, 0, 0, 1.0, 0), "unet", "facebook/sam-vit-base"))
    page = read_page(html)
    for heading in ("Scores", "Pseudo-labels", "Training", "Router", "Examples"):
        assert f"<h2>{heading}" not in html
    assert "nano" not in page.text
    assert "None" not in page.text and "nan" not in page.text.split()
    full = example_maker(0, (50, 60))
    parts = replace(full, truth=None, priors=full.priors[:0], teacher=None, target=None, weight=None, student=None)
    data = replace(
        report_data,
        router=None,
        curves={"empty": []},
        examples=[parts],
        pseudo_labels=PseudoLabels(5, 0, 0, 0),
        scores=(ScoreRow("labels-only", {"IoU": float("nan")}), ScoreRow("fewlabel", {"IoU": 50.0}, "legacy")),
    )
    text = " ".join(read_page(build(data)).text.split())
    assert "human label unknown" in text
    assert "proposed no target in 5 images" in text and "How good they are is unknown" in text
    assert "Rows with different matching rules cannot be compared" in text
    assert "nan" not in text.split()


def test_eight_noisy_examples_stay_below_five_megabytes(report_data: ReportData) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    size = (256, 256)
    examples = [
        Example(
            str(i),
            noise(*size),
            noise(*size) > 0.9,
            noise(4, *size),
            noise(*size),
            noise(*size) > 0.9,
            noise(*size),
            noise(*size),
        )
        for i in range(8)
    ]
    assert len(build(replace(report_data, examples=examples))) < 5_000_000


def test_scores_and_summaries_are_taken_over_as_they_are_written() -> None:
    row = ScoreRow.from_scores("fewlabel", {"IoU": 1, "Fa": 2.5, "matching": "legacy", "images": 4})
    assert (row.name, row.matching, row.metrics["Fa"]) == ("fewlabel", "legacy", 2.5)
    summary = {"images": 9, "proposed": 10, "accepted": 6, "ignored": 3, "rejected": 1, "coverage": 0.6}
    labels = PseudoLabels.from_summary(summary | {"reasons": {"dark": 1}, "truth": {"IoU": 50.0}})
    assert (labels.proposed, labels.share, labels.quality) == (10, 0.6, {"IoU": 50.0})
    assert (
        PseudoLabels.from_summary(summary | {"accepted": 0, "ignored": 0, "rejected": 0, "coverage": None}).share
        is None
    )


def test_router_weights_of_another_length_are_refused() -> None:
    with pytest.raises(RunError, match="'block 2'.*3 weights of the image gate and 2 of the final gate"):
        RouterWeights(("a", "b"), {"block 2": ((0.1, 0.2, 0.7), (0.5, 0.5))})


def test_numbers_that_are_not_measured_are_dashes() -> None:
    assert [number(value) for value in (None, float("nan"), float("inf"), 1234.56)] == ["–", "–", "–", "1,234.6"]


def test_a_report_of_boxes_has_their_scores(
    read_page: Callable[[str], Any], report_data: ReportData, example_maker: Callable[..., Example]
) -> None:
    def row(method: str, ap50: float) -> ScoreRow:
        return ScoreRow.from_scores(method, {"AP50": ap50, "AP": 21.5, "AR50": 81.0, "recall": 66.0, "precision": None})

    shown = example_maker(0, (50, 60))
    boxes = np.array([[3.0, 4.0, 9.0, 9.0]], np.float32)
    shown = replace(shown, student=None, boxes=boxes, box_scores=np.array([0.875], np.float32))
    data = replace(
        report_data,
        student="dfine",
        boxes=True,
        scores=(row("labels-only", 50.0), row("fewlabel", 57.5)),
        pseudo_labels=PseudoLabels(9, 6, 3, 1, {}, {"IoU": 58.3, "AP50": 44.25}),
        examples=[shown],
    )
    html = build(data)
    page = read_page(html)
    text = " ".join(page.text.split())
    assert "beat training on the labels only by 7.5 points of AP50" in text and "AP50 on 214 test images" in text
    assert "AP50 gain" in text and "IoU gain" not in text and "Pd against Fa" not in text
    heads = re.findall(r'<th scope="col">([A-Za-z0-9]+) <b', html)
    assert heads == ["AP50", "AP", "AR50", "precision", "recall"]
    assert "44.2" in text and "58.3" in text, "pseudo-labels have both kinds of scores"
    assert "None" not in text and "nan" not in text.split()
    marks = [found for tag, found in page.tags if tag == "path" and found.get("class") == "mark found"]
    assert marks and marks[0]["d"] == "M3.0 4.0H9.0V9.0H3.0Z"
    assert "0.88" in text and "the student's box with its score" in text
