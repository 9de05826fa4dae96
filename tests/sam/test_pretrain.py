"""Pre-training: losses against plain loops, batches as pure functions, resume, publishing."""

import os
import signal

import numpy as np
import pytest
import torch

from fewlabel.core.errors import RunError
from fewlabel.sam import pretrain as module
from fewlabel.sam.families import load
from fewlabel.sam.pretrain import (
    Course,
    PretrainConfig,
    draw_batch,
    draw_scene,
    hard_iou,
    mask_loss,
    pretrain,
    publish,
    score,
)

TINY = PretrainConfig(steps=2, batch=1, targets=1, log_every=1, corrections=1.0)


@pytest.mark.parametrize("late", [0.0, 0.3, 1.0])
def test_mask_loss_equals_the_formula(late):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 5, 7), generator=rng)
    targets = (torch.rand((2, 3, 5, 7), generator=rng) > 0.7).float()
    got = mask_loss(logits, targets, late)
    for b in range(2):
        for p in range(3):
            x, t = logits[b, p].double().numpy(), targets[b, p].double().numpy()
            s = 1 / (1 + np.exp(-x))
            cross = -0.5 * np.log(s[t == 1]).mean() - 2.0 * np.log(1 - s[t == 0]).mean()
            correct = np.where(t == 1, s, 1 - s)
            focal = -((1 - correct) ** 2 * np.log(correct)).sum() / (t.sum() + 32)
            dice = 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)
            assert got[b, p].item() == pytest.approx((1 - late) * cross + late * focal + dice, rel=1e-5)


def test_target_and_rest_weigh_the_same_whatever_their_size():
    """Missing all of a target costs the same cross entropy for one pixel as for half of the image."""
    # dice's +1 halves its loss for one pixel
    small, large = torch.zeros(16, 16), torch.zeros(16, 16)
    small[3, 3] = 1
    large[:8] = 1
    empty = torch.full((16, 16), -30.0)
    assert mask_loss(empty, small, 0.0).item() == pytest.approx(0.5 * 30 + 0.5, rel=1e-4)
    assert mask_loss(empty, large, 0.0).item() == pytest.approx(0.5 * 30 + 1 - 1 / 129, rel=1e-4)


def test_mask_loss_is_finite_for_sure_logits_and_least_for_the_truth():
    target = torch.zeros(8, 8)
    target[3, 4] = 1
    truth, empty = (2 * target - 1) * 200, torch.full((8, 8), -200.0)
    for late in (0.0, 0.5, 1.0):
        losses = mask_loss(torch.stack([truth, empty, -truth]), target, late)
        assert torch.isfinite(losses).all()
        assert losses[0] < 1e-5
        assert losses[0] < losses[1] < losses[2]


def test_late_loss_charges_a_false_pixel_like_a_missed_one():
    """At even odds the gradients of the late pixel loss are opposite and equal, those of the early one are not."""
    target = torch.zeros(64, 64)
    target[10:13, 10:13] = 1
    steps = {}
    for late in (0.0, 1.0):
        logits = torch.where(target > 0, 20.0, -20.0)
        logits[10, 10] = logits[20, 20] = 0.0  # one uncertain pixel of the target, one of the rest
        logits.requires_grad_()
        (mask_loss(logits, target, late) - mask_loss(logits, target, 0.0).detach()).backward()
        steps[late] = (-logits.grad[10, 10].item(), logits.grad[20, 20].item())
    missed, false = steps[1.0]
    assert false > 0 and missed > 0
    assert missed / false < 1.5
    assert steps[0.0][0] / steps[0.0][1] > 2 * missed / false


def test_course_runs_from_early_to_late():
    courses = [Course.at(step, 1000) for step in range(1000)]
    assert courses[0] == Course(0.0, 0.0)
    assert courses[999] == Course(1.0, 1.0)
    for name in ("corrections", "late"):
        values = [getattr(course, name) for course in courses]
        assert values == sorted(values)
        assert max(np.diff(values)) < 0.011


