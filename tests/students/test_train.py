import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fewlabel.data.augment import Patch, crop_batch
from fewlabel.students import create
from fewlabel.students.predict import predict
from fewlabel.students.train import StudentConfig, step_loss_on, train_student
from fewlabel.training.losses import bce, sls, soft_iou

CONFIG = StudentConfig(steps=8, batch=2, crop=32, lr=5e-3, log_every=4)


def patch(rng: np.random.Generator, size: int = 48) -> Patch:
    """White noise with one bright target of 4 x 5 pixels."""
    target = np.zeros((size, size), bool)
    row, column = rng.integers(2, size - 8, 2)
    target[row : row + 4, column : column + 5] = True
    image = rng.normal(0, 0.5, (size, size)).astype(np.float32) + 5 * target.astype(np.float32)
    return Patch(image, target, np.ones((size, size), np.float32))


def draw(n: int, rng: np.random.Generator) -> list[Patch]:
    return [patch(rng) for _ in range(n)]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return create("unet")


def test_loss_is_a_pure_function_of_seed_and_step():
    model = fresh().eval()
    first, again = step_loss_on(draw, CONFIG, 3), step_loss_on(draw, CONFIG, 3)
    value = first(model, 5)["loss"]
    assert torch.equal(first(model, 5)["loss"], value)
    assert torch.equal(again(model, 5)["loss"], value)
    assert not torch.equal(first(model, 6)["loss"], value)
    assert not torch.equal(step_loss_on(draw, CONFIG, 4)(model, 5)["loss"], value)


def test_weights_of_the_losses_are_used():
    model = fresh().eval()
    config = CONFIG.model_copy(update={"bce_weight": 2.0, "iou_weight": 0.25})
    terms = step_loss_on(draw, config, 0)(model, 0)
    assert terms["loss"].item() == pytest.approx(2 * terms["bce"].item() + 0.25 * terms["soft_iou"].item())
    assert terms["bce"] > 0
    assert terms["soft_iou"] > 0


def test_all_heads_are_supervised_alike(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = create("mshnet").eval()
    config = CONFIG.model_copy(update={"sls_weight": 0.5})
    seen = []
    head_logits = type(model).head_logits

    def spy(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return head_logits(self, images)

    monkeypatch.setattr(type(model), "head_logits", spy)
    terms = step_loss_on(draw, config, 3)(model, 5)
    rng = np.random.default_rng([3, 5])
    batch = crop_batch(draw(config.batch, rng), config.crop, rng, config.augment)
    assert len(seen) == 1 and torch.equal(seen[0], batch.images)
    heads = head_logits(model, batch.images)
    for loss in (bce, soft_iou, sls):
        each = [loss(heads[:, k : k + 1], batch.targets, batch.weights).item() for k in range(5)]
        assert terms[loss.__name__].item() == pytest.approx(sum(each) / 5, rel=1e-5)
    total = terms["bce"] + terms["soft_iou"] + 0.5 * terms["sls"]
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_a_loss_without_weight_is_not_computed():
    assert set(step_loss_on(draw, CONFIG, 0)(fresh(), 0)) == {"loss", "bce", "soft_iou"}


def test_ignored_patches_give_no_loss():
    def ignored(n: int, rng: np.random.Generator) -> list[Patch]:
        return [Patch(p.image, p.target, np.zeros_like(p.weight)) for p in draw(n, rng)]

    assert step_loss_on(ignored, CONFIG, 0)(fresh(), 0)["loss"].item() == 0


def test_resumed_training_equals_the_uninterrupted_one(tmp_path: Path):
    def train(folder: Path, stop_at: int = -1) -> nn.Module:
        steps = iter(range(100))

        def drawing(n: int, rng: np.random.Generator) -> list[Patch]:
            if next(steps) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(n, rng)

        model = fresh()
        train_student(model, drawing, CONFIG, folder, seed=1, label="student")
        return model

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop_at=3)
    resumed = train(tmp_path / "cut")
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_training_finds_targets_of_unseen_images(tmp_path: Path):
    model = fresh()
    config = CONFIG.model_copy(update={"steps": 80, "batch": 4, "ema": 0.9})
    train_student(model, draw, config, tmp_path, seed=1, label="student")
    overlap = union = 0
    for seed in range(5):
        unseen = patch(np.random.default_rng([99, seed]))
        found = predict(model, unseen.image) > 0.5
        overlap += (found & unseen.target).sum()
        union += (found | unseen.target).sum()
    assert overlap / union > 0.6


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="learning_rate"):
        StudentConfig.model_validate({"learning_rate": 1})
