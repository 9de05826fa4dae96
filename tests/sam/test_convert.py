"""Original checkpoints: parity with the original packages, every tensor accounted for, one sentence for what is wrong.

The fixtures were written by tests/parity/make_fixtures.py with the classes of segment-anything 1.0 and sam2 1.1.0.
"""

import gzip
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewlabel.core.errors import ModelError
from fewlabel.core.files import sha256_file
from fewlabel.sam.convert import Original, arrange, blueprint, convert, identify, read_original
from fewlabel.sam.families import load
from fewlabel.sam.keys import sam2_keys, sam_keys

FIXTURES = Path(__file__).parent / "fixtures"
ORIGINALS = {"sam": "sam.pth", "sam2": "sam2.pt", "sam2.1": "sam2.1.pt"}
HIERA = json.loads((FIXTURES / "hiera.json").read_text())
CASES = ["point", "points", "box", "box-point", "mask", "mask-point"]
PUBLISHED = json.loads(gzip.decompress((FIXTURES / "published.json.gz").read_bytes()))
TOLERANCE = 1e-4


def config_of(name):
    """Hiera's heads and windows at these sizes; SAM's shapes tell everything."""
    return None if name == "sam" else HIERA


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The three originals, converted: name to conversion and loaded segmenter."""
    found = {}
    for name, file in ORIGINALS.items():
        done = convert(FIXTURES / file, tmp_path_factory.mktemp("converted") / name, config_of(name))
        found[name] = (done, load(str(done.folder)))
    return found


def compare(got, wanted, what):
    assert got.shape == wanted.shape, what
    assert wanted.std() > 0.02, f"{what} is flat"
    difference = float((got - wanted).abs().max())
    assert difference < TOLERANCE, f"{what} differs by {difference}"


def embed(segmenter, record):
    return segmenter.encode(record["image"].permute(2, 0, 1)[None].float() / 255)


@pytest.mark.parametrize("name", ORIGINALS)
def test_encoder_gives_the_originals_features(converted, name):
    segmenter, record = converted[name][1], load_file(FIXTURES / f"{name}.safetensors")
    with torch.no_grad():
        features = embed(segmenter, record).features
    assert len(features) == sum(key.startswith("features.") for key in record)
    for level, got in enumerate(features):
        compare(got, record[f"features.{level}"], f"level {level}")


@pytest.mark.parametrize("mode", ["three", "one"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_decoder_gives_the_originals_masks_and_quality(converted, name, case, mode):
    segmenter, record = converted[name][1], load_file(FIXTURES / f"{name}.safetensors")
    given = {kind: record.get(f"{case}.{kind}") for kind in ("points", "labels", "boxes", "masks")}
    # The originals take pixel indices, we take positions: the centre of pixel 0 is at 0.5.
    prompts = {
        "points": None if given["points"] is None else given["points"][None] + 0.5,
        "point_labels": None if given["labels"] is None else given["labels"][None],
        "boxes": None if given["boxes"] is None else given["boxes"][None] + 0.5,
        "masks": None if given["masks"] is None else given["masks"][None, :, 0],
    }
    with torch.no_grad():
        embedding = embed(segmenter, record)
        low, quality = segmenter.decode_low(embedding, **prompts, multimask=mode == "three")
        logits, _ = segmenter.decode(embedding, **prompts, multimask=mode == "three")
    compare(low[0], record[f"{case}.{mode}.low"], "low-resolution logits")
    assert torch.allclose(quality[0], record[f"{case}.{mode}.quality"], rtol=0, atol=TOLERANCE)
    if case == "point" and mode == "one":
        # The original mixes what it predicts for SAM's padding into the last half cell of 4 pixels; we do not.
        rows = slice(0, -2 if name == "sam" else None)
        wanted = record["point.one.logits"][..., rows, :]
        compare(logits[0, : len(wanted), :, rows], wanted, "logits over the image")


def test_fixtures_cover_stable_and_unstable_single_masks(converted):
    """SAM 2 gives the single-mask token's mask where it is stable, else the best of three: both must be compared."""
    fallen = set()
    for name in ("sam2", "sam2.1"):
        record = load_file(FIXTURES / f"{name}.safetensors")
        for case in CASES:
            three, one = record[f"{case}.three.quality"], record[f"{case}.one.quality"]
            fallen |= set((three.amax(1) == one[:, 0]).tolist())
    assert fallen == {True, False}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sam", Original("sam", "vit_custom")),
        ("sam2", Original("sam2", "sam2_hiera_custom")),
        ("sam2.1", Original("sam2", "sam2.1_hiera_custom")),
    ],
)
def test_conversion_says_what_it_did(converted, name, kind):
    done = converted[name][0]
    source = FIXTURES / ORIGINALS[name]
    tensors = read_original(source)
    assert identify(tensors) == kind == Original(done.family, done.variant)
    assert done.sha256 == sha256_file(source)
    assert done.weights_sha256 == sha256_file(done.folder / "model.safetensors")
    assert sorted(path.name for path in done.folder.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(done.folder / "model.safetensors", framework="pt") as file:
        assert len(file.keys()) == done.tensors
        assert file.metadata() == {"format": "pt"}
    config = json.loads((done.folder / "config.json").read_text())
    assert config["original"] == {"variant": done.variant, "sha256": done.sha256}
    # Each value of the original is in the written file or is named as unused, and nothing else is.
    used = sum(value.numel() for key, value in tensors.items() if key not in done.unused)
    written = sum(value.numel() for value in load_file(done.folder / "model.safetensors").values())
    shared = tensors[next(key for key in tensors if "gaussian" in key)].numel()
    assert written == used + (0 if name == "sam" else shared)  # SAM 2's model holds the positional code twice
    if name == "sam":
        assert done.unused == ()
    else:
        assert {key.partition(".")[0] for key in done.unused} >= {"memory_attention", "memory_encoder", "no_obj_ptr"}
    assert ("no_obj_embed_spatial" in done.unused) == (name == "sam2.1")


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes_are_mapped_one_to_one(variant):
    """From the original's names and shapes alone, without weights: each variant is recognised and fits exactly."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED[variant]["shapes"].items()}
    kind = identify(tensors)
    assert kind == Original("sam" if variant.startswith("vit") else "sam2", variant)
    model, keys = blueprint(tensors, kind)
    assert keys.keys() == tensors.keys()
    state = arrange(tensors, keys, model)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    shared, tied = "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"
    if kind.family == "sam":
        assert wanted.pop(tied) == wanted[shared]
    assert {name: value.shape for name, value in state.items()} == wanted
    new = [name for name in keys.values() if name is not None]
    assert len(set(new)) == len(new)
    rows = [name.partition("[")[0] for name in new]
    assert set(rows) | {tied} == set(wanted) | {tied}
    assert all(rows.count(name) == (1 if name != "prompt_encoder.point_embed.weight" else 4) for name in set(rows))
    assert all(tensors[old].shape == wanted[new] for old, new in keys.items() if new in wanted)
    encoder = model.vision_encoder
    blocks = encoder.layers if kind.family == "sam" else encoder.backbone.blocks
    assert [block.attn.num_attention_heads for block in blocks] == PUBLISHED[variant]["heads"]
    assert [block.window_size for block in blocks] == PUBLISHED[variant]["windows"]
    decoder = model.mask_decoder.transformer.layers[0]
    assert decoder.self_attn.num_attention_heads == PUBLISHED[variant]["decoder_heads"]
    assert decoder.layer_norm1.eps == 1e-5  # PyTorch's default, as in both originals
    assert model.prompt_encoder.input_image_size == PUBLISHED[variant]["image_size"]


def saved(folder, tensors, name="x.pth", wrap=False):
    path = folder / name
    torch.save({"model": tensors} if wrap else tensors, path)
    return path


def refuse(path, out, config=None):
    """The sentence of the error; nothing may be left where the folder would be."""
    before = sorted(item.name for item in out.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        convert(path, out, config)
    assert sorted(item.name for item in out.parent.iterdir()) == before
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


READ = {name: read_original(FIXTURES / file) for name, file in ORIGINALS.items()}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_missing_or_reshaped_tensor_is_refused(data):
    name = data.draw(st.sampled_from(sorted(READ)))
    keys = (sam_keys if name == "sam" else sam2_keys)(READ[name])
    victim = data.draw(st.sampled_from(sorted(key for key in keys if keys[key] is not None)))
    tensors = dict(READ[name])
    value = tensors.pop(victim)
    damage = data.draw(st.sampled_from(["missing", "flat", "more", "fewer", "axis", "empty"]))
    if damage != "missing":
        shapes = {
            "flat": value.flatten() if value.ndim > 1 else value[:, None],
            "more": torch.cat([value, value]),
            "fewer": value[: len(value) // 2] if len(value) > 1 else value[:0],
            "axis": value[..., None],
            "empty": value.new_zeros((0, *value.shape[1:])),
        }
        tensors[victim] = shapes[damage]
    with pytest.raises(ModelError, match=r"^[^\n]*\.$"):
        arrange(tensors, *blueprint(tensors, identify(tensors), config_of(name))[::-1])


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        ("image_encoder.blocks.1.attn.qkv.bias", "1 tensors are missing .*vision_encoder.layers.1.attn.qkv.bias"),
        ("image_encoder.pos_embed", "no tensor image_encoder.pos_embed"),
        ("mask_decoder.iou_token.weight", "1 tensors are missing .*mask_decoder.iou_token.weight"),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "missing .*shared_image_embedding"),
    ],
)
def test_missing_tensor_is_named(tmp_path, victim, said):
    tensors = read_original(FIXTURES / "sam.pth")
    del tensors[victim]
    assert re.search(said, refuse(saved(tmp_path, tensors), tmp_path / "out"))


def test_missing_row_of_a_matrix_is_named(tmp_path):
    tensors = read_original(FIXTURES / "sam2.pt")
    del tensors["sam_prompt_encoder.point_embeddings.2.weight"]
    assert "prompt_encoder.point_embed.weight[2]" in refuse(saved(tmp_path, tensors), tmp_path / "out", HIERA)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("sam", "image_encoder.blocks.0.adapter.weight"),
        ("sam", "mask_decoder.hf_mlp.layers.0"),
        ("sam", "sam_mask_decoder.iou_token.weight"),
        ("sam2", "prompt_encoder.no_mask_embed.weight"),
        ("sam2.1", "memory_attention.layers.0.lora.weight"),
    ],
)
def test_extra_tensor_is_named(tmp_path, name, extra):
    tensors = read_original(FIXTURES / ORIGINALS[name])
    path = saved(tmp_path, tensors | {extra: torch.ones(3)}, wrap=name != "sam")
    said = refuse(path, tmp_path / "out", config_of(name))
    assert ("SAM-HQ" if "hf_" in extra else "1 tensors belong to no part of SAM") in said
    assert "hf_" in extra or extra in said


def test_block_beyond_the_depth_is_named(tmp_path):
    tensors = read_original(FIXTURES / "sam.pth")
    moved = {name.replace("blocks.2.", "blocks.7."): value for name, value in tensors.items()}
    assert "blocks.7." in refuse(saved(tmp_path, moved), tmp_path / "out")


def test_reshaped_tensor_is_named_with_both_shapes(tmp_path):
    tensors = read_original(FIXTURES / "sam.pth")
    name = "image_encoder.neck.2.weight"
    tensors[name] = tensors[name][:, :, :1]
    said = refuse(saved(tmp_path, tensors), tmp_path / "out")
    assert f"{name}: (32, 32, 1, 3), not (32, 32, 3, 3)" in said


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path, share):
    whole = (FIXTURES / "sam2.pt").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "downloaded again if need be" in refuse(path, tmp_path / "out")


class Payload:
    """A pickle that would make a file when it is loaded the usual way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "newer pickle"])
