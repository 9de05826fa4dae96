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
    assert [round(other.iou, 6) for other in verdict.differences] == [5.0, -4.0, -5.0]
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


def test_only_the_embedded_sam_is_called_nano_sam() -> None:
    assert "result of nano-SAM and says nothing about Meta's SAM" in sam_line("nano")
    assert "nano" not in sam_line("facebook/sam-vit-base")
