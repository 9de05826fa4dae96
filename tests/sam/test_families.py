"""Loading models by name, folder or hub id, and the sentences for what cannot be loaded."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam2VideoConfig, Sam2VideoModel, Sam3Config, Sam3VideoConfig, Sam3VideoModel

from fewlabel.core.errors import ModelError
from fewlabel.sam import families
from fewlabel.sam.families import load
from fewlabel.sam.family import FAMILIES
from fewlabel.sam.mobile import MobileSamModel, save_mobile_sam
from fewlabel.sam.nano import NANO_FOLDER, build_nano, save_nano

FAMILY_NAMES = list(FAMILIES)


def save(model, folder):
    """Write a tiny model as its family does."""
    if isinstance(model, MobileSamModel):
        folder.mkdir(parents=True, exist_ok=True)
        save_mobile_sam(model, folder)
    else:
        model.save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_local_folder_gives_the_saved_model(tmp_path, tiny_models, family):
    model = tiny_models[family]().eval()
    save(model, tmp_path / "m")
    segmenter = load(str(tmp_path / "m"), allow_sam3=True)
    assert segmenter.family == family
    assert segmenter.frame == model.prompt_encoder.input_image_size
    assert not segmenter.training
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, segmenter.model.state_dict()[name]), name


@pytest.mark.parametrize(("stored", "described"), [(a, b) for a in FAMILY_NAMES for b in FAMILY_NAMES if a != b])
def test_weights_of_another_family_are_refused(tmp_path, tiny_models, stored, described):
    for part, family in (("weights", stored), ("config", described)):
        save(tiny_models[family](), tmp_path / part)
    (tmp_path / "config" / "model.safetensors").unlink()
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "config" / "model.safetensors")
    with pytest.raises(
        ModelError, match=f"describes a '{described}' model, but the weights beside it are of '{stored}'"
    ):
        load(str(tmp_path / "config"), allow_sam3=True)


def test_weights_of_other_sizes_are_refused(tmp_path, tiny_models):
    model = tiny_models["sam"]()
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mask_decoder_config"]["iou_head_hidden_dim"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="5 tensors are missing or of another shape, such as mask_decoder.iou_pred"):
        load(str(tmp_path))


def test_sam3_is_loaded_only_with_consent_and_says_its_terms_once(tmp_path, tiny_models, capsys):
    save(tiny_models["sam3_tracker"](), tmp_path)
    families._say.cache_clear()
    for name in ("sam3", "facebook/sam3", str(tmp_path)):
        with pytest.raises(ModelError, match="SAM License of 2025-11-19: derivatives.*military.*give --allow-sam3"):
            load(name)
    assert "Licence notice" not in capsys.readouterr().err
    for _ in range(2):
        load(str(tmp_path), allow_sam3=True)
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Licence notice")]
    assert len(notices) == 1 and "ITAR" in notices[0]


def test_checkpoint_of_sam2_for_videos_is_loaded_as_the_image_model(tmp_path, tiny_models):
    parts = tiny_models["sam2"]().config
    video = Sam2VideoModel(Sam2VideoConfig(**sections(parts), **MEMORY, memory_attention_rope_feat_sizes=[4, 4]))
    video.save_pretrained(tmp_path)
    state = load(str(tmp_path)).model.state_dict()
    assert all(torch.equal(value, video.state_dict()[name]) for name, value in state.items())


def test_checkpoint_of_the_whole_sam3_is_loaded_as_its_tracker(tmp_path, tiny_models):
    """The published file holds a text-driven detector and a tracker for videos, which share an encoder."""
    parts = tiny_models["sam3_tracker"]().config
    small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_attention_heads": 2}
    detector = Sam3Config(
        vision_config=parts.vision_config.to_dict(),
        text_config={**small, "model_type": "clip_text_model", "vocab_size": 50, "num_hidden_layers": 1},
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 4},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    tracker = {
        **sections(parts),
        **MEMORY,
        "memory_attention_rope_feat_sizes": [8, 8],
        "image_size": parts.vision_config.image_size,
    }
    whole = Sam3VideoModel(Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker)).state_dict()
    Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker).save_pretrained(tmp_path)
    save_file({name: value.clone() for name, value in whole.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    for name, value in load(str(tmp_path), allow_sam3=True).model.state_dict().items():
        stored = f"tracker_model.{name}"
        if name.startswith("vision_encoder.neck."):
            stored = name.replace("vision_encoder.neck.", "tracker_neck.")
        elif name.startswith("vision_encoder."):
            stored = f"detector_model.{name}"
        assert torch.equal(value, whole[stored]), name


MEMORY = {
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
}


def sections(config):
    """The three parts of a configuration that image and video models share."""
    names = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    return {name: getattr(config, name).to_dict() for name in names}


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


@pytest.mark.parametrize("name", ["facebook/sam-vit-base", "sam2.1-tiny", "no/such/form", "absent"])
def test_what_cannot_be_fetched_names_the_remedy_at_once(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(ModelError, match=f"{name} is neither a folder.*use 'nano'.*fewlabel sam list"):
        load(name)
    assert time.monotonic() - began < 10


def test_mobile_sam_by_its_short_name_says_how_to_get_it():
    with pytest.raises(ModelError, match="mobile_sam.pt.*fewlabel sam convert"):
        load("mobile-sam")


def test_file_in_place_of_a_folder_names_the_conversion(tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"sam_vit_b\.pth is a file.*fewlabel sam convert"):
        load(str(path))


def test_folder_with_pickled_weights_alone_is_refused(tmp_path, tiny_models):
    model = tiny_models["sam"]()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        load(str(tmp_path))


def test_folder_without_configuration(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        load(str(tmp_path))


def test_broken_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a model configuration"):
        load(str(tmp_path))


def test_other_model_type_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="'bert', expected one of sam, sam_hq, sam2"):
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
