"""Losses of the pre-training against plain loops, and that its gradients lead downhill."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewlabel.sam.nano import build_nano
from fewlabel.sam.pretrain_batches import draw_batch
from fewlabel.sam.pretrain_config import PretrainConfig
from fewlabel.sam.pretrain_loss import hard_iou, mask_loss, score, step_loss


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


def test_hard_iou():
    target = torch.tensor([[True, True, False]])
    logits = torch.tensor([[[1.0, -1.0, 1.0]], [[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
    assert hard_iou(logits, target).tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert hard_iou(-torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 1.0


def test_best_of_three_masks_is_the_one_that_fits(segmenters):
    segmenter = segmenters["nano"]
    target = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    target[..., 80:120, 60:100] = True
    right = torch.where(torch.nn.functional.avg_pool2d(target.float()[0], 2) > 0.5, 9.0, -9.0)[0]
    low = torch.stack([-right, right, torch.full_like(right, -9.0)])[None, None]
    found = score(segmenter, low, torch.tensor([[[0.0, 1.0, 0.0]]]), target, 0.0)
    assert found.best.item() == 1
    assert found.iou > 0.99 and found.chosen > 0.99
    assert found.mask < 0.2
    assert found.quality < 0.01
    wrong = score(segmenter, low, torch.tensor([[[1.0, 0.5, 0.0]]]), target, 0.0)
    assert wrong.iou > 0.99 and wrong.chosen < 0.01


def test_loss_falls_on_one_batch():
    """A few steps on a fixed batch lower its loss: gradients have the right sign from mask to image."""
    segmenter = build_nano(0)
    batch = draw_batch(PretrainConfig(batch=1, targets=1, boxes=0), 1, 0, warm=False)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = step_loss(segmenter, batch, 0.0, 1.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("boxes", [0.0, 1.0])
def test_corrections_add_decodes_and_the_weight_scales_the_quality(segmenters, boxes):
    segmenter = segmenters["nano"]
    batch = draw_batch(PretrainConfig(batch=1, targets=2, boxes=boxes, corrections=0), 3, 0, warm=True)
    assert batch.corrections.shape == (0, 1, 2)
    plain, heavy = (step_loss(segmenter, batch, 1.0, weight) for weight in (1.0, 3.0))
    assert plain["loss"] == pytest.approx((plain["first"] + plain["iou_error"]).item(), rel=1e-5)
    assert (heavy["loss"] - plain["loss"]).item() == pytest.approx(2 * plain["iou_error"].item(), rel=1e-4)
    assert 0 <= plain["chosen"] <= plain["iou"] <= 1
    more = step_loss(segmenter, replace(batch, corrections=torch.full((2, 1, 2), 0.5)), 1.0, 1.0)
    assert more["first"] == plain["first"]
    assert more["loss"] > plain["loss"]
