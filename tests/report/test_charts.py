import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.report.charts import (
    GAP,
    HEIGHT,
    WIDTH,
    Axis,
    Line,
    line_chart,
    loss_chart,
    smooth,
    thin,
    ticks,
    validation_chart,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


@given(numbers, st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_few_and_inside(low: float, span: float, count: int) -> None:
    values = ticks(low, low + span, count)
    assert all(low - 1e-6 * span <= value <= low + span + 1e-6 * span for value in values)
    assert len(values) <= count + 2
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    if steps:
        leading = float(f"{steps[0]:e}".split("e")[0])
        assert min(abs(leading - nice) for nice in (1, 2, 5, 10)) < 1e-3


def test_the_running_mean_equals_a_brute_force_one() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert smooth(values, 3) == pytest.approx([2.0, 8 / 3, 2.0, 10 / 3, 3.0])
    assert smooth([7.0], 9) == [7.0]


def test_thinning_keeps_the_ends_and_drops_what_is_not_finite() -> None:
    points = [(float(i), float(i)) for i in range(1000)]
    kept = thin(points, 100)
    assert len(kept) <= 101
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thin([(0.0, math.nan), (1.0, 2.0), (2.0, math.inf)]) == [(1.0, 2.0)]


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), st.booleans())
def test_every_line_stays_inside_the_frame(points: list[tuple[float, float]], log: bool) -> None:
    chart = line_chart([Line("a", sorted(points), marks=True)], description="<a & b>", log=log)
    if not chart:
        assert log and all(y <= 0 for _, y in points)
        return
    tree = ElementTree.fromstring(str(chart))
    assert tree.get("aria-label") == "<a & b>"
    for polyline in tree.iter("polyline"):
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", polyline.get("points", "")):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_higher_values_are_drawn_higher() -> None:
    chart = str(line_chart([Line("a", [(0, 1.0), (1, 2.0), (2, 4.0)])], description="d"))
    found = re.search(r'points="([^"]+)"', chart)
    assert found
    heights = [float(pair.split(",")[1]) for pair in found[1].split()]
    assert heights == sorted(heights, reverse=True)


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_a_logarithmic_axis_keeps_the_order_and_has_a_place_for_zero(values: list[float]) -> None:
    axis = Axis(values, (0.0, 100.0), log=True)
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 100
    ticks_ = [(axis.place(value), text) for value, text in axis.ticks()]
    assert all(0 <= place <= 100 for place, _ in ticks_)
    assert ("0" in [text for _, text in ticks_]) == (min(values) == 0)
    positive = [value for value in values if value > 0]
    if positive and min(values) == 0:
        decades = math.log10(max(positive) / min(positive)) + GAP
        assert axis.place(min(positive)) == pytest.approx(100 * GAP / decades)
        assert axis.place(0) == 0


def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks() -> None:
    assert len(Axis([12.0, 13.5], (0.0, 100.0), log=True).ticks()) >= 2
    assert Axis([40.0, 40.0], (0.0, 100.0)).ticks() == [(40.0, "40")]


def test_a_spot_is_drawn_where_its_values_are() -> None:
    points = [(1.0, 10.0), (10.0, 50.0), (100.0, 90.0)]
    chart = str(line_chart([Line("a", points, spot=(10.0, 50.0))], description="d", log_x=True, bounds=(0, 100)))
    path = re.search(r'points="([^"]+)"', chart)
    dot = re.search(r'cx="([\d.]+)" cy="([\d.]+)" r="5.0"', chart)
    assert path is not None and dot is not None
    assert path[1].split()[1] == f"{dot[1]},{dot[2]}"
    xs = [float(pair.split(",")[0]) for pair in path[1].split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)  # equal decades, equal steps


def test_styles_beyond_six_are_dashed() -> None:
    assert [Line("a", [], style=style).look for style in (0, 5, 6)] == ["s0", "s5", "s0 dashed"]


def test_the_loss_chart_reads_only_loss_records() -> None:
    records = [{"step": i, "lr": 0.1, "loss": 2.0 / i} for i in range(1, 50)] + [{"step": 9, "val": {"IoU": 3.0}}]
    chart = str(loss_chart("teacher", [*records, {"step": 50, "loss": math.nan}]))
    assert "Loss of teacher from" in chart and "at step 49" in chart
    assert loss_chart("teacher", [{"step": 1, "val": {"IoU": 1.0}}]) == ""


def test_the_validation_sentence_names_the_best_step() -> None:
    records = [{"step": s, "val": {"Pd": 1.0, "IoU": v}} for s, v in ((100, 20.0), (200, 61.25), (300, 60.0))]
    chart, text = validation_chart("student", records)
    assert text == "Highest validation IoU 61.25 at step 200, last 60."
    assert text in str(chart)
    assert validation_chart("student", [{"step": 1, "loss": 1.0}]) == ("", "")
    assert validation_chart("student", [{"step": 1, "val": {"IoU": math.nan}}]) == ("", "")
