"""Loading models by name, folder or hub id, and the sentences for what cannot be loaded."""

import json

import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.sam.families import load
from fewlabel.sam.nano import NANO_FOLDER, build_nano, save_nano


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_local_folder_gives_the_saved_model(tmp_path, tiny_models, family):
    model = tiny_models[family]().eval()
    model.save_pretrained(tmp_path / "m")
    segmenter = load(str(tmp_path / "m"))
    assert segmenter.family == family
    assert segmenter.frame == 64
    assert not segmenter.training
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, segmenter.model.state_dict()[name]), name


def test_nano_is_in_the_package():
    segmenter = load("nano")
    assert (segmenter.family, segmenter.frame, segmenter.mask_size) == ("sam2", 256, 128)
    assert {value.dtype for value in segmenter.state_dict().values()} == {torch.float32}
    assert (NANO_FOLDER / "model.safetensors").stat().st_size <= 10_000_000
    with torch.no_grad():
        logits, quality = segmenter.decode(segmenter.encode(torch.rand(1, 1, 64, 64)), torch.full((1, 1, 1, 2), 30.0))
    assert logits.shape == (1, 1, 3, 64, 64)
    assert ((quality >= 0) & (quality <= 1)).all()


def test_saved_nano_is_the_model_in_half_precision(tmp_path):
    segmenter = build_nano(3)
    save_nano(segmenter, tmp_path)
    again = load(str(tmp_path)).model.state_dict()
    for name, value in segmenter.model.state_dict().items():
        assert torch.equal(again[name], value.half().float()), name


def test_seed_fixes_the_weights_and_spares_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (build_nano(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_missing_folder_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="use 'nano'"):
        load(str(tmp_path / "nowhere"))


def test_folder_without_configuration(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        load(str(tmp_path))


def test_broken_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a model configuration"):
        load(str(tmp_path))


def test_other_model_type_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="'bert', expected one of sam, sam2"):
        load(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_weights_are_named(tmp_path, tiny_models, damage):
    tiny_models["sam2"]().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    with pytest.raises(ModelError, match=r"download the checkpoint again\.$"):
        load(str(tmp_path))
