"""The mean teacher: whose weights say what, that turns are undone, and that a cut training goes on exactly."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewlabel.core.errors import RunError
from fewlabel.data.augment import AugmentConfig, Batch, Patch, crop_batch
from fewlabel.data.pool import Draw
from fewlabel.students import create
from fewlabel.students.mean_teacher import (
    MeanTeacherConfig,
    agreement,
    averaged_belief,
    batch_of,
    labelled_crops,
    ramp_up,
    step_loss_on,
    train_mean_teacher,
    two_views,
)
from fewlabel.students.predict import predict
from fewlabel.students.train import StudentConfig, head_logits, loss_terms
from fewlabel.training.ema import Ema
from fewlabel.training.losses import bce, soft_iou

CONFIG = StudentConfig(steps=8, batch=4, crop=32, lr=5e-3, log_every=4)
OPTIONS = MeanTeacherConfig()


def patch(rng: np.random.Generator, size: int = 48) -> Patch:
    """White noise with one bright target of 4 x 5 pixels."""
    target = np.zeros((size, size), bool)
    row, column = rng.integers(2, size - 8, 2)
    target[row : row + 4, column : column + 5] = True
    image = rng.normal(0, 0.5, (size, size)).astype(np.float32) + 5 * target.astype(np.float32)
    return Patch(image, target, np.ones((size, size), np.float32), id="known")


def labelled(n: int, rng: np.random.Generator) -> list[Patch]:
    return [patch(rng) for _ in range(n)]


def unlabelled(n: int, rng: np.random.Generator) -> list[Patch]:
    empty = np.zeros((48, 48), bool)
    return [Patch(patch(rng).image, empty, empty.astype(np.float32), id="new") for _ in range(n)]


def settled(name: str = "unet") -> nn.Module:
    """A student whose running statistics are no longer those of the start."""
    torch.manual_seed(0)
    model = create(name).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 1, 32, 32))
    return model


def moved(model: nn.Module) -> Ema:
    """An average that is not the model."""
    ema = Ema(model, 0.9)
    generator = torch.Generator().manual_seed(1)
    for value in ema.weights.values():
        value += 0.05 * torch.randn(value.shape, generator=generator)
    return ema


@pytest.mark.parametrize("name", ["unet", "mshnet"])
def test_the_average_is_the_teacher_and_the_loss_is_the_formula(name: str):
    model = settled(name)
    ema, options = moved(model), OPTIONS.model_copy(update={"weight": 0.7})
    loss = step_loss_on(labelled, unlabelled, CONFIG, options, ema, share=0.5, seed=3)
    before = copy.deepcopy(model.state_dict())
    terms = loss(model, 1)
    after, averages = copy.deepcopy(model.state_dict()), {name: value.clone() for name, value in ema.weights.items()}

    known, views = batch_of(labelled, unlabelled, CONFIG, options, share=0.5, seed=3, step=1)
    assert len(known.images) == len(views.weak) == len(views.strong) == 2
    model.load_state_dict(before)
    teacher = copy.deepcopy(model).eval()
    ema.copy_to(teacher)
    with torch.no_grad():
        belief = torch.sigmoid(teacher(views.weak))
    targets = np.stack([_turn(plane.numpy(), turn) for plane, turn in zip(belief[:, 0], views.turns, strict=True)])
    belief = torch.from_numpy(targets)[:, None]
    sure = ((belief < options.low) | (belief > options.high)).float()
    heads = head_logits(model, torch.cat([known.images, views.strong]))
    supervised = loss_terms([head[:2] for head in heads], known.targets, known.weights, CONFIG)
    guessed = [head[2:] for head in heads]
    mask = (belief > 0.5).float()
    consistency = torch.stack([bce(one, belief, sure) + soft_iou(one, mask, sure) for one in guessed]).mean()
    weight = 0.7 * ramp_up(1, CONFIG.steps / 3)
    torch.testing.assert_close(terms["loss"], supervised["loss"] + weight * consistency)
    torch.testing.assert_close(terms["consistency"], consistency)
    torch.testing.assert_close(terms["bce"], supervised["bce"])
    torch.testing.assert_close(terms["sure"], sure.mean())

    # Running statistics are those of the student's own pass, and the average is only read.
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, averages[key]) for key, value in ema.weights.items())
    assert model.training


def _turn(plane: np.ndarray, turn: int) -> np.ndarray:
    plane = np.rot90(plane, turn % 4)
    return np.ascontiguousarray(plane[:, ::-1] if turn >= 4 else plane)


def test_a_student_that_agrees_has_the_least_loss():
    """Where it says what the average says, nothing pulls it away but the sharpening of confident areas."""
    belief = torch.full((1, 1, 16, 16), 0.001)
    belief[..., 4:8, 4:8] = 0.95
    sure = torch.ones_like(belief)
    same = agreement([torch.logit(belief)], belief, sure, CONFIG)
    silent = agreement([torch.full_like(belief, -7.0)], belief, sure, CONFIG)
    loud = agreement([torch.full_like(belief, 3.0)], belief, sure, CONFIG)
    assert same < 0.2 and same < silent and same < loud


def test_gradients_reach_the_student_alone():
    model = settled()
    ema = moved(model)
    step_loss_on(labelled, unlabelled, CONFIG, OPTIONS, ema, share=0.5, seed=0)(model, 7)["loss"].backward()
    assert all(value.grad is not None for value in model.parameters())
    assert all(value.grad is None and not value.requires_grad for value in ema.weights.values())


def test_turns_are_undone_exactly():
    """A network that sees one pixel at a time commutes with every turn: the average then agrees with the student."""
    model = nn.Conv2d(1, 1, 1)
    options = OPTIONS.model_copy(update={"strength": 0.0, "blur": 0.0, "low": 0.5, "high": 0.5})
    loss = step_loss_on(labelled, unlabelled, CONFIG, options, Ema(model, 0.9), share=0.5, seed=0)
    seen = set()
    for step in range(6):
        _, views = batch_of(labelled, unlabelled, CONFIG, options, share=0.5, seed=0, step=step)
        logits = model(views.weak)
        expected = bce(logits, torch.sigmoid(logits), torch.ones_like(logits))
        config = CONFIG.model_copy(update={"iou_weight": 0.0})
        found = step_loss_on(labelled, unlabelled, config, options, Ema(model, 0.9), share=0.5, seed=0)(model, step)
        assert found["consistency"].item() == pytest.approx(expected.item(), rel=1e-5)
        seen |= set(views.turns)
    assert len(seen) > 4
    assert loss(model, 0)["sure"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_the_strong_view_is_the_turned_weak_one_with_other_intensities(seed: int, turns: bool):
    rng = np.random.default_rng(seed)
    augment = AugmentConfig(turns=turns)
    crops: Batch = crop_batch(unlabelled(3, rng), 16, rng, augment)
    views = two_views(crops, np.random.default_rng(seed), augment, strength=0.0, blur=0.0)
    assert torch.equal(views.weak, crops.images)
    for weak, strong, turn in zip(views.weak[:, 0], views.strong[:, 0], views.turns, strict=True):
        np.testing.assert_allclose(strong.numpy(), _turn(weak.numpy(), turn), atol=1e-6)
        assert turns or turn == 0
    varied = two_views(crops, np.random.default_rng(seed), augment, strength=2.0, blur=1.0)
    assert varied.turns == views.turns
    assert (varied.strong != views.strong).any()
    again = two_views(crops, np.random.default_rng(seed), augment, strength=2.0, blur=1.0)
    assert torch.equal(varied.strong, again.strong)


def test_the_weight_rises_to_one_and_stays():
    weights = [ramp_up(step, 100) for step in range(150)]
    assert weights[0] == pytest.approx(np.exp(-5))
    assert all(later >= earlier for earlier, later in zip(weights[:-1], weights[1:], strict=True))
    assert weights[100:] == [1.0] * 50
    assert ramp_up(0, 0) == 1


@given(st.integers(2, 64), st.floats(0.01, 1))
def test_a_batch_holds_both_kinds(batch: int, share: float):
    count = labelled_crops(batch, share)
    assert 1 <= count <= batch - 1
    assert abs(count - batch * share) <= 1


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return create("unet")


def train(model: nn.Module, folder: Path, config: StudentConfig = CONFIG, draw=unlabelled, **options: float) -> None:
    train_mean_teacher(
        model, labelled, draw, config, MeanTeacherConfig(**options), folder, share=0.5, seed=1, label="student"
    )


def test_resumed_training_equals_the_uninterrupted_one(resumed_equals_whole):
    def trained(folder: Path, drawing: Draw) -> nn.Module:
        model = fresh()
        train(model, folder, draw=drawing)
        return model

    resumed_equals_whole(trained, unlabelled, 3)


def test_other_options_are_another_training(tmp_path: Path):
    train(fresh(), tmp_path)
    with pytest.raises(RunError, match="other settings"):
        train(fresh(), tmp_path, low=0.1)


def test_training_finds_targets_of_unseen_images(tmp_path: Path):
    model = fresh()
    train(model, tmp_path, CONFIG.model_copy(update={"steps": 80, "batch": 8, "ema": 0.9}))
    overlap = union = 0
    for seed in range(5):
        unseen = patch(np.random.default_rng([99, seed]))
        found = predict(model, unseen.image) > 0.5
        overlap += (found & unseen.target).sum()
        union += (found | unseen.target).sum()
    assert overlap / union > 0.6


def test_the_images_of_a_broken_step_are_named(tmp_path: Path):
    def broken(n: int, rng: np.random.Generator) -> list[Patch]:
        patches = labelled(n, rng)
        patches[0].image[:] = np.nan
        return patches

    with pytest.raises(RunError, match="at step 0 on crops of known, known, new, new"):
        train_mean_teacher(fresh(), broken, unlabelled, CONFIG, OPTIONS, tmp_path, share=0.5, seed=0, label="student")


def test_a_batch_of_one_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 2 crops"):
        train(fresh(), tmp_path, CONFIG.model_copy(update={"batch": 1}))


def test_the_belief_is_that_of_the_deployed_network():
    model = settled()
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    ema = Ema(model, 0.9)
    found = averaged_belief(model, ema, torch.from_numpy(image)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, predict(model, image), atol=1e-6)
