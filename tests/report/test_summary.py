from itertools import product

import pytest

from fewlabel.report.contents import ScoreRow
from fewlabel.report.summary import judge, sam_line


def row(method: str, iou: float, fa: float = 10.0, matching: str = "nearest") -> ScoreRow:
    return ScoreRow(method, {"IoU": iou, "nIoU": iou, "Pd": 90.0, "Fa": fa}, matching)


@pytest.mark.parametrize(
    ("ours", "tone", "words"),
    [
        (58.0, "better", "beat training on the labels only by 6.0 points"),
        (50.5, "worse", "did not beat training on the labels only: it lost 1.5 points"),
        (52.02, "level", "did not beat training on the labels only: their IoU is level"),
    ],
)
def test_the_headline_says_who_won(ours: float, tone: str, words: str) -> None:
    verdict = judge([row("labels-only", 52.0), row("fewlabel", ours)])
    assert verdict.tone == tone
    assert words in verdict.headline
    assert "one seed" in verdict.details[-1]


def test_only_a_higher_iou_is_called_a_win() -> None:
    for ours, base in product(range(40, 60, 3), repeat=2):
        headline = judge([row("labels-only", base), row("fewlabel", ours)]).headline
        assert ("did not beat" in headline) == (ours <= base)


def test_a_metric_that_tells_another_story_is_named() -> None:
    verdict = judge([row("labels-only", 52.0, fa=10.0), row("fewlabel", 58.0, fa=33.0)])
    assert "the false alarms (Fa) rose from 10.0 to 33.0 per million pixels" in " ".join(verdict.details)
    verdict = judge([row("labels-only", 52.0, fa=33.0), row("fewlabel", 50.0, fa=10.0)])
    assert "Not everything got worse" in " ".join(verdict.details)
    verdict = judge([row("labels-only", 52.0, fa=33.0), row("fewlabel", 58.0, fa=10.0)])
    assert "Not everything" not in " ".join(verdict.details)


def test_different_matching_rules_are_not_compared() -> None:
    verdict = judge([row("labels-only", 52.0, matching="legacy"), row("fewlabel", 58.0, fa=33.0)])
    assert "different matching rules" in verdict.details[0]
    assert "Fa) rose" not in " ".join(verdict.details)


def test_the_gap_to_all_labels_and_stronger_baselines_are_named() -> None:
    rows = [row("labels-only", 50.0), row("teacher", 59.0), row("fewlabel", 55.0), row("all-labels", 60.0)]
    verdict = judge(rows)
    text = " ".join(verdict.details)
    assert "50\u00a0% of the way" in text
    assert "Higher than fewlabel: Teacher (SAM + adapter) (59.0" in text
    assert [round(other.gain, 6) for other in verdict.differences] == [5.0, -4.0, -5.0]
    assert "also reached" in " ".join(
        judge([row("labels-only", 50), row("fewlabel", 61), row("all-labels", 60)]).details
    )


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("labels-only", 50.0)],
        [row("fewlabel", 50.0)],
        [row("fewlabel", float("nan")), row("labels-only", 50.0)],
    ],
)
def test_without_both_scores_nothing_is_claimed(rows: list[ScoreRow]) -> None:
    verdict = judge(rows)
    assert verdict.tone == "unknown"
    assert "beat" not in verdict.headline


def boxes(method: str, ap50: float, **others: float) -> ScoreRow:
    """A row of a student that gives boxes."""
    return ScoreRow(method, {"AP50": ap50, "AP": 20.0, "recall": 70.0, "precision": 70.0, **others})


def test_students_that_give_boxes_are_compared_by_ap50() -> None:
    rows = [boxes("labels-only", 50.0), boxes("fewlabel", 55.0, precision=61.5), boxes("all-labels", 60.0)]
    verdict = judge(rows)
    assert (verdict.tone, verdict.metric, verdict.value) == ("better", "AP50", 55.0)
    assert "by 5.0 points of AP50 (55.0\u00a0% against 50.0\u00a0%)" in verdict.headline
    text = " ".join(verdict.details)
    assert (
        "Not everything improved: precision fell from 70.0 to 61.5\u00a0%." in text and "50\u00a0% of the way" in text
    )
    assert [round(other.gain, 6) for other in verdict.differences] == [5.0, -5.0]
    assert "reached an AP50 of 55.0" in judge(rows[1:2]).headline
    assert judge([row("labels-only", 50.0), row("fewlabel", 55.0)]).metric == "IoU"


def test_only_the_embedded_sam_is_called_nano_sam() -> None:
    assert "result of nano-SAM and says nothing about Meta's SAM" in sam_line("nano")
    assert "nano" not in sam_line("facebook/sam-vit-base")