def test_hard_iou():
    target = torch.tensor([[True, True, False]])
    logits = torch.tensor([[[1.0, -1.0, 1.0]], [[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
    assert hard_iou(logits, target).tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert hard_iou(-torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 1.0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scene_shows_targets_in_range(share):
    for seed in range(4):
        image, labels = draw_scene(np.random.default_rng(seed), share)
        again, _ = draw_scene(np.random.default_rng(seed), share)
        assert np.array_equal(image, again)
        assert image.shape == (3, 256, 256) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1 and image.std() > 0
        assert labels.shape == (256, 256) and labels.max() >= 1


def test_enlarged_infrared_targets_stay_on_the_bright_pixels():
    """The image and its labels are enlarged about the same grid: targets are brighter than what surrounds them."""
    contrast = []
    for seed in range(12):
        image, labels = draw_scene(np.random.default_rng(seed), 1.0)
        target = labels > 0
        near = torch.nn.functional.max_pool2d(torch.from_numpy(target)[None, None].float(), 17, 1, 8)[0, 0].numpy() > 0
        contrast.append(image[0][target].mean() - image[0][near & ~target].mean())
    assert np.mean(np.array(contrast) > 0) > 0.9


def test_batch_prompts_different_targets_first():
    config = PretrainConfig(batch=3, targets=4, infrared=0.0)
    batch = draw_batch(np.random.default_rng(0), config)
    assert batch.images.shape == (3, 3, 256, 256)
    assert batch.masks.shape == (3, 4, 256, 256)
    for image in range(3):
        assert batch.masks[image].any((1, 2)).all()
        different = {mask.tobytes() for mask in batch.masks[image]}
        drawn = batch.masks[image].any(0)
        assert sum(np.frombuffer(mask, bool).sum() for mask in different) == drawn.sum()  # never two in one pixel
    many = draw_batch(np.random.default_rng(5), PretrainConfig(batch=6, targets=2, infrared=0.0)).masks
    assert sum(not np.array_equal(first, second) for first, second in many) >= 5


def test_best_of_three_masks_is_the_one_that_fits(segmenters):
    segmenter = segmenters["nano"]
    target = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    target[..., 80:120, 60:100] = True
    right = torch.where(torch.nn.functional.avg_pool2d(target.float()[0], 2) > 0.5, 9.0, -9.0)[0]
    low = torch.stack([-right, right, torch.full_like(right, -9.0)])[None, None]
    mask_term, iou_term, best, overlap = score(segmenter, low, torch.tensor([[[0.0, 1.0, 0.0]]]), target, 0.0)
    assert best.item() == 1
    assert overlap > 0.99
    assert mask_term < 0.2
    assert iou_term < 0.01


def test_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    pretrain(TINY, tmp_path / "whole", seed=4)
    calls = []
    step_loss = module.step_loss

    def stop_after_one(segmenter, config, rng, course):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(segmenter, config, rng, course)

    monkeypatch.setattr(module, "step_loss", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "parts", seed=4)
    monkeypatch.undo()
    facts = publish(tmp_path / "parts", tmp_path / "early")
    assert facts["steps"] == 1 and facts["finished"] is False
    pretrain(TINY, tmp_path / "parts", seed=4)
    whole, parts = (load(str(tmp_path / name)).state_dict() for name in ("whole", "parts"))
    early = load(str(tmp_path / "early")).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], early[name]) for name in whole)
    assert publish(tmp_path / "whole", tmp_path / "late")["finished"] is True
    late = load(str(tmp_path / "late")).state_dict()
    assert all(torch.equal(whole[name], late[name]) for name in whole)


def test_loss_falls_on_one_batch():
    """A few steps on a fixed batch lower its loss: gradients have the right sign from mask to image."""
    segmenter = module.build_nano(0)
    config = PretrainConfig(batch=1, targets=1)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = module.step_loss(segmenter, config, np.random.default_rng(1), Course(0.0, 0.0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_publishing_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds neither"):
        publish(tmp_path)
