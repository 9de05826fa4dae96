import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydantic import ValidationError

from fewlabel.core.errors import RunError
from fewlabel.data.augment import Patch
from fewlabel.data.check import check
from fewlabel.data.pool import PatchPool, loaders, patch_of_scene, unlabelled_loaders
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.synth.infrared import render
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.distill import TeachConfig, draw_batch, teach
from fewlabel.scalpel.teach_losses import coarse_batch, losses
from fewlabel.scalpel.teacher import ScalpelTeacher, TeacherConfig, load_teacher
from fewlabel.training.checkpoint import read_tensors, weights_sha256

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

OPTIONS = {"steps": 6, "batch": 2, "crop": 32, "log_every": 2, "warmup": 1}


def make_teacher(**options):
    segmenter = PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2")
    return ScalpelTeacher(TeacherConfig(width=4, projected=4, **options), segmenter)


def draw(n, rng):
    return [patch_of_scene(render(rng, 40)) for _ in range(n)]


def flat(n, rng):
    """Patches that can be told from rendered ones: constant."""
    return [Patch(np.zeros((40, 40), np.float32), np.zeros((40, 40), bool), np.ones((40, 40), np.float32))] * n


PLAIN = {"gain": 0, "offset": 0, "gamma": 0, "noise": 0, "scale_probability": 0}


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 99))
def test_the_share_of_rendered_scenes(batch, share, seed):
    config = TeachConfig(steps=1, batch=batch, crop=32, synthetic=share, augment=PLAIN)
    counts = []
    for step in range(3):
        images = draw_batch(flat, config, seed, step).images
        assert images.shape == (batch, 1, 32, 32)
        counts.append(sum(bool(image.any()) for image in images))
    assert all(int(share * batch) <= count <= int(np.ceil(share * batch)) for count in counts)


def test_batches_depend_on_seed_and_step_alone():
    config = TeachConfig(**OPTIONS)
    one, again = draw_batch(draw, config, 3, 5), draw_batch(draw, config, 3, 5)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.images, draw_batch(draw, config, 3, 6).images)
    assert not torch.equal(one.images, draw_batch(draw, config, 4, 5).images)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(4, 4), (8, 8), (16, 16)]))
