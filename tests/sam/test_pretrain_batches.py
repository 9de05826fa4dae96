"""Batches as pure functions of (options, seed, step), whoever renders them."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import RunError
from fewlabel.sam.pretrain_batches import Batches, Scene, choose_masks, draw_batch, draw_scene
from fewlabel.sam.pretrain_config import PretrainConfig
from fewlabel.sam.prompts import central_point, tight_box


def same(first, second):
    """Whether two batches are equal, bit for bit."""
    pairs = [(getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scene_shows_targets_in_range(share):
    for seed in range(4):
        scene, again = (draw_scene(np.random.default_rng(seed), share) for _ in range(2))
        assert np.array_equal(scene.image, again.image)
        assert scene.image.shape == (3, 256, 256) and scene.image.dtype == np.float32
        assert scene.image.min() >= 0 and scene.image.max() <= 1 and scene.image.std() > 0
        assert scene.labels.shape == scene.parts.shape == (256, 256) and scene.labels.max() >= 1
        assert not (scene.parts.astype(bool) & (scene.labels == 0)).any()


def test_enlarged_infrared_targets_stay_on_the_bright_pixels():
    """The image and its labels are enlarged about the same grid: targets are brighter than what surrounds them."""
    contrast = []
    for seed in range(12):
        scene = draw_scene(np.random.default_rng(seed), 1.0)
        target = torch.from_numpy(scene.labels > 0)
        near = torch.nn.functional.max_pool2d(target[None, None].float(), 17, 1, 8)[0, 0] > 0
        grey = torch.from_numpy(scene.image[0].copy())
        contrast.append(grey[target].mean() - grey[near & ~target].mean())
    assert np.mean(np.array(contrast) > 0) > 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 6), st.integers(0, 3))
def test_masks_are_targets_or_parts_and_different_ones_first(seed, count, targets, pieces):
    labels, parts = np.zeros((256, 256), np.int32), np.zeros((256, 256), np.int32)
    for number in range(1, targets + 1):
        labels[number * 10 : number * 10 + 8, :20] = number
    for number in range(1, pieces + 1):
        parts[number * 10 + 2 : number * 10 + 5, 3:9] = number
    scene = Scene(np.zeros((3, 256, 256), np.float32), labels, parts)
    for share in (0.0, 0.5, 1.0):
        masks = choose_masks(np.random.default_rng(seed), scene, count, share)
        assert masks.shape == (count, 256, 256) and masks.dtype == bool and masks.any((1, 2)).all()
        areas = masks.sum((1, 2))
        assert set(areas) <= {160, 18}
        whole, part = ({masks[i].tobytes() for i in np.flatnonzero(areas == area)} for area in (160, 18))
        if share == 0.0 or pieces == 0:
            assert not part and len(whole) == min(count, targets)
        if share == 1.0 and pieces:
            assert not whole and len(part) == min(count, pieces)


def test_prompts_belong_to_their_masks():
    config = PretrainConfig(batch=2, targets=3, infrared=0.3, parts=0.5)
    kinds = set()
    for step in range(8):
        batch = draw_batch(config, 5, step, warm=True)
        assert batch.images.shape == (2, 3, 256, 256) and batch.images.dtype == torch.float16
        assert (batch.points is None) != (batch.boxes is None)
        assert batch.corrections.shape[0] in (0, 1, 2)
        kinds.add((batch.boxes is None, batch.multimask))
        for index in np.ndindex(2, 3):
            mask = batch.masks[index].numpy()
            if batch.points is not None:
                x, y = batch.points[index][0].numpy()
                assert mask[int(y), int(x)]
            else:
                x0, y0, x1, y1 = batch.boxes[index].numpy()
                assert 0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 256
    assert kinds == {(True, True), (True, False), (False, False)} or len(kinds) >= 2


def test_central_clicks_and_exact_boxes_are_what_their_shares_say():
    central = PretrainConfig(batch=2, targets=2, boxes=0.0, central=1.0)
    exact = PretrainConfig(batch=2, targets=2, boxes=1.0, tight=1.0)
    clicks, boxes = draw_batch(central, 1, 0, warm=False), draw_batch(exact, 1, 0, warm=False)
    for index in np.ndindex(2, 2):
        assert np.array_equal(clicks.points[index][0].numpy(), central_point(clicks.masks[index].numpy()))
        assert np.array_equal(boxes.boxes[index].numpy(), tight_box(boxes.masks[index].numpy()))


def test_worker_processes_make_the_same_batches_and_end_with_their_owner():
    config = PretrainConfig(steps=6, batch=1, targets=1)
    with Batches(config, 3, warm=False) as here:
        expected = [here(step) for step in range(6)]
    with Batches(config, 3, warm=False, workers=2) as ahead:
        assert all(same(ahead(step), expected[step]) for step in range(2, 4))  # a resumed training starts anywhere
        pids = [worker.pid for worker in ahead._coming._workers]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)  # as a signal to the whole process group does
        assert all(same(ahead(step), expected[step]) for step in range(4, 6))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_a_killed_worker_is_one_sentence():
    with Batches(PretrainConfig(steps=9, batch=1, targets=1), 3, warm=False, workers=1) as ahead:
        assert same(ahead(0), draw_batch(ahead.steps.config, 3, 0, warm=False))
        os.kill(ahead._coming._workers[0].pid, signal.SIGKILL)
        with pytest.raises(RunError, match="rendering process ended at step"):
            for step in range(1, 9):
                ahead(step)


def alive(pid):
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
