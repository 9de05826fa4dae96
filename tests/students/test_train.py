from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fewlabel.core.errors import RunError
from fewlabel.data.augment import Patch, crop_batch
from fewlabel.data.pool import Draw
from fewlabel.students import create
from fewlabel.students.predict import predict
from fewlabel.students.train import (
    StudentConfig,
    batch_of,
    head_logits,
    loss_terms,
    step_loss_on,
    train_student,
)
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


def believing(n: int, rng: np.random.Generator) -> list[Patch]:
    """Patches of which each second one has a teacher's belief, in part unknown."""
    patches = draw(n, rng)
    for number in range(0, n, 2):
        soft = np.where(patches[number].target, 0.8, 0.1).astype(np.float32)
        soft[:10] = np.nan
        patches[number] = replace(patches[number], soft=soft)
    return patches


@pytest.mark.parametrize("name", ["unet", "mshnet"])
def test_beliefs_share_the_loss_of_the_crops_that_have_them(name: str):
    torch.manual_seed(0)
    model, config, share = create(name).eval(), CONFIG.model_copy(update={"batch": 5}), 0.3
    terms = step_loss_on(believing, config, 3, share)(model, 2)
    batch = batch_of(believing, config, 3, 2)
    total = bces = 0.0
    for number in range(5):
        one = slice(number, number + 1)
        heads = head_logits(model, batch.images[one])
        hard = loss_terms(heads, batch.targets[one], batch.weights[one], config)["loss"]
        if number % 2:
            total += hard
            continue
        known = ~batch.soft[one].isnan()
        cross = [
            nn.functional.binary_cross_entropy_with_logits(logits[known], batch.soft[one][known]) for logits in heads
        ]
        total += (1 - share) * hard
        bces += torch.stack(cross).mean() * known.sum() / (~batch.soft[::2].isnan()).sum()
    expected = total / 5 + share * 3 / 5 * bces
    # Cross-entropies are means over the pixels of all crops, which are of one size here, known pixels excepted.
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["soft_bce"].item() == pytest.approx(bces.item(), rel=1e-4)


def test_without_a_share_or_without_beliefs_the_loss_is_the_hard_one():
    model = fresh().eval()
    hard = step_loss_on(draw, CONFIG, 3)(model, 2)
    assert torch.equal(step_loss_on(believing, CONFIG, 3)(model, 2)["loss"], hard["loss"])
    terms = step_loss_on(draw, CONFIG, 3, 0.5)(model, 2)
    assert torch.equal(terms["loss"], hard["loss"]) and terms["soft_bce"] == 0


def test_unknown_beliefs_give_no_gradient():
    def unknown(n: int, rng: np.random.Generator) -> list[Patch]:
        return [replace(p, soft=np.full_like(p.image, np.nan), weight=np.zeros_like(p.weight)) for p in draw(n, rng)]

    model = fresh()
    step_loss_on(unknown, CONFIG, 0, 0.5)(model, 0)["loss"].backward()
    assert all((value.grad is None) or (value.grad == 0).all() for value in model.parameters())


def test_a_pure_belief_is_learned(tmp_path: Path):
    """With all weight on them, the student ends with the teacher's probabilities, not with 0 and 1."""

    def drawing(n: int, rng: np.random.Generator) -> list[Patch]:
        return [replace(p, soft=np.where(p.target, 0.7, 0.02).astype(np.float32)) for p in draw(n, rng)]

    model = fresh()
    config = CONFIG.model_copy(update={"steps": 90, "batch": 2, "lr": 1e-2, "ema": 0.9})
    train_student(model, drawing, config, tmp_path, seed=1, label="student", soft_weight=1.0)
    unseen = patch(np.random.default_rng(99))
    found = predict(model, unseen.image)
    assert 0.55 < np.median(found[unseen.target]) < 0.85
    assert np.median(found[~unseen.target]) < 0.06


def test_the_share_of_beliefs_is_part_of_the_training(tmp_path: Path):
    train_student(fresh(), draw, CONFIG, tmp_path, seed=1, label="student")
    with pytest.raises(RunError, match="other settings"):
        train_student(fresh(), draw, CONFIG, tmp_path, seed=1, label="student", soft_weight=0.5)


def test_the_images_of_a_broken_step_are_named(tmp_path: Path):
    def broken(n: int, rng: np.random.Generator) -> list[Patch]:
        return [replace(p, image=np.full_like(p.image, np.nan), id=f"frame-{i}") for i, p in enumerate(draw(n, rng))]

    with pytest.raises(RunError, match="at step 0 on crops of frame-0, frame-1"):
        train_student(fresh(), broken, CONFIG, tmp_path, seed=1, label="student")


def test_resumed_training_equals_the_uninterrupted_one(resumed_equals_whole):
    def train(folder: Path, drawing: Draw) -> nn.Module:
        model = fresh()
        train_student(model, drawing, CONFIG, folder, seed=1, label="student")
        return model

    resumed_equals_whole(train, draw, 3)


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