def test_pickle_with_code_is_not_run(tmp_path, form):
    target, path = tmp_path / "made", tmp_path / "x.pth"
    held = {"model": read_original(FIXTURES / "sam.pth"), "note": Payload(target)}
    if form.endswith("pickle"):
        path.write_bytes(pickle.dumps(Payload(target), protocol=2 if form == "pickle" else 4))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    said = refuse(path, tmp_path / "out")
    assert not target.exists()
    assert ("(calls of functions)" if form == "newer pickle" else ".mkdir)") in said
    assert "which could run code" in said


def test_foreign_checkpoints(tmp_path):
    detector = {f"backbone.layer1.{i}.conv1.weight": torch.ones(2, 2) for i in range(5)}
    path = saved(tmp_path, {"meta": {"mmdet_version": "3.3.0", "epoch": 12}, "state_dict": detector})
    said = refuse(path, tmp_path / "out")
    assert "its 5 tensors (backbone.layer1.0.conv1.weight, " in said
    assert "those of another model" in said
    assert "holds no named tensors but a list" in refuse(saved(tmp_path, [torch.ones(1)], "l.pth"), tmp_path / "out")
    assert "no dense tensors (epoch)" in refuse(saved(tmp_path, detector | {"epoch": 3}, "e.pth"), tmp_path / "out")
    assert "does not exist" in refuse(tmp_path / "nothing.pth", tmp_path / "out")
    assert "is a folder" in refuse(tmp_path, tmp_path / "out")


