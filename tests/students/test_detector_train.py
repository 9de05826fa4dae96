from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.masks import component_boxes, components
from fewlabel.data.augment import AugmentConfig, Patch, crop_batch
from fewlabel.data.pool import Draw, patch_of_scene
from fewlabel.data.synth.infrared import InfraredConfig, render
from fewlabel.metrics.boxes import BoxMetric, BoxScores
from fewlabel.students.detector.boxes import crop_boxes
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.predict import detect
from fewlabel.students.detector.train import DetectorConfig, step_loss_on, train_detector

FRAME = 48
CONFIG = DetectorConfig(steps=4, batch=2, crop=FRAME, log_every=2)
STILL = AugmentConfig(target_probability=1, turns=False, scale_probability=0, gain=0, offset=0, gamma=0, noise=0)
EASY = InfraredConfig(counts=(0, 1, 1), snr=(10, 120), area=(6, 80))


def scene(seed: int) -> Patch:
    return patch_of_scene(render(np.random.default_rng([5, seed]), FRAME, EASY))


def draw(n: int, rng: np.random.Generator) -> list[Patch]:
    return [scene(int(seed)) for seed in rng.integers(100, size=n)]


def fresh() -> Detector:
    torch.manual_seed(0)
    return Detector(FRAME)


def loss_of(model: nn.Module, seed: int, step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    return step_loss_on(draw, CONFIG, seed)(model, step)


def test_loss_is_a_function_of_seed_step_and_torchs_generator():
    model = fresh()
    value = loss_of(model, 3, 5)["loss"]
    assert torch.equal(loss_of(model, 3, 5)["loss"], value)
    assert not torch.equal(loss_of(model, 3, 6)["loss"], value)
    assert not torch.equal(loss_of(model, 4, 5)["loss"], value)
    assert not torch.equal(step_loss_on(draw, CONFIG, 3)(model, 5)["loss"], value)  # other noise


def test_loss_is_that_of_the_boxes_after_the_crop():
    model = fresh()
    terms = loss_of(model, 3, 5)
    rng = np.random.default_rng([3, 5])
    batch = crop_batch(draw(CONFIG.batch, rng), FRAME, rng, CONFIG.augment, objects=True)
    truth = [crop_boxes(o, w[0]) for o, w in zip(batch.objects.numpy(), batch.weights.numpy(), strict=True)]
    torch.manual_seed(9)
    expected = model.loss(batch.images, truth)
    assert set(terms) == set(expected)
    assert all(torch.equal(terms[name], expected[name]) for name in terms)


def test_touching_objects_are_two_boxes():
    """A patch tells its objects apart; without them the same target is one box."""
    target = np.zeros((FRAME, FRAME), np.int32)
    target[20:30, 10:20], target[20:30, 20:28] = 1, 2
    plane = np.random.default_rng(0).standard_normal(target.shape).astype(np.float32)
    joined = Patch(plane, target > 0, np.ones_like(plane))
    config = CONFIG.model_copy(update={"augment": STILL, "batch": 1})
    seen = []

    class Watching(Detector):
        def loss(self, images, truth):
            seen.append(sorted(truth[0].boxes.tolist()))
            return super().loss(images, truth)

    torch.manual_seed(0)
    model = Watching(FRAME)
    for patch in (replace(joined, objects=target), joined):
        step_loss_on(lambda n, rng, patch=patch: [patch] * n, config, 0)(model, 0)
    assert seen == [[[10, 20, 20, 30], [20, 20, 28, 30]], [[10, 20, 28, 30]]]


def test_ignored_patches_ask_for_nothing():
    def ignored(n: int, rng: np.random.Generator) -> list[Patch]:
        return [Patch(p.image, p.target, np.zeros_like(p.weight)) for p in draw(n, rng)]

    terms = step_loss_on(ignored, CONFIG, 0)(fresh(), 0)
    assert {name: terms[name].item() for name in ("vfl", "bbox", "giou", "fgl")} == dict.fromkeys(
        ("vfl", "bbox", "giou", "fgl"), 0
    )


def test_resumed_training_equals_the_uninterrupted_one(tmp_path: Path, resumed_equals_whole):
    def train(folder: Path, drawing: Draw) -> nn.Module:
        model = fresh()
        train_detector(model, drawing, CONFIG, folder, seed=1, label="detector")
        return model

    whole = resumed_equals_whole(train, draw, 2)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), fresh().parameters(), strict=True))
    wider = CONFIG.model_copy(update={"crop": 64})
    with pytest.raises(RunError, match="other settings"):
        train_detector(Detector(64), draw, wider, tmp_path / "whole", seed=1, label="detector")


def test_crops_of_another_size_than_the_frame_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"frame is 64 pixels wide and the crops are 48; make a Detector\(48\)"):
        train_detector(Detector(64), draw, CONFIG, tmp_path / "run", seed=1, label="detector")
    assert not (tmp_path / "run").exists()


def test_a_few_scenes_are_learnt(tmp_path: Path):
    scenes = [scene(seed) for seed in range(3)]

    def score(model: Detector) -> BoxScores:
        metric = BoxMetric()
        for patch in scenes:
            metric.update(*detect(model, patch.image), component_boxes(*components(patch.target)))
        return metric.compute()

    model = fresh()
    assert score(model)["AP50"] < 10
    config = DetectorConfig(steps=40, batch=3, crop=FRAME, lr=2e-3, ema=0.9, augment=STILL, log_every=10)
    train_detector(model, lambda n, rng: scenes, config, tmp_path, seed=0, label="detector")
    scores = score(model)
    assert scores["boxes"] >= 3
    assert scores["AP50"] > 50


def test_only_a_detector_is_trained():
    with pytest.raises(TypeError, match="not a Linear"):
        step_loss_on(draw, CONFIG, 0)(nn.Linear(1, 1), 0)


def test_unknown_options_are_refused():
    for wrong in ({"crop": 100}, {"crop": 0}, {"iou_weight": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            DetectorConfig.model_validate(wrong)
