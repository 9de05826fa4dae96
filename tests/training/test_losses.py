import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.training.losses import bce, sls, soft_iou

LOSSES = [bce, soft_iou, sls]


def example(seed: int, batch: int = 2, side: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shape = (batch, 1, side, side)
    logits = torch.from_numpy(rng.normal(0, 3, shape).astype(np.float32))
    targets = torch.from_numpy((rng.random(shape) < 0.3).astype(np.float32))
    weights = torch.from_numpy(rng.choice([0.0, 0.5, 1.0], shape).astype(np.float32))
    return logits, targets, weights


def pixels(logits, targets, weights):
    for i in range(len(logits)):
        yield [
            (1 / (1 + math.exp(-z)), t, w)
            for z, t, w in zip(
                logits[i].flatten().tolist(),
                targets[i].flatten().tolist(),
                weights[i].flatten().tolist(),
                strict=True,
            )
        ]


def slow_pixel_mean(term, logits, targets, weights) -> float:
    total = weight = 0.0
    for image in pixels(logits, targets, weights):
        for p, t, w in image:
            total += w * term(p, t)
            weight += w
    return total / weight if weight else 0.0


def slow_image_mean(above, below, logits, targets, weights) -> float:
    losses = []
    for image in pixels(logits, targets, weights):
        if sum(w for _, _, w in image) > 0:
            ratio = (sum(w * above(p, t) for p, t, w in image) + 1) / (sum(w * below(p, t) for p, t, w in image) + 1)
            losses.append(1 - ratio)
    return sum(losses) / len(losses) if losses else 0.0


def slow_polar_centroid(values, width) -> tuple[float, float]:
    height, total = len(values) // width, sum(values)
    row = sum(v * (i // width + 0.5) / height for i, v in enumerate(values)) / total
    column = sum(v * (i % width + 0.5) / width for i, v in enumerate(values)) / total
    return math.hypot(row, column), math.atan(row / column)


def slow_sls(logits, targets, weights) -> float:
    width, losses = logits.shape[-1], []
    for image in pixels(logits, targets, weights):
        if sum(w for _, _, w in image) == 0:
            continue
        area, true_area = sum(w * p for p, t, w in image), sum(w * t for p, t, w in image)
        overlap, v = sum(w * p * t for p, t, w in image), ((area - true_area) / 2) ** 2
        scale = (min(area, true_area) + v + 1) / (max(area, true_area) + v + 1)
        loss = 1 - scale * (overlap + 1) / (area + true_area - overlap + 1)
        if true_area > 0:
            d, phi = slow_polar_centroid([w * p for p, t, w in image], width)
            e, psi = slow_polar_centroid([w * t for p, t, w in image], width)
            loss += 1 - min(d, e) / max(d, e) + 4 / math.pi**2 * (phi - psi) ** 2
        losses.append(loss)
    return sum(losses) / len(losses) if losses else 0.0


def slow(loss, *inputs) -> float:
    if loss is sls:
        return slow_sls(*inputs)
    if loss is bce:
        return slow_pixel_mean(lambda p, t: -t * math.log(p) - (1 - t) * math.log(1 - p), *inputs)
    return slow_image_mean(lambda p, t: p * t, lambda p, t: p + t - p * t, *inputs)


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 3), side=st.integers(1, 5))
def test_agrees_with_a_loop_over_pixels(loss, seed, batch, side):
    inputs = example(seed, batch, side)
    assert loss(*inputs).item() == pytest.approx(slow(loss, *inputs), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_means_no_gradient_even_for_broken_pixels(loss):
    logits, targets, weights = example(1)
    weights[0, 0, 0, :3] = 0
    weights[1, 0, 2, 2] = 1
    clean = loss(logits, targets, weights)
    logits[0, 0, 0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    targets[0, 0, 0, 0] = math.nan
    logits.requires_grad_(True)
    value = loss(logits, targets, weights)
    assert torch.equal(value, clean)
    value.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[weights == 0] == 0).all()
    assert (logits.grad[weights > 0] != 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    logits, targets, weights = example(2)
    logits.requires_grad_(True)
    value = loss(logits, targets, torch.zeros_like(weights))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_is_near_zero_and_inverted_is_worse(loss):
    _, targets, _ = example(3)
    weights = torch.ones_like(targets)
    good = loss(40 * targets - 20, targets, weights)
    bad = loss(20 - 40 * targets, targets, weights)
    assert good.item() < 1e-4
    assert bad.item() > 0.2


def test_image_without_targets_asks_for_silence():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    nothing, ones = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    value = soft_iou(logits, nothing, ones)
    value.backward()
    assert 0 < value.item() < 1
    assert (logits.grad > 0).all()
    assert soft_iou(torch.full_like(nothing, -30.0), nothing, ones).item() == pytest.approx(0, abs=1e-6)


def test_soft_iou_counts_images_alike_whatever_their_target_size():
    targets = torch.zeros(2, 1, 8, 8)
    targets[0, 0, :2, :2] = 1
    targets[1, 0] = 1
    silent = torch.full_like(targets, -30.0)
    found = silent.clone()
    found[0][targets[0] > 0] = 30.0
    ones = torch.ones_like(targets)
    assert soft_iou(found, targets, ones).item() == pytest.approx((0 + 64 / 65) / 2, abs=1e-5)
    assert soft_iou(silent, targets, ones).item() == pytest.approx((4 / 5 + 64 / 65) / 2, abs=1e-5)


def test_sls_tells_places_and_sizes_apart_where_overlaps_are_equal():
    targets, ones = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    targets[..., 6:9, 6:9] = 1

    def guess(rows: slice, columns: slice) -> torch.Tensor:
        logits = torch.full_like(targets, -30.0)
        logits[..., rows, columns] = 30.0
        return sls(logits, targets, ones)

    near, far = guess(slice(6, 9), slice(9, 12)), guess(slice(6, 9), slice(13, 16))
    assert near < far  # neither overlaps the target
    small, large = guess(slice(7, 8), slice(7, 8)), guess(slice(2, 13), slice(2, 13))
    assert guess(slice(6, 9), slice(6, 9)) < small < large  # all have the target's centroid


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_under_autocast_and_shapes_are_checked(loss):
    logits, targets, weights = example(4)
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, targets, weights)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(slow(loss, half.float(), targets, weights), rel=1e-4)
    with pytest.raises(ValueError, match="one shape"):
        loss(logits, targets[:, :, 1:], weights)
