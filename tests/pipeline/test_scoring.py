"""Scores of a stream of probabilities equal those of the metrics on masks, and the table has every column."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fewlabel.core.files import write_json
from fewlabel.metrics.roc import RocMetric
from fewlabel.metrics.scores import evaluate
from fewlabel.pipeline.scoring import CURVE, THRESHOLD, score_table, score_with_curve


def maps(count: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities that know something of the truth, and the truth."""
    rng = np.random.default_rng(1)
    truths = [rng.random((24, 30)) < 0.02 for _ in range(count)]
    return [((0.6 * truth + 0.5 * rng.random(truth.shape)).astype(np.float32) / 1.1, truth) for truth in truths]


@pytest.mark.parametrize("rule", ["nearest", "legacy"])
def test_one_pass_gives_the_scores_and_the_curve(rule: str) -> None:
    found = score_with_curve(iter(maps()), rule)
    curve = RocMetric(CURVE, rule)
    for scores, truth in maps():
        curve.update(scores, truth)
    assert found.pop("roc") == curve.compute()
    assert found == evaluate([(scores > THRESHOLD, truth) for scores, truth in maps()], rule)


def test_the_curve_passes_through_the_scores() -> None:
    found = score_with_curve(maps(), "nearest")
    place = found["roc"]["thresholds"].index(THRESHOLD)
    assert (found["roc"]["Pd"][place], found["roc"]["Fa"][place]) == (found["Pd"], found["Fa"])
    assert len(set(found["roc"]["Pd"])) > 2


def test_images_are_let_go_once_they_are_counted() -> None:
    lent: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(5):
            assert all(one() is None for one in lent[:-1])
            scores = rng.random((20, 20))
            lent.append(weakref.ref(scores))
            yield scores, scores > 0.99

    assert score_with_curve(stream(), "nearest")["images"] == len(lent) == 5


def content(**labels: object) -> dict[str, object]:
    summary = {"images": 5, "accepted": 3, "ignored": 1, "rejected": 0, "coverage": 0.75, "reasons": {}} | labels
    scores = score_with_curve(maps(), "nearest")
    methods = {"labels-only": scores | {"Fa": 123456.7}, "fewlabel-minus-a-long-part": scores}
    return {"methods": methods, "pseudo_labels": summary | {"truth": scores}, "matching": "nearest"}


def test_the_table_fits_a_terminal_and_shows_every_score(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", content())
    table = score_table(tmp_path)
    head, first, *_, last = table.splitlines()
    assert head.split()[:11] == ["method", "IoU", "%", "nIoU", "%", "hIoU", "%", "Pd", "%", "Fa", "ppm"]
    stored = json.loads((tmp_path / "scores.json").read_text())["methods"]["labels-only"]
    assert first.split() == ["labels-only", *(f"{stored[key]:.1f}" for key in ("IoU", "nIoU", "hIoU", "Pd", "Fa"))]
    assert last.startswith("(pseudo-labels)") and "warning" not in table
    assert max(map(len, table.splitlines())) <= 100


def test_a_teacher_that_proposed_nothing_is_named_under_the_table(tmp_path: Path) -> None:
    nothing = content(accepted=0, ignored=0, coverage=None)
    write_json(tmp_path / "scores.json", nothing)
    assert score_table(tmp_path).splitlines()[-1].startswith("warning: the teacher proposed no target in 5 unlabelled")
    write_json(tmp_path / "scores.json", nothing | {"methods": {}})
    first, second = score_table(tmp_path).splitlines()
    assert "no test images" in first and "warning" in second
