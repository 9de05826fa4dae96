"""The report of objects: self-contained, escaped, honest, every object outlined."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from fewlabel.core.errors import RunError
from fewlabel.core.types import Instances
from fewlabel.report.charts import averaged
from fewlabel.report.contents import DataFacts, ScoreRow, StageTime
from fewlabel.report.instances import METRICS, InstanceReport, build, guidance, verdict, write
from fewlabel.report.objects import (
    COLOURS,
    NUMBERED,
    ObjectPanel,
    ObjectPicture,
    distinct_colours,
    draw,
    photo_address,
)
from fewlabel.report.pictures import outline

CLASSES = ("ring", "bar & star")


def scores(ap: float | None, **others: Any) -> dict[str, Any]:
    """Scores of a method as scores.json holds them, without large objects."""
    value = 0.0 if ap is None else ap
    kinds = [{"AP": value + 5, "instances": 7}, {"AP": None, "instances": 0}]
    known = {"AP50": value + 20.125, "AP75": value - 3, "AP_small": 1.25, "AP_medium": value, "boundary_AP": value / 2}
    return {"AP": ap, "AP_large": None, "images": 20, "by_class": kinds} | known | others


def squares(places: list[tuple[int, int]], size: tuple[int, int] = (40, 60), side: int = 6) -> Instances:
    masks = np.zeros((len(places), *size), bool)
    for mask, (row, column) in zip(masks, places, strict=True):
        mask[row : row + side, column : column + side] = True
    numbers = np.arange(len(places))
    return Instances.from_masks(masks, size=size, classes=numbers % 2, scores=0.95 - 0.01 * numbers)


def picture(name: str = "scan_7", refined: bool = True) -> ObjectPicture:
    found = squares([(2, 3), (20, 30)])
    panels = [ObjectPanel("Human label", "1 object", squares([(2, 2)])), ObjectPanel("Found", "2", found, scored=True)]
    if refined:
        panels.append(ObjectPanel("Refined by SAM", "", found, ("accepted", "dropped"), scored=True))
    pixels = np.random.default_rng(0).random((3, 40, 60), dtype=np.float32)
    return ObjectPicture(name, pixels, (400, 60), panels)


def log(pseudo: float, accepted: float, agreement: float, steps: int = 20) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [
        {"step": step, "loss": 9.0 / step, "dice": 5.0 / step, "pseudo": pseudo * step / steps}
        | {"accepted": accepted * step / steps, "agreement": agreement * step / steps}
        for step in range(1, steps + 1)
    ]
    return [*records, {"step": steps, "val": {"AP": 12.5, "AP50": 30.0}}]


@pytest.fixture(scope="module")
def data() -> InstanceReport:
    """A full report."""
    rows = {"labels-only": 20.0, "guided-distillation": 23.5, "fewlabel": 27.25, "smaller": 26.0, "all-labels": 40.0}
    return InstanceReport(
        title="nuclei at 5 %",
        recipe="method: s4m\nsam: nano\n",
        facts=DataFacts("DSB2018", 16, 4, 380, 100, 0.05, 0, 812),
        student="tiny",
        sam="nano",
        scores=[ScoreRow.from_scores(method, scores(ap)) for method, ap in rows.items()],
        curves={
            "Teacher": [{"step": step, "loss": 1.0 / step, "similarity": 0.5} for step in range(1, 9)],
            "guided-distillation": log(8.0, 0.0, 0.0),
            "fewlabel": log(10.0, 6.0, 7.5),
        },
        stages=(StageTime("teach", 812.0, 1410.0), StageTime("train", 95.0)),
        versions={"torch": "2.13.0"},
        hardware="2 CPU cores",
        notes=("The method follows S⁴M (arXiv 2504.05301).",),
        created="2026-11-20",
        classes=CLASSES,
        ships="smaller",
        refined=("fewlabel", "smaller"),
        burn_in=15,
        unlabelled=[picture()],
        test=[picture("test_1", refined=False)],
    )


@pytest.fixture(scope="module")
def html(data: InstanceReport) -> str:
    return build(data)


def words(read_page: Callable[[str], Any], html: str) -> str:
    return " ".join(read_page(html).text.split())


def test_nothing_is_loaded_from_elsewhere(
    read_page: Callable[[str], Any], data: InstanceReport, html: str, tmp_path: Path
) -> None:
    page = read_page(html)
    names = {found["id"] for tag, found in page.tags if tag == "image"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            own = tag == "use" and name == "href" and str(value)[0] == "#" and str(value)[1:] in names
            assert value is None or own or value.startswith("data:image/jpeg;base64,")
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not re.search(r"https?://|@import|url\(", html) and "default-src 'none'" in html
    assert all(found.get("role") == "img" and found.get("aria-label") for tag, found in page.tags if tag == "svg")
    assert all(found.get("scope") for tag, found in page.tags if tag == "th")
    assert len(names) == sum(tag == "image" for tag, _ in page.tags) == 2, "each image is there once"
    write(data, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_bytes() == html.encode("utf-8")


def test_the_page_says_what_was_measured(read_page: Callable[[str], Any], html: str) -> None:
    text = words(read_page, html)
    for sentence in (
        "Mask2Former tiny, trained on 16 labelled and 380 unlabelled images of DSB2018. Classes: ring, bar & star.",
        "fewlabel beat training on the labels only by 7.2 points of AP (27.2 % against 20.0 %)",
        "Guided distillation reached 23.5 %: fewlabel is 3.8 points above it.",
        "Smaller student reached 26.0 %: fewlabel is 1.2 points above it.",
        "36 % of the way from the labels only to all labels",
        "result of nano-SAM and says nothing about Meta's SAM",
        "arXiv 2504.05301",
        "gives way to the moving average of the student after step 15.",
        "the network that ships (Smaller student) finds",
        "the middle 40 × 60 px of 400 × 60 px",
        "15m07s together, on 2 CPU cores",
        "Highest validation AP 12.5 at step 20",
    ):
        assert sentence in text, sentence
    heads = re.findall(r'<th scope="col">([A-Za-z0-9 ]+) <b', html)
    assert heads == [name for _, name, _, _ in METRICS]
    assert "47.4" in text and "24.2" in text and "13.6" in text, "AP50, AP75 and boundary AP of fewlabel"
    assert "Warning:" not in text


def test_what_was_not_measured_is_a_dash(read_page: Callable[[str], Any], data: InstanceReport, html: str) -> None:
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', html, re.S)
    cells = {name: re.findall(r"<td>(?:<strong>)?([^<]*)", rest) for name, rest in reversed(rows)}
    assert cells["fewlabel"][:7] == ["27.2", "47.4", "24.2", "1.2", "27.2", "–", "13.6"]
    assert cells["ring"] == ["7", "25.0", "28.5", "32.2", "31.0", "45.0"]
    assert cells["bar &amp; star"] == ["0", "–", "–", "–", "–", "–"]
    bare = InstanceReport("bare", "", DataFacts("d", 1, 0, 0, 0, 1.0, 0), "nano", "")
    text = words(read_page, build(bare))
    assert "no test list, so no network was scored" in text and "No part of this run asked a SAM" in text
    for heading in ("Scores", "Pseudo-labels", "Training", "Examples"):
        assert f"<h2>{heading}" not in build(bare)
    for shown in (text, words(read_page, html)):
        assert "None" not in shown and "nan" not in shown.lower().split()
    one = words(read_page, build(replace(data, classes=("nucleus",))))
    assert "AP by class" not in one and "Classes:" not in one


LOST = "did not beat training on the labels only: it lost 2.0 points"


@pytest.mark.parametrize(
    ("labels", "rival", "ours", "every", "tone", "said"),
    [
        (30.0, None, 28.0, None, "worse", LOST),
        (30.0, None, 28.0, 44.0, "worse", "all labels reached 44.0\u00a0%"),
        (30.0, None, 30.01, None, "level", "their AP is level"),
        (20.0, 31.5, 30.0, None, "better", "fewlabel is 1.5 points below it"),
        (20.0, 30.02, 30.0, None, "better", "fewlabel is level with it"),
        (None, 20.0, 30.0, None, "unknown", "10.0 points above it"),
        (30.0, None, None, None, "unknown", "no score of a fewlabel student"),
    ],
)
def test_the_verdict_is_honest(
    data: InstanceReport,
    labels: float | None,
    rival: float | None,
    ours: float | None,
    every: float | None,
    tone: str,
    said: str,
) -> None:
    aps = {"labels-only": labels, "guided-distillation": rival, "fewlabel": ours, "all-labels": every}
    measured = {method: ap for method, ap in aps.items() if ap is not None or method == "fewlabel"}
    rows = [ScoreRow.from_scores(method, scores(ap)) for method, ap in measured.items()]
    found = verdict(replace(data, scores=rows))
    assert (found.tone, found.metric) == (tone, "AP")
    assert said in " ".join([found.headline, *found.details])
    assert "Higher than fewlabel" not in " ".join(found.details), "rivals have a sentence of their own"


def test_a_metric_that_tells_another_story_is_named(data: InstanceReport) -> None:
    rows = [scores(20.0), scores(25.0, boundary_AP=4.0)]
    pair = [ScoreRow.from_scores(name, row) for name, row in zip(("labels-only", "fewlabel"), rows, strict=True)]
    assert "boundary AP fell from 10.0 to 4.0" in " ".join(verdict(replace(data, scores=pair)).details)


def test_what_refinement_did_is_counted_over_the_end(data: InstanceReport) -> None:
    found = guidance(data)
    assert found is not None
    plain, ours = found["rows"]
    assert (plain["method"], plain["accepted"], plain["agreement"]) == ("guided-distillation", None, None)
    assert plain["pseudo"] == pytest.approx(8 * (17 + 18 + 19 + 20) / 80)
    assert (ours["accepted"], ours["agreement"]) == (pytest.approx(60.0), pytest.approx(0.75))
    assert [line.name for line in found["lines"]] == ["fewlabel", "Guided distillation"]
    assert [chart["title"] for chart in found["charts"]] == [
        "Pseudo-labels per image",
        "Share accepted",
        "Mean IoU with the teacher's mask",
    ]
    assert "fewlabel 0.6." in found["charts"][1]["chart"] and "Guided" not in found["charts"][1]["chart"]
    unrefined = guidance(replace(data, refined=()))
    assert unrefined is not None and len(unrefined["charts"]) == 1
    assert guidance(replace(data, curves={"Teacher": data.curves["Teacher"]})) is None


def test_a_teacher_that_fell_silent_is_named_at_the_top(read_page: Callable[[str], Any], data: InstanceReport) -> None:
    silent = [record | ({"pseudo": 0.0} if record["step"] > 16 else {}) for record in log(5, 3, 4)[:-1]]
    text = words(read_page, build(replace(data, curves=dict(data.curves) | {"guided-distillation": silent})))
    top = text[: text.index("Scores on the test images")]
    assert "Warning: in the last fifth of the training of Guided distillation the teacher proposed no object" in top


def test_ratios_are_of_means_and_skip_nothing_over_nothing() -> None:
    records = [{"step": s, "a": a, "n": n} for s, a, n in ((1, 0.0, 0.0), (2, 0.0, 0.0), (3, 0.0, 0.0), (4, 3.0, 4.0))]
    line = averaged("x", [*records, {"step": 5, "val": {}}, {"step": 6, "a": float("nan"), "n": 1.0}], "a", "n")
    assert line.points == [(3.0, 0.75), (4.0, 0.75)]
    assert averaged("x", [], "a").points == []


def test_every_text_is_escaped(read_page: Callable[[str], Any], data: InstanceReport) -> None:
    evil = "<script>alert('1 & 2')</script>\"><img src=x>"
    shown = replace(picture(evil), panels=[ObjectPanel(evil, evil, squares([(1, 1)]), scored=True)])
    html = build(
        replace(
            data,
            title=evil,
            recipe=evil,
            facts=replace(data.facts, name=evil),
            student=evil,
            sam=evil,
            hardware=evil,
            notes=(evil,),
            created=evil,
            scores=[*data.scores, ScoreRow.from_scores(evil, scores(1.0))],
            curves={evil: data.curves["fewlabel"]},
            refined=(evil,),
            ships=evil,
            stages=(StageTime(evil, 1.0),),
            versions={evil: evil},
            classes=(evil, "b"),
            unlabelled=[shown],
            test=[shown],
        )
    )
    assert {"script", "img"}.isdisjoint(tag for tag, _ in read_page(html).tags)
    assert "<script" not in html and "&lt;script&gt;" in html


def test_every_object_is_outlined_where_it_is(read_page: Callable[[str], Any], html: str) -> None:
    page = read_page(html)
    drawn = [found for tag, found in page.tags if tag == "path" and str(found["class"]).startswith("object")]
    assert [found["class"] for found in drawn] == [
        *("object o0", "object o0", "object o1", "object accepted", "object dropped"),
        *("object o0", "object o0", "object o1"),
    ]
    whole = np.zeros((40, 60), bool)
    whole[20:26, 30:36] = True
    assert drawn[2]["d"] == outline(whole), "a part of a picture is outlined as in the whole"
    text = words(read_page, html)
    assert "bar & star 0.94 dropped" in text and "ring 0.95" in text


def test_many_scores_are_not_written_over_each_other() -> None:
    def panel(count: int) -> dict[str, Any]:
        objects = squares([(row, 2 * row) for row in range(count)], (80, 120))
        shown = ObjectPicture(
            "x", np.zeros((3, 80, 120), np.float32), (80, 120), [ObjectPanel("t", "", objects, (), True)]
        )
        return draw(shown, CLASSES)["panels"][0]  # type: ignore[no-any-return]

    assert [one["score"] for one in panel(2)["objects"]] == ["0.95", "0.94"]
    many = panel(NUMBERED + 1)["objects"]
    assert not any(one["score"] for one in many) and many[1]["text"] == "bar & star 0.94"


def test_a_score_stands_on_a_pixel_of_its_object() -> None:
    mask = np.zeros((1, 30, 30), bool)
    mask[0, 5:25, 5] = mask[0, 5:25, 24] = mask[0, 24, 5:25] = True  # open above: the middle of its box is outside
    shown = ObjectPanel("t", "", Instances.from_masks(mask), (), True)
    one = draw(ObjectPicture("x", np.zeros((3, 30, 30), np.float32), (30, 30), [shown]))["panels"][0]["objects"][0]
    assert mask[0, int(one["y"]), int(one["x"])]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(1, 30)), max_size=40))
def test_neighbours_differ_in_colour_where_they_can(places: list[tuple[int, int, int]]) -> None:
    boxes = np.array([(x, y, x + side, y + side) for x, y, side in places], np.float32).reshape(-1, 4)
    chosen = distinct_colours(boxes)
    assert len(chosen) == len(places) and all(0 <= colour < COLOURS for colour in chosen)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        before = boxes[:number]
        apart = (before[:, 0] > x1) | (before[:, 2] < x0) | (before[:, 1] > y1) | (before[:, 3] < y0)
        taken = {colour for colour, far in zip(chosen, apart, strict=False) if not far}
        if len(taken) < COLOURS:
            assert chosen[number] not in taken


def test_a_dark_photo_is_stretched_and_keeps_its_hue() -> None:
    def shown(pixels: np.ndarray) -> np.ndarray:
        raw = base64.b64decode(photo_address(pixels).removeprefix("data:image/jpeg;base64,"), validate=True)
        return np.asarray(PilImage.open(io.BytesIO(raw)).convert("RGB"), np.float32)

    dark = np.zeros((3, 32, 48), np.float32)
    dark[0, :, 24:] = 0.02
    found = shown(dark)
    assert found.shape == (32, 48, 3)
    assert found[:, :20].max() < 12 and found[:, 28:, 0].min() > 240 and found[:, 28:, 1:].max() < 15
    assert shown(np.full((3, 9, 9), 0.4, np.float32)).max() < 12, "one value only"


def test_objects_of_another_size_are_refused() -> None:
    with pytest.raises(RunError, match=r"'x'.*\(40, 50\) pixels.*\(40, 60\).*cut them to the same window"):
        ObjectPicture("x", np.zeros((3, 40, 50), np.float32), (40, 50), [ObjectPanel("t", "", squares([(1, 1)]))])
    with pytest.raises(RunError, match="holds 1 objects and 2 fates"):
        ObjectPanel("t", "", squares([(1, 1)]), ("kept", "kept"))
