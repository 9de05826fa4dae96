"""Teaching with the frozen SAM: each term acts where it should, costs nothing when off, and leaves the labels alone."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.data.pool import patch_of_scene
from fewlabel.data.synth.infrared import render
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.distill import TeachConfig, draw_batch, draw_unlabelled, teach
from fewlabel.scalpel.reference import FrozenSam
from fewlabel.scalpel.teach_losses import losses, shares
from fewlabel.scalpel.teacher import ScalpelTeacher, TeacherConfig
from fewlabel.training.checkpoint import weights_sha256

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

OPTIONS = {"steps": 2, "batch": 2, "crop": 32, "log_every": 1, "warmup": 1, "synthetic": 0.0, "unlabelled": 1}
GUIDED = OPTIONS | {"distil_weight": 0.3, "preserve_weight": 0.1}


def make_teacher(**options):
    segmenter = PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2")
    return ScalpelTeacher(TeacherConfig(width=4, projected=4, **options), segmenter)


def draw(n, rng):
    return [replace(patch_of_scene(render(rng, 40)), id=f"L{rng.integers(9)}") for _ in range(n)]


def draw_more(n, rng):
    return [replace(patch_of_scene(render(rng, 48)), id=f"U{rng.integers(9)}") for _ in range(n)]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def forbidden(*args, **kwargs):
    raise AssertionError("the frozen SAM was asked for")


@pytest.mark.parametrize(
    ("weights", "made_of"),
    [({}, {}), ({"preserve_weight": 1.0}, {"adapter": None})],
    ids=["no weight", "nothing to preserve"],
)
def test_without_a_weight_the_frozen_sam_and_unlabelled_images_cost_nothing(tmp_path, monkeypatch, weights, made_of):
    monkeypatch.setattr("fewlabel.scalpel.distill.FrozenSam", forbidden)
    config = TeachConfig(**(OPTIONS | {"distil_weight": 0.0, "preserve_weight": 0.0} | weights))
    teacher = make_teacher(**made_of)
    teach(teacher, draw, config, tmp_path / "with", seed=0, unlabelled=forbidden)
    assert not {"distil", "preserve"} & set(lines(tmp_path / "with")[0])
    other = make_teacher(**made_of)
    teach(other, draw, config, tmp_path / "without", seed=0)
    assert weights_sha256(teacher) == weights_sha256(other)


@pytest.mark.parametrize(("weight", "left_out"), [("distil_weight", "preserve"), ("preserve_weight", "distil")])
def test_a_term_without_a_weight_is_not_computed(monkeypatch, weight, left_out):
    config = TeachConfig(**(OPTIONS | {"distil_weight": 0.0, "preserve_weight": 0.0, weight: 0.5}))
    function = {"preserve": "preservation", "distil": "distillation"}[left_out]
    monkeypatch.setattr(f"fewlabel.scalpel.teach_losses.{function}", forbidden)
    if left_out == "distil":
        monkeypatch.setattr(FrozenSam, "from_truth", forbidden)
        monkeypatch.setattr(FrozenSam, "from_peaks", forbidden)
    teacher = make_teacher()
    batch, more = draw_batch(draw, config, 0, 0), draw_unlabelled(draw_more, config, 0, 0)
    terms = losses(teacher, batch, config, FrozenSam(teacher.segmenter), more.images)
    assert {"distil", "preserve"} & set(terms) == {weight.removesuffix("_weight")}


def test_the_sum_holds_the_guided_terms_and_supervision_is_left_alone():
    config = TeachConfig(**GUIDED, sls_weight=0.2)
    batch, more = draw_batch(draw, config, 0, 0), draw_unlabelled(draw_more, config, 0, 0)
    teacher = make_teacher()
    with torch.no_grad():
        teacher.adapter.adapters[-1].up.weight.normal_(generator=torch.Generator().manual_seed(0))
    terms = losses(teacher, batch, config, FrozenSam(teacher.segmenter), more.images)
    weights = shares(teacher, config)
    assert set(weights) == {"bce", "soft_iou", "sls", "coarse", "distil", "preserve", "balance"}
    assert terms["loss"].item() == pytest.approx(sum(weights[name] * terms[name].item() for name in weights), rel=1e-5)
    assert terms["distil"] > 0 and terms["preserve"] > 0
    plain = losses(teacher, batch, config.model_copy(update={"distil_weight": 0.0, "preserve_weight": 0.0}))
    for name in ("bce", "soft_iou", "sls", "coarse"):
        assert terms[name].item() == pytest.approx(plain[name].item(), rel=1e-4), name


def test_distillation_reaches_adapter_and_decoder_and_not_the_head():
    config = TeachConfig(**GUIDED)
    batch, more = draw_batch(draw, config, 1, 0), draw_unlabelled(draw_more, config, 1, 0)
    teacher = make_teacher()
    terms = losses(teacher, batch, config, FrozenSam(teacher.segmenter), more.images)
    assert terms["preserve"].item() == pytest.approx(0, abs=1e-9), "nothing has moved before the first step"
    terms["distil"].backward()
    assert all(p.grad is None for p in teacher.head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in teacher.adapter.parameters())
    assert any(p.grad is not None and p.grad.any() for p in teacher.segmenter.model.mask_decoder.parameters())


def test_labelled_crops_are_the_same_with_and_without_unlabelled_ones(tmp_path):
    config, states = TeachConfig(**GUIDED), {}
    for name, more in (("with", draw_more), ("without", None)):
        seen = states.setdefault(name, [])

        def noting(n, rng, seen=seen):
            seen.append((n, rng.bit_generator.state["state"]))
            return draw(n, rng)

        teach(make_teacher(), noting, config, tmp_path / name, seed=3, unlabelled=more)
    assert states["with"] == states["without"]
    assert len(states["with"]) == config.steps
    one, other = lines(tmp_path / "with")[0], lines(tmp_path / "without")[0]
    assert one["bce"] == pytest.approx(other["bce"], rel=1e-5)
    assert one["distil"] != pytest.approx(other["distil"], rel=1e-3), "unlabelled images have a say in this term"


def test_masks_of_unlabelled_images_are_not_looked_at(tmp_path):
    def blank(n, rng):
        return [replace(p, target=np.zeros_like(p.target), weight=np.zeros_like(p.weight)) for p in draw_more(n, rng)]

    sums = []
    for more in (draw_more, blank):
        teacher = make_teacher()
        teach(teacher, draw, TeachConfig(**GUIDED), tmp_path / more.__name__, seed=0, unlabelled=more)
        sums.append(weights_sha256(teacher))
    assert sums[0] == sums[1]
    crops = draw_unlabelled(draw_more, TeachConfig(**GUIDED | {"unlabelled": 5}), 0, 0)
    assert crops.images.shape == (5, 1, 32, 32)
    assert not crops.targets.any() and not crops.weights.any()


def test_without_unlabelled_images_it_says_so_and_goes_on(tmp_path, capsys):
    teach(make_teacher(), draw, TeachConfig(**GUIDED), tmp_path, seed=0)
    assert "teach: no unlabelled images" in capsys.readouterr().err
    assert {"distil", "preserve"} <= set(lines(tmp_path)[0])


def test_an_interrupted_guided_teaching_ends_with_the_same_weights(tmp_path):
    config = TeachConfig(**(GUIDED | {"steps": 5, "checkpoint_seconds": 0}))
    whole, calls = make_teacher(), []
    teach(whole, draw, config, tmp_path / "whole", seed=1, unlabelled=draw_more)

    def stop_at_the_third(n, rng):
        calls.append(n)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return draw(n, rng)

    with pytest.raises(RuntimeError, match="power cut"):
        teach(make_teacher(), stop_at_the_third, config, tmp_path / "cut", seed=1, unlabelled=draw_more)
    resumed = make_teacher()
    teach(resumed, draw, config, tmp_path / "cut", seed=1, unlabelled=draw_more)
    assert weights_sha256(resumed) == weights_sha256(whole)


def test_a_trained_teacher_cannot_be_held_against_itself(tmp_path):
    config = TeachConfig(**GUIDED)
    teacher = make_teacher()
    teach(teacher, draw, config, tmp_path / "first", seed=0)
    with pytest.raises(ModelError, match="trained already.*start from an untrained teacher"):
        teach(teacher, draw, config, tmp_path / "second", seed=0)
    teach(teacher, draw, config, tmp_path / "first", seed=0)  # a finished folder is only loaded
