"""What `fewlabel sam info` says of checkpoints of every form, and of files that are none."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewlabel.core.errors import ModelError
from fewlabel.sam.describe import describe
from fewlabel.sam.nano import NANO_FOLDER

FIXTURES = Path(__file__).with_name("fixtures")


@pytest.mark.parametrize("family", ["sam", "sam_hq", "sam2", "sam3_tracker"])
@pytest.mark.parametrize("lone", [False, True])
def test_checkpoints_of_transformers(tmp_path, tiny_models, family, lone):
    model = tiny_models[family]()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if lone:
        (tmp_path / "config.json").unlink()
    found = describe(weights if lone else tmp_path)
    assert found.family == family
    assert found.form == ("weights without config.json" if lone else "checkpoint folder")
    assert found.sha256 == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    stored = {id(value): value.numel() for value in model.state_dict(keep_vars=True).values()}  # tied ones once
    assert found.parameters == sum(stored.values())
    assert found.side == (None if lone else model.prompt_encoder.input_image_size)
    assert str(tmp_path) in found.use


def test_weights_inside_a_folder_point_to_it():
    found = describe(NANO_FOLDER / "model.safetensors")
    assert (found.form, found.family, found.variant, found.side) == (
        "weights of a checkpoint folder",
        "sam2",
        "nano-SAM",
        256,
    )
    assert found.use.endswith(f"--sam {NANO_FOLDER}")


def test_a_training_s_own_files_are_no_part_of_the_model(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(NANO_FOLDER / name, tmp_path)
    alone = describe(tmp_path)
    save_file({"extra": torch.zeros(7)}, tmp_path / "weights.safetensors")
    assert describe(tmp_path) == alone


@pytest.mark.parametrize(
    ("file", "family", "variant"),
    [("sam.pth", "sam", "vit_custom"), ("sam2.pt", "sam2", "sam2_"), ("sam2.1.pt", "sam2", "sam2.1_")],
)
def test_original_checkpoints_name_the_conversion(file, family, variant):
    found = describe(FIXTURES / file)
    assert (found.form, found.family) == ("original checkpoint", family)
    assert found.variant.startswith(variant)
    assert found.use == f"fewlabel sam convert {FIXTURES / file} OUT"
    assert found.parameters > 1000


def test_original_names_in_safetensors(tmp_path):
    tensors = {
        "image_encoder.blocks.0.attn.qkv.weight": torch.zeros(6, 2),
        "image_encoder.pos_embed": torch.zeros(1, 4, 4, 2),
    }
    save_file(tensors, tmp_path / "sam.safetensors")
    found = describe(tmp_path / "sam.safetensors")
    assert (found.form, found.family, found.parameters) == ("original checkpoint", "sam", 44)


def damage(folder, kind):
    """Make one thing wrong with a folder of nano-SAM's files; returns what to describe."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes((NANO_FOLDER / "model.safetensors").read_bytes())
    config.write_text((NANO_FOLDER / "config.json").read_text())
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif kind == "foreign":
        save_file({"bert.embeddings.weight": torch.zeros(3, 3)}, weights)
    elif kind == "foreign alone":
        save_file({"bert.embeddings.weight": torch.zeros(3, 3)}, weights)
        return weights
    elif kind == "list":
        config.write_text(json.dumps([1]))
    elif kind == "no weights":
        weights.unlink()
    elif kind == "absent":
        return folder / "absent.pth"
    elif kind == "empty":
        (folder / "sam.pth").write_bytes(b"")
        return folder / "sam.pth"
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "model.safetensors is not a whole safetensors file"),
        ("foreign", "describes a 'sam2' model, but the weights beside it are of another model"),
        ("foreign alone", "those of another model"),
        ("list", "not a model configuration but a list"),
        ("no weights", r"no \.safetensors"),
        ("absent", "absent.pth does not exist"),
        ("empty", "sam.pth"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, kind, words):
    with pytest.raises(ModelError, match=words) as caught:
        describe(damage(tmp_path, kind))
    assert str(tmp_path) in str(caught.value)


def test_names_of_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe(Path("nano")) == describe(NANO_FOLDER)
    with pytest.raises(ModelError, match="sam-vit-b is a name and no file: .* Apache-2.0, .* as in --sam sam-vit-b"):
        describe(Path("sam-vit-b"))