def test_coarse_targets_lose_no_target_and_ignore_what_is_unsure(seed, size):
    rng = np.random.default_rng(seed)
    targets = (rng.random((2, 1, 16, 16)) < 0.05).astype(np.float32)
    weights = (rng.random((2, 1, 16, 16)) < 0.9).astype(np.float32)
    found, counted = coarse_batch(torch.from_numpy(targets), torch.from_numpy(weights), size)
    cell = 16 // size[0]
    for image, row, column in np.ndindex(2, *size):
        window = (image, 0, slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
        assert found[image, 0, row, column] == targets[window].max()
        assert counted[image, 0, row, column] == weights[window].min()


def test_the_sum_is_made_of_the_terms():
    teacher = make_teacher()
    config = TeachConfig(**OPTIONS, bce_weight=0.5, iou_weight=2.0, coarse_weight=0.25)
    terms = losses(teacher, draw_batch(draw, config, 0, 0), config)
    expected = 0.5 * terms["bce"] + 2 * terms["soft_iou"] + 0.25 * terms["coarse"] + terms["balance"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms["gate_entropy"].item() == pytest.approx(1.0, abs=1e-4), "gates start uniform"
    assert terms["balance"].item() == pytest.approx(0.0, abs=1e-6)
    bare = losses(make_teacher(adapter=None), draw_batch(draw, config, 0, 0), config)
    assert set(bare) == {"loss", "bce", "soft_iou", "coarse"}
    only = losses(make_teacher(), draw_batch(draw, config, 0, 0), TeachConfig(**OPTIONS, bce_weight=0, coarse_weight=0))
    assert set(only) == {"loss", "soft_iou", "balance", "gate_entropy"}, "what has no weight is not computed"


def test_one_loss_has_to_learn_from_labels():
    with pytest.raises(ValidationError, match="one of them has to teach from labels"):
        TeachConfig(bce_weight=0, iou_weight=0)
    TeachConfig(bce_weight=0, iou_weight=0, sls_weight=1)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_teaching_writes_a_teacher_that_loads_and_a_log(tmp_path):
    teacher = make_teacher()
    frozen = weights_sha256(teacher.segmenter.model.vision_encoder)
    before = weights_sha256(teacher.adapter)
    result = teach(
        teacher, draw, TeachConfig(**OPTIONS), tmp_path / "a", seed=0, validate=lambda model: {"answer": 42.0}
    )
    assert result.steps == 6
    assert weights_sha256(teacher.segmenter.model.vision_encoder) == frozen
    assert weights_sha256(teacher.adapter) != before
    back = load_teacher(tmp_path / "a", PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2"))
    assert weights_sha256(back) == weights_sha256(teacher)
    log = lines(tmp_path / "a")
    assert {"loss", "bce", "soft_iou", "coarse", "balance", "gate_entropy", "lr"} <= set(log[0])
    assert 0 <= log[-2]["gate_entropy"] <= 1
    assert log[-1] == {"step": 6, "val": {"answer": 42.0}}


def test_an_interrupted_teaching_ends_with_the_same_weights(tmp_path):
    config = TeachConfig(**OPTIONS, checkpoint_seconds=0)
    whole = make_teacher()
    teach(whole, draw, config, tmp_path / "whole", seed=1)
    calls = []

    def stop_at_the_fourth(n, rng):
        calls.append(n)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return draw(n, rng)

    with pytest.raises(RuntimeError, match="power cut"):
        teach(make_teacher(), stop_at_the_fourth, config, tmp_path / "cut", seed=1)
    assert not (tmp_path / "cut" / "teacher.json").exists()
    resumed = make_teacher()
    teach(resumed, draw, config, tmp_path / "cut", seed=1)
    assert weights_sha256(resumed) == weights_sha256(whole)


def test_another_training_does_not_take_over_the_folder(tmp_path):
    config = TeachConfig(**(OPTIONS | {"steps": 1}))
    teach(make_teacher(), draw, config, tmp_path, seed=0, fingerprint="labels-a")
    with pytest.raises(RunError):
        teach(make_teacher(), draw, config, tmp_path, seed=0, fingerprint="labels-b")


def test_the_loss_falls_on_scenes(tmp_path):
    config = TeachConfig(steps=30, batch=4, crop=32, lr=1e-2, log_every=5, warmup=2, synthetic=1.0)
    teach(make_teacher(), draw, config, tmp_path, seed=0)
    log = lines(tmp_path)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_a_loss_that_is_not_finite_stops_with_the_images_and_keeps_the_last_good_checkpoint(tmp_path):
    config = TeachConfig(**(OPTIONS | {"steps": 4}), checkpoint_seconds=0)
    whole, calls = make_teacher(), []
    teach(whole, draw, config, tmp_path / "whole", seed=2)

    def broken_from_the_third(n, rng):
        calls.append(n)
        patches = [replace(patch, id="Misc_7") for patch in draw(n, rng)]
        return [replace(p, image=np.full_like(p.image, np.nan)) for p in patches] if len(calls) >= 3 else patches

    said = r"loss is nan at step 2 on crops of Misc_7, a rendered scene .*checkpoint is kept"
    with pytest.raises(RunError, match=said):
        teach(make_teacher(), broken_from_the_third, config, tmp_path / "cut", seed=2)
    tensors = read_tensors(tmp_path / "cut" / "checkpoint.safetensors").tensors
    assert all(value.isfinite().all() for value in tensors.values())
    resumed = make_teacher()
    teach(resumed, draw, config, tmp_path / "cut", seed=2)
    assert weights_sha256(resumed) == weights_sha256(whole)


def stored(image, target, folder):
    """A data set of one image."""
    for name, plane in (("images", image), ("masks", target.astype(np.uint8) * 255)):
        (folder / name).mkdir(parents=True)
        Pillow.fromarray(plane).save(folder / name / "odd.png")
    return SirstDataset(folder)


def odd_image(kind):
    """An unusual image and its targets."""
    scene = render(np.random.default_rng(5), 40)
    grey, target = scene.radiance.astype(np.float64), scene.labels > 0
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    if kind == "colour":
        return np.stack([grey * 255, grey * 200, grey * 90], axis=2).astype(np.uint8), target
    if kind == "16 bit":
        return (grey * 16383).astype(np.uint16), target
    if kind == "smaller than a patch of SAM":
        return (grey[:9, :11] * 255).astype(np.uint8), np.eye(9, 11, dtype=bool)
    target = np.zeros((40, 40), bool)
    target[2:38, 1:39] = kind == "target of most of the image"
    return (grey * 255).astype(np.uint8), target


@pytest.mark.parametrize(
    "kind", ["colour", "16 bit", "smaller than a patch of SAM", "target of most of the image", "no target"]
)
def test_unusual_images_can_be_learnt_from(tmp_path, kind):
    data = stored(*odd_image(kind), tmp_path / "data")
    assert check(data).rejected == ()
    pool, more = PatchPool([(1.0, loaders(data, ["odd"]))]), PatchPool([(1.0, unlabelled_loaders(data, ["odd"]))])
    config = TeachConfig(**(OPTIONS | {"steps": 2, "synthetic": 0.0}), distil_weight=1.0, preserve_weight=1.0)
    teach(make_teacher(), pool.draw, config, tmp_path / "teach", seed=0, unlabelled=more.draw)
    log = lines(tmp_path / "teach")[0]
    assert np.isfinite(list(log.values())).all()
    assert log["bce"] > 0