def test_unpublished_hiera_asks_for_what_shapes_do_not_tell(tmp_path):
    said = refuse(FIXTURES / "sam2.pt", tmp_path / "out")
    assert "image_size, num_attention_heads_per_stage, window_size_per_stage, global_attention_blocks" in said
    wrong = {"backbone": HIERA["vision_config"]["backbone_config"]}
    assert "no section backbone" in refuse(FIXTURES / "sam2.pt", tmp_path / "out", wrong)


def test_entries_beside_the_state_dict_are_stated(tmp_path):
    tensors = read_original(FIXTURES / "sam.pth")
    path = tmp_path / "trained.pt"
    torch.save({"model": tensors, "optimizer": {"state": {}}, "epoch": 3}, path)
    assert convert(path, tmp_path / "out").unused == ("optimizer", "epoch")


def test_views_and_shared_storage_are_written_whole(tmp_path, converted):
    """Tensors as programs leave them: views of a larger storage, transposed, parameters, two names for one."""
    tensors = read_original(FIXTURES / "sam.pth")
    storage = torch.zeros(2, 100)
    storage[1, :32] = tensors["image_encoder.neck.1.bias"]
    tensors["image_encoder.neck.1.bias"] = storage[1, :32]
    name = "image_encoder.blocks.0.attn.proj.weight"
    tensors[name] = tensors[name].T.contiguous().T
    tensors["image_encoder.pos_embed"] = torch.nn.Parameter(tensors["image_encoder.pos_embed"])
    path = saved(tmp_path, tensors)
    convert(path, tmp_path / "out")
    got, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted["sam"][0].folder))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    tensors["image_encoder.neck.3.bias"] = tensors["image_encoder.neck.1.bias"]
    convert(saved(tmp_path, tensors), tmp_path / "out")
    both = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(both["vision_encoder.neck.layer_norm1.bias"], both["vision_encoder.neck.layer_norm2.bias"])


