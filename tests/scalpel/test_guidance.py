"""Trust, distillation and preservation against loops, and the rules that they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewlabel.scalpel.guidance import distillation, preservation, trust
from fewlabel.scalpel.reference import Answer

unit = st.floats(0, 1, width=32)
maps = arrays.arrays(np.float32, (4, 2, 1, 3, 3), elements=unit | st.sampled_from([0.0, 0.5, 1.0]))


def split(values):
    masks, quality, disputed, supported = torch.from_numpy(values)
    return Answer(masks, quality, disputed), supported


def rule(m, q, d, u, t=None):
    """The trust of one cell, written out."""
    if t is not None and (m > 0.5) != (t > 0.5):
        return 0.0
    return abs(2 * m - 1) * (u * q if m > 0.5 else (1 - u) * (1 - d))


@settings(max_examples=100, deadline=None)
@given(maps, arrays.arrays(np.bool_, (2, 1, 3, 3)))
def test_trust_is_its_rule_and_stays_in_the_unit_interval(values, truth):
    answer, supported = split(values)
    blind, seeing = trust(answer, supported), trust(answer, supported, torch.from_numpy(truth).float())
    assert blind.min() >= 0
    assert blind.max() <= 1
    assert (seeing <= blind).all()
    for place in np.ndindex(2, 1, 3, 3):
        cell = [float(part[place]) for part in values]
        assert blind[place].item() == pytest.approx(rule(*cell), abs=1e-6)
        assert seeing[place].item() == pytest.approx(rule(*cell, float(truth[place])), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(maps)
def test_what_trust_promises(values):
    answer, supported = split(values)
    nothing = torch.zeros_like(supported)
    targets = answer._replace(masks=torch.ones_like(supported))
    assert not trust(targets, nothing).any(), "a target that no prior answers to does not count"
    assert torch.equal(trust(targets, supported), supported * answer.quality)
    quiet = Answer(nothing, answer.quality, nothing)
    assert (trust(quiet, nothing) == 1).all(), "quiet background counts in full"
    assert not trust(quiet, nothing + 1).any(), "a prior that says target forbids to call it background"
    assert not trust(quiet._replace(disputed=nothing + 1), supported).any(), "nothing is said inside a disputed mask"
    assert not trust(answer._replace(masks=nothing + 0.5), supported).any(), "SAM's own doubt"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_distillation_is_a_weighted_divergence(seed):
    rng = np.random.default_rng(seed)
    logits, masks = rng.normal(0, 3, (2, 1, 4, 4)), rng.random((2, 1, 4, 4))
    masks[0, 0, 0], weights = (0, 1, 0, 1), rng.random((2, 1, 4, 4)) * (rng.random((2, 1, 4, 4)) < 0.7)
    total = 0.0
    for place in np.ndindex(logits.shape):
        m, p = masks[place], 1 / (1 + math.exp(-logits[place]))
        for a, b in ((m, p), (1 - m, 1 - p)):
            total += weights[place] * (a * math.log(a / b) if a > 0 else 0.0)
    coarse = torch.from_numpy(logits).float().requires_grad_()
    mask = torch.from_numpy(masks).float()
    trusted = torch.from_numpy(weights).float()
    value = distillation(coarse, Answer(mask, mask, mask), trusted)
    assert value.item() == pytest.approx(total / weights.sum(), rel=1e-4, abs=1e-5)
    value.backward()
    assert torch.equal(coarse.grad != 0, (trusted > 0) & (coarse.grad != 0))
    assert coarse.grad[trusted > 0].abs().max() > 0
    agreed = distillation(torch.logit(mask.clamp(1e-4, 1 - 1e-4)), Answer(mask, mask, mask), trusted)
    assert agreed.item() == pytest.approx(0, abs=2e-4)
    assert distillation(coarse, Answer(mask, mask, mask), torch.zeros_like(trusted)).item() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_preservation_is_the_relative_squared_movement_on_background(seed):
    rng = np.random.default_rng(seed)
    frozen, moved = rng.normal(size=(2, 2, 5, 3, 4))
    frozen[1] *= 100
    moved[1] *= 100
    weights = rng.random((2, 1, 3, 4)) * (rng.random((2, 1, 3, 4)) < 0.7)
    total = 0.0
    for image, row, column in np.ndindex(2, 3, 4):
        length = np.mean([np.square(frozen[image, :, r, c]).sum() for r, c in np.ndindex(3, 4)])
        total += weights[image, 0, row, column] * np.square(moved[image, :, row, column]).sum() / length
    adapted = torch.from_numpy(frozen + moved).float().requires_grad_()
    reference, background = torch.from_numpy(frozen).float(), torch.from_numpy(weights).float()
    value = preservation(adapted, reference, background)
    assert value.item() == pytest.approx(total / max(weights.sum(), 1e-12), rel=1e-4)
    value.backward()
    assert not adapted.grad[(background == 0).expand_as(adapted)].any(), "targets may be represented anew"
    assert torch.allclose(preservation(3 * adapted, 3 * reference, background), value, rtol=1e-4), "no unit"
    assert preservation(reference, reference, background).item() == 0
    assert preservation(adapted, reference, torch.zeros_like(background)).item() == 0
