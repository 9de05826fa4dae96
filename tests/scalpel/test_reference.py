"""The frozen SAM: it stays what was published, is asked at the right places, and says what it says one by one."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.data.synth.infrared import render
from fewlabel.sam.nano import build_nano
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.prompters import with_boxes
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank
from fewlabel.scalpel.propose import prior_peaks
from fewlabel.scalpel.reference import (
    BACKED,
    FULL,
    MOST,
    REACH,
    FrozenSam,
    padded,
    support,
    truth_prompts,
)
from fewlabel.scalpel.teacher import ScalpelTeacher, TeacherConfig
from fewlabel.training.checkpoint import weights_sha256

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

FAMILIES = [*tiny.BUILDERS, "nano"]


def build(family):
    if family == "nano":
        return build_nano(0)
    return PromptableSegmenter(tiny.BUILDERS[family](), family, f"tiny {family}").eval()


def scenes(count, side=64, first=0):
    """Standardised scenes (B, 1, side, side) and their targets."""
    drawn = [render(np.random.default_rng([21, first + i]), side) for i in range(count)]
    images = np.stack([standardise(scene.radiance.astype(np.float32)) for scene in drawn])[:, None]
    targets = np.stack([scene.labels > 0 for scene in drawn])[:, None].astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_teacher_leaves_it_as_it_was(family):
    images, targets = scenes(2)
    published = build(family)
    sha256 = weights_sha256(published)
    with torch.no_grad():
        expected = published.encode(to_unit(images))
    teacher = ScalpelTeacher(TeacherConfig(width=4, projected=4), published)
    frozen = FrozenSam(teacher.segmenter)
    before = frozen.from_truth(frozen.embed(images), targets)
    names = set(teacher.state_dict())
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert set(teacher.state_dict()) == names, "nothing of it is part of the teacher"
    embedding = frozen.embed(images)
    for mine, theirs in zip(embedding.features, expected.features, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert not mine.requires_grad
    for mine, earlier in zip(frozen.from_truth(embedding, targets), before, strict=True):
        assert torch.equal(mine, earlier)
    assert weights_sha256(frozen.segmenter) == sha256 != weights_sha256(teacher.segmenter)
    assert frozen.segmenter.model.vision_encoder is teacher.segmenter.model.vision_encoder, "the encoder is not copied"
    assert not any(p.requires_grad for p in frozen.segmenter.parameters())
    assert any(p.requires_grad for p in teacher.segmenter.parameters()), "the teacher's own decoder still learns"


def one_by_one(segmenter, image, prompts, supported=None):
    """Masks, quality and disputed masks of one image (1, 1, S, S), a decode per prompt."""
    side = segmenter.mask_size
    result = np.zeros((3, side, side), np.float32)
    with torch.no_grad():
        embedding = segmenter.encode(to_unit(image))
        for point, box in zip(prompts.points, prompts.boxes, strict=True):
            low, quality = segmenter.decode_low(
                embedding,
                points=torch.from_numpy(point).view(1, 1, 1, 2),
                boxes=torch.from_numpy(box).view(1, 1, 4),
            )
            best = int(quality[0, 0].argmax())
            mask = torch.sigmoid(low[0, 0, best]).numpy()
            inside = mask > 0.5
            if supported is not None and (not inside.any() or supported[inside].mean() < BACKED):
                result[2] = np.maximum(result[2], mask)
                continue
            higher = mask > result[0]
            result[0][higher] = mask[higher]
            result[1][higher] = min(max(float(quality[0, 0, best]), 0.0), 1.0)
    return result


@pytest.mark.parametrize("family", ["sam", "sam2", "nano"])
def test_answers_are_those_of_single_prompts(family):
    segmenter = build(family)
    frozen = FrozenSam(segmenter)
    images, targets = scenes(3, first=4)
    targets[0] = 0
    counts = [len(truth_prompts(plane[0].numpy() > 0)) for plane in targets]
    assert counts[0] == 0
    assert len(set(counts)) > 1, "the images are to have different numbers of prompts"
    answer = frozen.from_truth(frozen.embed(images), targets)
    for row in range(3):
        expected = one_by_one(segmenter, images[row : row + 1], truth_prompts(targets[row, 0].numpy() > 0))
        for mine, theirs in zip(answer, expected, strict=True):
            np.testing.assert_allclose(mine[row, 0].numpy(), theirs, atol=2e-4)
    assert not answer.masks[0].any()
    assert not answer.quality[0].any()
    assert not answer.disputed.any()


def test_peaks_are_asked_about_and_unsupported_masks_are_disputed():
    segmenter = build("nano")
    frozen = FrozenSam(segmenter)
    images, _ = scenes(4, side=64, first=9)
    images[3] = 0
    prior = frozen.prior(images)
    answer = frozen.from_peaks(frozen.embed(images), images, prior)
    side = segmenter.mask_size
    supported = support(prior, (side, side))
    for row in range(3):
        grey = images[row, 0].numpy()
        prompts = with_boxes(grey, prior_peaks(grey, most=MOST).proposals)
        assert len(prompts)
        expected = one_by_one(segmenter, images[row : row + 1], prompts, supported[row, 0].numpy())
        for mine, theirs in zip(answer, expected, strict=True):
            np.testing.assert_allclose(mine[row, 0].numpy(), theirs, atol=2e-4)
    assert not any(part[3].any() for part in answer), "a flat image has no peak"
    assert answer.disputed.any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sets(st.sampled_from(OPERATOR_NAMES), min_size=1))
def test_the_priors_peaks_are_those_of_propose(seed, names):
    scene = render(np.random.default_rng(seed), 48)
    grey = standardise(scene.radiance.astype(np.float32))
    frozen = FrozenSam(PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny"), sorted(names))
    prior = frozen.prior(torch.from_numpy(grey)[None, None])[0, 0].numpy()
    found = prior_peaks(grey, bank=OperatorBank(sorted(names))).proposals
    columns, rows = found.points.astype(int).T
    np.testing.assert_allclose(prior[rows, columns], found.strengths, atol=1e-5)
    assert prior.min() >= 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(8, 8), (16, 16), (5, 7)]))
def test_support_is_the_highest_prior_nearby(seed, size):
    prior = np.random.default_rng(seed).exponential(0.3, (20, 16)).astype(np.float32)
    found = support(torch.from_numpy(prior)[None, None], size)[0, 0].numpy()
    for row, column in np.ndindex(size):
        top, bottom = row * 20 // size[0], -(-(row + 1) * 20 // size[0])
        left, right = column * 16 // size[1], -(-(column + 1) * 16 // size[1])
        near = prior[max(top - REACH, 0) : bottom + REACH, max(left - REACH, 0) : right + REACH]
        assert found[row, column] == pytest.approx(min(near.max() / FULL, 1.0), rel=1e-5)


def test_the_largest_targets_are_asked_about():
    mask = np.zeros((60, 60), bool)
    for number in range(MOST + 4):
        row, column = 3 * (number // 10) * 3, 6 * (number % 10)
        mask[row : row + 1 + number // 10, column : column + 1 + number % 3] = True
    prompts = truth_prompts(mask)
    assert len(prompts) == MOST
    areas = prompts.strengths
    assert (np.diff(areas) <= 0).all()
    assert areas[0] == 6
    for (x, y), (x0, y0, x1, y1) in zip(prompts.points, prompts.boxes, strict=True):
        assert mask[int(y), int(x)]
        assert x0 < x < x1 and y0 < y < y1
    assert len(truth_prompts(np.zeros((5, 5), bool))) == 0


def test_rows_are_filled_with_an_images_own_prompts():
    one, none = truth_prompts(np.eye(9, dtype=bool)), truth_prompts(np.zeros((9, 9), bool))
    points, boxes = padded([one, none], 3, (9, 9))
    assert points.shape == (2, 3, 2)
    assert (points[0] == one.points[0]).all()
    assert (boxes[0] == one.boxes[0]).all()
    assert (boxes[1] == (0, 0, 9, 9)).all()
    assert (points[1] == 4.5).all()
