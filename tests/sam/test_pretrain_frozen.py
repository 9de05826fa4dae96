"""Pre-training with a frozen encoder: what trains, where features come from, and that neither cache nor kill shows."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewlabel.cli import app
from fewlabel.core.errors import FewlabelError, RunError
from fewlabel.sam import pretrain as module
from fewlabel.sam.families import load
from fewlabel.sam.nano import build_nano
from fewlabel.sam.pretrain import PretrainConfig, pretrain, publish, read_run
from fewlabel.sam.pretrain_batches import draw_batch, pool_indices, pool_scene
from fewlabel.sam.pretrain_frozen import FrozenEncoder, FrozenFeatures, freeze_encoder
from fewlabel.sam.pretrain_loss import step_loss

POOL = PretrainConfig(steps=4, batch=2, targets=1, log_every=1, corrections=0.5, pool=3)


def equal(first, second):
    """Whether two dicts of tensors have the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def belongs_to_the_embedding(name):
    return "prompt_encoder" not in name and ("mask_decoder" not in name or ".conv_s" in name)


def test_pool_is_walked_in_a_new_order_in_each_epoch():
    config = PretrainConfig(batch=4, pool=50)
    walk = np.array([pool_indices(config, 3, step) for step in range(25)]).reshape(2, 50)
    assert all(sorted(epoch) == list(range(50)) for epoch in walk.tolist())
    assert (walk[0] != walk[1]).any()
    assert pool_indices(config, 4, 0) != pool_indices(config, 3, 0)
    small = PretrainConfig(batch=4, pool=3)  # a step may end one epoch and begin another
    assert sorted(i for step in range(3) for i in pool_indices(small, 0, step)) == sorted([0, 1, 2] * 4)


def test_scenes_of_the_pool_come_back_with_new_prompts():
    config = PretrainConfig(batch=2, targets=1, pool=2, boxes=0.0, central=0.0)
    first, second = draw_batch(config, 7, 0, True), draw_batch(config, 7, 1, True)
    images = [torch.from_numpy(pool_scene(config, 7, index).image.copy()).half() for index in (0, 1)]
    assert not torch.equal(*images)
    for batch, step in ((first, 0), (second, 1)):
        assert all(torch.equal(a, images[i]) for a, i in zip(batch.images, pool_indices(config, 7, step), strict=True))
    assert not torch.equal(first.points, second.points)
    assert torch.equal(first.points, draw_batch(config, 7, 0, True).points)


def test_options_without_a_pool_are_recorded_as_before_there_were_pools():
    assert "pool" not in PretrainConfig().model_dump(mode="json", exclude={"log_every"})
    assert "pool" not in json.loads(PretrainConfig().model_dump_json())
    assert PretrainConfig.model_validate(POOL.model_dump()) == POOL and POOL.model_dump()["pool"] == 3


def test_only_what_follows_the_embedding_trains():
    segmenter = build_nano(0)
    freeze_encoder(segmenter)
    batch = draw_batch(POOL, 0, 0, warm=True)
    assert not any(part.requires_grad for part in segmenter.encode(batch.images.float()).features)
    step_loss(segmenter, batch, 1.0, 1.0)["loss"].backward()
    for name, parameter in segmenter.named_parameters():
        assert parameter.requires_grad != belongs_to_the_embedding(name)
        assert parameter.grad is None or not belongs_to_the_embedding(name)
    assert segmenter.model.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0