def test_safetensors_in_the_authors_names(tmp_path, converted):
    path = tmp_path / "sam.safetensors"
    save_file(read_original(FIXTURES / "sam.pth"), path)
    done = convert(path, tmp_path / "out")
    got, wanted = (load_file(folder / "model.safetensors") for folder in (done.folder, converted["sam"][0].folder))
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    path.write_bytes(path.read_bytes()[:100])
    assert "downloaded again if need be" in refuse(path, tmp_path / "other")


def test_only_an_earlier_conversion_is_replaced(tmp_path):
    out = tmp_path / "out"
    first = convert(FIXTURES / "sam.pth", out)
    assert convert(FIXTURES / "sam.pth", out) == first  # the same bytes again
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"holds other files \(notes.txt\); choose a new folder\.$"):
        convert(FIXTURES / "sam.pth", out)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(ModelError, match="is a file"):
        convert(FIXTURES / "sam.pth", out / "notes.txt")


def test_failure_leaves_the_earlier_conversion(tmp_path):
    out = tmp_path / "out"
    first = convert(FIXTURES / "sam.pth", out)
    tensors = read_original(FIXTURES / "sam.pth")
    del tensors["image_encoder.neck.3.bias"]
    refuse(saved(tmp_path, tensors), out)
    assert sha256_file(out / "model.safetensors") == first.weights_sha256


def test_half_precision_is_kept(tmp_path):
    tensors = {name: value.half() for name, value in read_original(FIXTURES / "sam.pth").items()}
    done = convert(saved(tmp_path, tensors), tmp_path / "out")
    assert {value.dtype for value in load_file(done.folder / "model.safetensors").values()} == {torch.float16}
    assert {value.dtype for value in load(str(done.folder)).parameters()} == {torch.float32}
