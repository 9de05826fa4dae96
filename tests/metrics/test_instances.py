"""Mask AP and boundary AP against pycocotools and a plain reading of the rules; quality of pseudo-labels by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewlabel.core import masks as mask_ops
from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances
from fewlabel.metrics.instances import (
    InstanceMetric,
    boundary,
    instance_compute,
    instance_update,
    ious,
    mask_quality,
    quality_compute,
    quality_update,
)

CLASSES = 3
SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # pycocotools' first six figures, in its order


def disc(size, y, x, r):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r * r


def objects(masks, classes=None, scores=None, size=(40, 50)):
    stack = np.stack(masks) if len(masks) else np.zeros((0, *size), bool)
    return Instances.from_masks(stack, size=size, classes=classes, scores=scores)


def scene(rng, size, true, copies, others, ignored):
    """True discs of several classes and sizes, detections near them and elsewhere, crowds."""

    def draw(count, near=()):
        found = [
            disc(size, y + rng.normal(0, 1.5), x + rng.normal(0, 1.5), r * rng.uniform(0.8, 1.2)) for y, x, r in near
        ]
        return found + [disc(size, *places(1)[0]) for _ in range(count)]

    def places(count):
        return [(*(rng.uniform(0, side) for side in size), rng.choice([3, 8, 14, 40, 52])) for _ in range(count)]

    spots = places(true)
    truth = [disc(size, *spot) for spot in spots]
    kinds = list(rng.integers(0, CLASSES - 1, true))  # the last class has no true object
    found = draw(others, near=[spot for spot in spots for _ in range(copies)])
    guesses = [kind if rng.random() < 0.8 else rng.integers(0, CLASSES) for kind in np.repeat(kinds, copies)]
    guesses += list(rng.integers(0, CLASSES, others))
    crowds = draw(ignored)

    def held(masks, classes, scores=None):
        kept = [index for index, mask in enumerate(masks) if mask.any()]
        chosen = None if scores is None else [scores[index] for index in kept]
        return objects([masks[index] for index in kept], [int(classes[index]) for index in kept], chosen, size)

    scores = np.round(rng.random(len(found)), 2)  # equal ones too
    return held(found, guesses, scores), held(truth, kinds), held(crowds, rng.integers(0, CLASSES - 1, ignored))


@st.composite
def scenes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = st.integers(0, 3)
    sizes = [(40, 50), (120, 110)]
    return [
        scene(rng, draw(st.sampled_from(sizes)), draw(numbers), draw(numbers), draw(numbers), draw(st.integers(0, 1)))
        for _ in range(draw(st.integers(1, 3)))
    ]


def oracle(images, change_iou=None):
    """pycocotools' evaluation: the first six of its figures and AR, and AP of each class."""
    from pycocotools import mask as coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def computeIoU(self, image, category):  # noqa: N802
            found = super().computeIoU(image, category)
            return found if change_iou is None else change_iou(self, image, category, found)

    def code(rle):
        return {"size": list(rle["size"]), "counts": rle["counts"]}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        annotations, results = [], []
        for number, (predicted, true, ignored) in enumerate(images, 1):
            for side, crowd in ((true, 0), (ignored, 1)):
                annotations += [
                    {"image_id": number, "category_id": int(k) + 1, "segmentation": code(r), "iscrowd": crowd}
                    | {"area": float(coco.area(code(r))), "id": 0}
                    for r, k in zip(side.rles, side.classes, strict=True)
                ]
            results += [
                {"image_id": number, "category_id": int(k) + 1, "segmentation": code(r), "score": float(s)}
                for r, k, s in zip(predicted.rles, predicted.classes, predicted.scores, strict=True)
            ]
        for index, annotation in enumerate(annotations, 1):
            annotation["id"] = index
        truth.dataset = {
            "images": [
                {"id": k, "height": image[1].size[0], "width": image[1].size[1]} for k, image in enumerate(images, 1)
            ],
            "categories": [{"id": k + 1} for k in range(CLASSES)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = Evaluation(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(SUMMARY, evaluation.stats[:6], strict=True)) | {"AR": evaluation.stats[8]}
    by_class = [evaluation.eval["precision"][:, :, k, 0, 2].mean() for k in range(CLASSES)]

    def percent(value):
        return math.nan if value == -1 else 100 * value

    return {name: percent(value) for name, value in figures.items()}, [percent(value) for value in by_class]


def scores_of(images):
    return instance_compute([instance_update(*image) for image in images], CLASSES)


def comparable(images):
    return any(len(image[1]) for image in images) and any(len(image[0]) for image in images)


@settings(max_examples=40, deadline=None)
@given(scenes().filter(comparable))
def test_equals_pycocotools(images):
    expected, by_class = oracle(images)
    scores = scores_of(images)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert [kind["AP"] for kind in scores["by_class"]] == pytest.approx(by_class, abs=1e-6, nan_ok=True)


def rim(mask):
    """The boundary by repeated erosion with a square of 3 x 3 pixels; the image's border erodes too."""
    steps = max(1, round(0.02 * math.hypot(*mask.shape)))
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)


def plain_iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def smaller_iou(evaluation, image, category, found):
    """COCO's IoUs with boundary IoUs, where these are smaller, for all but crowds."""
    truths, detections = evaluation._gts[image, category], evaluation._dts[image, category]
    if not len(found):
        return found
    detections = [detections[i] for i in np.argsort([-d["score"] for d in detections], kind="mergesort")][:100]
    rims = [[rim(mask_ops.decode(item["segmentation"])) for item in side] for side in (detections, truths)]
    for row, first in enumerate(rims[0]):
        for column, second in enumerate(rims[1]):
            if not truths[column]["iscrowd"]:
                found[row, column] = min(found[row, column], plain_iou(first, second))
    return found


@settings(max_examples=20, deadline=None)
@given(scenes().filter(comparable))
def test_boundary_ap_equals_pycocotools_on_brute_force_boundaries(images):
    expected, by_class = oracle(images, smaller_iou)
    scores = scores_of(images)
    assert scores["boundary_AP"] == pytest.approx(expected["AP"], abs=1e-6, nan_ok=True)
    assert scores["boundary_AP50"] == pytest.approx(expected["AP50"], abs=1e-6, nan_ok=True)
    assert [kind["boundary_AP"] for kind in scores["by_class"]] == pytest.approx(by_class, abs=1e-6, nan_ok=True)
    assert scores["boundary_AP"] <= scores["AP"] + 1e-9 or math.isnan(scores["AP"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 90), st.integers(3, 120))
def test_boundary_equals_erosion(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = ndimage.binary_closing(rng.random((height, width)) < rng.uniform(0.3, 1.0), iterations=2)
    assert np.array_equal(mask_ops.decode(boundary(mask_ops.encode(mask))), rim(mask))


def test_a_large_mask_that_is_a_little_too_large_has_a_low_boundary_score():
    size = (200, 200)
    true, predicted = (objects([disc(size, 100, 100, r)], [0], size=size) for r in (80, 84))
    scores = instance_compute([instance_update(predicted, true)], 1)
    assert scores["AP"] == pytest.approx(90)  # IoU (80 / 84)^2 = 0.907: all thresholds up to 0.90
    assert scores["boundary_AP"] == 0  # rims of four pixels that do not meet


@settings(max_examples=20, deadline=None)
@given(scenes().filter(lambda images: any(len(image[1]) for image in images)))
def test_the_truth_scores_one_hundred(images):
    exact = [(true, true, ignored) for _, true, ignored in images]
    scores = scores_of(exact)
    assert [scores[name] for name in ("AP", "AP50", "AP75", "AR", "boundary_AP")] == pytest.approx([100.0] * 5)


def test_classes_count():
    mask = disc((40, 50), 20, 20, 9)
    for kind, ap in ((1, 100.0), (0, 0.0)):
        metric = InstanceMetric(CLASSES)
        metric.update(objects([mask], [kind], [0.9]), objects([mask], [1]))
        scores = metric.compute()
        assert scores["AP"] == pytest.approx(ap)
        assert math.isnan(scores["by_class"][0]["AP"]) and math.isnan(scores["by_class"][2]["AP"])
        assert [entry["instances"] for entry in scores["by_class"]] == [0, 1, 0]


def test_detections_in_ignored_regions_are_forgiven_in_their_class_alone():
    size = (60, 60)
    true, crowd = disc(size, 15, 15, 8), disc(size, 45, 45, 12)
    wrong = disc(size, 45, 45, 5)
    for ignored, kind, ap50 in (([crowd], 0, 100), ([], 0, 50), ([crowd], 1, 50)):
        pair = instance_update(
            objects([wrong, true], [0, 0], [0.9, 0.8], size), objects([true], [0], size=size),
            objects(ignored, [kind] * len(ignored), size=size),
        )  # fmt: skip
        scores = instance_compute([pair], 2)
        assert scores["AP50"] == pytest.approx(ap50)
        assert (scores["instances"], scores["ignored"], scores["detections"]) == (1, len(ignored), 2)


def test_without_true_objects_there_is_no_score_and_without_detections_it_is_zero():
    mask = disc((40, 50), 20, 20, 9)
    metric = InstanceMetric(1)
    assert math.isnan(metric.compute()["AP"])
    metric.update(objects([mask]), objects([]))
    scores = metric.compute()
    assert all(math.isnan(scores[name]) for name in (*SUMMARY, "AR", "boundary_AP", "boundary_AP50"))
    assert (scores["images"], scores["instances"], scores["detections"]) == (1, 0, 1)
    metric.update(objects([]), objects([mask]))
    scores = metric.compute()
    assert scores["AP"] == scores["AR"] == scores["boundary_AP"] == scores["AP_small"] == 0
    assert math.isnan(scores["AP_large"])


def test_given_objects_are_not_changed():
    mask = disc((40, 50), 20, 20, 9)
    predicted, true = objects([mask], [0], [0.5]), objects([mask])
    before = [dict(side.rles[0]) for side in (predicted, true)]
    instance_compute([instance_update(predicted, true)], 1)
    assert [dict(side.rles[0]) for side in (predicted, true)] == before


def test_bad_input_is_refused():
    mask = disc((40, 50), 20, 20, 9)
    with pytest.raises(DataError, match=r"sizes \[\(40, 50\), \(60, 60\)\]"):
        instance_update(objects([mask]), objects([], size=(60, 60)))
    with pytest.raises(DataError, match="not finite"):
        instance_update(objects([mask], scores=[math.nan]), objects([mask]))
    with pytest.raises(DataError, match="no pixel"):
        instance_update(objects([mask]), objects([mask & False]))
    with pytest.raises(DataError, match="class ids 3 to 3, expected 0 to 2"):
        scores_of([(objects([mask], [3]), objects([mask]), None)])
    with pytest.raises(DataError, match="of 60 x 60"):
        mask_quality(objects([mask]), objects([], size=(60, 60)))


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_ious_and_quality_equal_a_plain_reading(images):
    best, right, true_count = [], 0, 0
    for predicted, true, _ in images:
        table = np.array([[plain_iou(p, t) for t in true.masks()] for p in predicted.masks()])
        table = table.reshape(len(predicted), len(true))
        assert np.allclose(ious(predicted.rles, true.rles), table)
        best += [max(row, default=0.0) for row in table]
        free = set(range(len(true)))
        for index in sorted(range(len(predicted)), key=lambda i: -predicted.scores[i]):  # noqa: B023
            wanted = max(free, key=lambda t: (table[index, t], -t), default=None)  # noqa: B023
            if wanted is not None and table[index, wanted] >= 0.5:
                free.remove(wanted)
        right, true_count = right + len(true) - len(free), true_count + len(true)
    quality = quality_compute(quality_update(predicted, true) for predicted, true, _ in images)
    assert (quality["predictions"], quality["instances"]) == (len(best), true_count)
    expected = [np.mean(best), right / len(best)] if best else [math.nan] * 2
    expected.append(right / true_count if true_count else math.nan)
    figures = [quality["iou"] / 100, quality["precision"] / 100, quality["recall"] / 100]
    assert figures == pytest.approx(expected, nan_ok=True)


def test_quality_forgets_classes_and_counts_a_second_finding_as_wrong():
    masks = [disc((40, 50), 12, 12, 7), disc((40, 50), 12, 38, 7)]
    quality = mask_quality(objects([masks[0], masks[0]], [2, 0], [0.3, 0.9]), objects(masks, [1, 1]))
    assert quality == {"iou": 100.0, "precision": 50.0, "recall": 50.0, "predictions": 2, "instances": 2}
    nothing = mask_quality(objects([]), objects(masks))
    assert math.isnan(nothing["iou"]) and math.isnan(nothing["precision"]) and nothing["recall"] == 0