def test_features_do_not_depend_on_company_mode_precision_or_cache(tmp_path):
    segmenter = build_nano(1).train()
    encoder = FrozenEncoder(segmenter)
    images = torch.rand((3, 3, 256, 256), generator=torch.Generator().manual_seed(0)).half()
    alone = [encoder.encode(image[None].float()).features for image in images]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = encoder.encode(images.float()).features
    segmenter.eval()
    exact = segmenter.encode(images.float()).features
    for level, (part, other) in enumerate(zip(together, exact, strict=True)):
        assert torch.equal(part, torch.cat([features[level] for features in alone]))
        assert torch.equal(part, part.half().float()) and part.dtype == torch.float32 and not part.requires_grad
        assert (part - other).abs().max() <= 2**-11 * other.abs().max() + 1e-4
    plain = FrozenFeatures(segmenter, "weights", "cpu", None, 1.0)
    cached = FrozenFeatures(segmenter, "weights", "cpu", tmp_path, 1.0)
    for count, rate in ((2, 0.0), (3, 2 / 3), (3, 1.0)):
        embedding, hits = cached(images[:count])
        assert hits == rate
        assert all(map(torch.equal, embedding.features, [part[:count] for part in together]))
    embedding, hits = plain(images)
    assert hits is None and all(map(torch.equal, embedding.features, together))
    again = FrozenFeatures(segmenter, "other weights", "cpu", tmp_path, 1.0)
    assert again(images)[1] == 0.0


def test_interrupted_training_with_a_cache_ends_with_the_bits_of_one_without(tmp_path, monkeypatch):
    pretrain(POOL, tmp_path / "whole", seed=4, start="nano")
    step = module.step_loss

    def stop_after_one(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(module, "step_loss", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        pretrain(POOL, tmp_path / "parts", seed=4, start="nano", cache=tmp_path / "cache")
    monkeypatch.undo()
    facts = publish(tmp_path / "parts", tmp_path / "early")
    assert (facts["steps"], facts["finished"], facts["hit_rate"]) == (1, False, 0.0)
    pretrain(POOL, tmp_path / "parts", seed=4, start="nano", cache=tmp_path / "cache")
    (whole, one), (parts, other) = (read_run(tmp_path / name) for name in ("whole", "parts"))
    assert equal(one, other)
    assert "hit_rate" not in whole
    assert parts["hit_rate"] == 5 / 8  # three scenes were new, of eight that were shown
    assert json.loads((tmp_path / "parts" / "training.json").read_text()) == parts
    assert parts["config"]["pool"] == 3 and parts["from"]["weights_sha256"]
    start, early, late = (load(str(name)).state_dict() for name in ("nano", tmp_path / "early", tmp_path / "parts"))
    for name, value in start.items():
        if belongs_to_the_embedding(name):
            assert torch.equal(value, early[name]) and torch.equal(value, late[name])
    name = "model.mask_decoder.mask_tokens.weight"
    assert not torch.equal(start[name], early[name]) and not torch.equal(early[name], late[name])
    publish(tmp_path / "parts", tmp_path / "again")
    assert equal(load(str(tmp_path / "again")).state_dict(), late)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--frozen-encoder", "--start", "nano"), "--frozen-encoder was given without --pool"),
        (("--pool", "9", "--start", "nano"), "--pool 9 was given without --frozen-encoder"),
        (("--frozen-encoder", "--pool", "9"), "give --start nano"),
        (("--start", "nano", "--cache", "cache"), "leave --cache out"),
        (("--start", "nano", "--cache-gb", "1"), "--cache-gb 1 was given without --cache"),
        (("--frozen-encoder", "--pool", "9", "--start", "nano", "--cache", "c", "--cache-gb", "0"), "bound is 0.0 GB"),
    ],
)
def test_options_that_contradict_each_other_are_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["pretrain", "--device", "cpu", *arguments])
    assert isinstance(result.exception, FewlabelError) and said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_command_says_how_often_the_cache_had_the_features(tmp_path):
    call = ["pretrain", "--frozen-encoder", "--pool", "1", "--start", "nano", "--steps", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 0, result.output
    assert "1 steps in" in result.output and "75.0 % of the features were in the cache" in result.output
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0 and "already done, 1 steps in" in result.output
    with pytest.raises(RunError, match="holds a pre-training whose option pool is 1, not 2"):
        pretrain(PretrainConfig(steps=1, pool=2), tmp_path / "run", seed=0, start="nano")
