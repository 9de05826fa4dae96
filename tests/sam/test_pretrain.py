"""Pre-training as a whole: resume, worker processes, warm start, publishing."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from fewlabel.core.errors import ModelError, RunError
from fewlabel.sam import pretrain as module
from fewlabel.sam.families import load
from fewlabel.sam.nano import build_nano
from fewlabel.sam.pretrain import PRESETS, PretrainConfig, bare_encoder, configure, exact_positions, pretrain, publish
from fewlabel.sam.pretrain_config import Course

TINY = PretrainConfig(steps=2, batch=1, targets=1, log_every=1, corrections=1.0)


def weights(folder):
    """Weights of a run folder."""
    return load(str(folder)).state_dict()


def equal(first, second):
    """Whether two state dicts hold the same bits."""
    return all(torch.equal(first[name], second[name]) for name in first)


def test_course_runs_from_early_to_late():
    config = PretrainConfig(steps=1000, late_from=0.5)
    courses = [Course.at(step, config, warm=False) for step in range(1000)]
    assert courses[0] == Course(0.0, 0.0)
    assert courses[500].late == 0.0 and courses[550].late == pytest.approx(0.5)
    assert courses[999] == Course(1.0, 1.0)
    for name in ("corrections", "late"):
        values = [getattr(course, name) for course in courses]
        assert values == sorted(values)
        assert max(np.diff(values)) < 0.011
    assert Course.at(0, config, warm=True) == Course(1.0, 1.0)


def test_presets_fit_cudas_grid():
    """1024 windows of four cells in each image: CUDA's attention takes fewer than 65536 problems at once."""
    assert PRESETS["gpu"].batch * 1024 < 65536
    assert PRESETS["gpu"].precision == "bf16" and PRESETS["cpu"] == PretrainConfig()


def test_presets_take_changes_and_refuse_nonsense():
    changed = configure("gpu", steps=7, batch=None, precision="fp32")
    assert changed == PRESETS["gpu"].model_copy(update={"steps": 7, "precision": "fp32"})
    for options, words in (({"preset": "tpu"}, "choose one of cpu, gpu"), ({"preset": "cpu", "steps": 0}, "steps = 0")):
        with pytest.raises(RunError, match=words):
            configure(**options)


def test_interrupted_training_ends_with_the_same_bits_whoever_renders(tmp_path, monkeypatch):
    pretrain(TINY, tmp_path / "whole", seed=4)
    calls = []
    step_loss = module.step_loss

    def stop_after_one(*arguments):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(*arguments)

    monkeypatch.setattr(module, "step_loss", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "parts", seed=4, workers=1)
    monkeypatch.undo()
    facts = publish(tmp_path / "parts", tmp_path / "early")
    assert facts["steps"] == 1 and facts["finished"] is False and facts["total"]["images"] == 1
    pretrain(TINY, tmp_path / "parts", seed=4)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert not equal(weights(tmp_path / "whole"), weights(tmp_path / "early"))
    assert publish(tmp_path / "whole", tmp_path / "late")["finished"] is True
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "late"))


def test_warm_start_goes_on_from_weights_and_counts_their_training(tmp_path, segmenters):
    first = TINY.model_copy(update={"lr": 1e-9, "ema": 0.0, "weight_decay": 0.0})
    pretrain(first.model_copy(update={"steps": 1}), tmp_path / "a", seed=4)
    pretrain(first, tmp_path / "b", seed=9, start=str(tmp_path / "a"))
    before, after, random = weights(tmp_path / "a"), weights(tmp_path / "b"), segmenters["nano"].state_dict()
    name = "model.mask_decoder.mask_tokens.weight"
    assert torch.allclose(before[name], after[name], atol=1e-4)
    assert not torch.allclose(random[name], build_nano(9).state_dict()[name], atol=1e-2)
    facts = json.loads((tmp_path / "b" / "training.json").read_text())
    assert facts["steps"] == 2 and facts["total"]["steps"] == 3 and facts["total"]["images"] == 3
    assert facts["from"]["training"]["seed"] == 4
    for changes, words in (
        ({"seed": 8, "start": None}, "seed is 9, not 8"),
        ({"seed": 9, "start": None}, "start is [0-9a-f]{64}, not none"),
    ):
        with pytest.raises(RunError, match=words):
            pretrain(first, tmp_path / "b", **changes)
    (tmp_path / "b" / "settings.json").rename(tmp_path / "kept.json")
    with pytest.raises(RunError, match="other settings, seed or inputs"):
        pretrain(first, tmp_path / "b", seed=8)
    (tmp_path / "kept.json").rename(tmp_path / "b" / "settings.json")
    assert publish(tmp_path / "b", tmp_path / "again") == facts  # what was refused has changed nothing


def test_warm_start_from_another_architecture_is_refused(tmp_path, tiny_models):
    tiny_models["sam2"]().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="start from nano-SAM's weights"):
        pretrain(TINY, tmp_path / "run", seed=0, start=str(tmp_path / "other"))


def test_what_the_training_leaves_out_changes_nothing():
    """The bare encoder gives the same features; positions under autocast are those of single precision."""
    plain, bare = (build_nano(1).eval().requires_grad_(False) for _ in range(2))
    bare_encoder(bare)
    exact_positions(bare, "cpu")
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    pairs = zip(plain.encode(image).features, bare.encode(image).features, strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    points = torch.tensor([[[[200.3, 31.7]]]])
    exact = plain.model.prompt_encoder.shared_embedding(points, (256, 256))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = bare.model.prompt_encoder.shared_embedding(points, (256, 256))
        coarse = plain.model.prompt_encoder.shared_embedding(points, (256, 256))
    assert torch.equal(exact, kept)
    assert (exact - coarse).abs().max() > 1e-3


def test_half_precision_step_is_close_to_single_precision(tmp_path):
    logs = {}
    for precision in ("fp32", "bf16"):
        config = TINY.model_copy(update={"steps": 1, "precision": precision})
        pretrain(config, tmp_path / precision, seed=4)
        logs[precision] = json.loads((tmp_path / precision / "log.jsonl").read_text().splitlines()[0])
    assert logs["bf16"]["loss"] == pytest.approx(logs["fp32"]["loss"], rel=0.05)
    assert logs["bf16"]["loss"] != logs["fp32"]["loss"]


def test_publishing_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds neither"):
        publish(tmp_path)
