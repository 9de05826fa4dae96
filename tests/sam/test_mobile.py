"""MobileSAM: the encoder against loops, counts and another implementation; names, files and the segmenter around it."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewlabel.core.errors import ModelError
from fewlabel.sam.convert import convert
from fewlabel.sam.mobile import (
    MobileSamConfig,
    MobileSamModel,
    build_mobile_sam,
    encoder_keys,
    load_mobile_sam,
    mobile_keys,
    save_mobile_sam,
)
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.tinyvit import TinyVit, TinyVitBlock, TinyVitConfig, relative_index

FIXTURE = Path(__file__).parent / "fixtures" / "mobile_encoder.safetensors"
VISION = {
    "image_size": 80,  # grids of 20, 10, 5 and 5 cells, none a multiple of its window
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 3, 4],
    "window_sizes": [7, 3, 4, 3],
    "output_channels": 32,
}
TINY = {
    "vision_config": VISION,
    "mask_decoder_config": {"mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    "initializer_range": 0.1,
}
CLASSIFIER = 2 * 320 + 320 * 1000 + 1000  # norm_head and head of the original


def randomise(module, seed=0):
    """Values that leave no parameter without effect: the initial ones switch off the first stage and all biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("norm.weight"):
                tensor.uniform_(0.7, 1.3, generator=generator)
            elif name.endswith("attention.bias"):
                tensor.normal_(0, 1, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.2, generator=generator)
    return module


@pytest.fixture(scope="module")
def model() -> MobileSamModel:
    return randomise(build_mobile_sam(TINY)).eval().requires_grad_(False)


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def original_encoder(config: TinyVitConfig, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original encoder's state dict, written down from its sizes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_norm(name, out, channels, kernel):
        shapes[f"{name}.c.weight"] = (out, channels, kernel, kernel)
        shapes.update({f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def affine(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    dims = config.embed_dims
    conv_norm("patch_embed.seq.0", dims[0] // 2, 3, 3)
    conv_norm("patch_embed.seq.2", dims[0], dims[0] // 2, 3)
    for i, dim in enumerate(dims):
        for j in range(config.depths[i]):
            block = f"layers.{i}.blocks.{j}"
            if i == 0:
                conv_norm(f"{block}.conv1", 4 * dim, dim, 1)
                conv_norm(f"{block}.conv2", 4 * dim, 1, 3)
                conv_norm(f"{block}.conv3", dim, 4 * dim, 1)
                continue
            shapes[f"{block}.attn.attention_biases"] = (config.num_heads[i], config.window_sizes[i] ** 2)
            affine(f"{block}.attn.norm", dim)
            affine(f"{block}.attn.qkv", 3 * dim, dim)
            affine(f"{block}.attn.proj", dim, dim)
            affine(f"{block}.mlp.norm", dim)
            affine(f"{block}.mlp.fc1", 4 * dim, dim)
            affine(f"{block}.mlp.fc2", dim, 4 * dim)
            conv_norm(f"{block}.local_conv", dim, 1, 3)
        if i < len(dims) - 1:
            conv_norm(f"layers.{i}.downsample.conv1", dims[i + 1], dim, 1)
            conv_norm(f"layers.{i}.downsample.conv2", dims[i + 1], 1, 3)
            conv_norm(f"layers.{i}.downsample.conv3", dims[i + 1], dims[i + 1], 1)
    out = config.output_channels
    affine("norm_head", dims[-1])
    affine("head", classes, dims[-1])
    shapes |= {"neck.0.weight": (out, dims[-1], 1, 1), "neck.2.weight": (out, out, 3, 3)}
    affine("neck.1", out)
    affine("neck.3", out)
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def original_decoder(model: MobileSamModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of segment-anything's prompt encoder and mask decoder, of a model's sizes."""
    out = model.config.vision_config.output_channels
    masks, mlp = model.config.mask_decoder_config, model.config.mask_decoder_config.mlp_dim
    shapes: dict[str, tuple[int, ...]] = {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, out // 2),
        "prompt_encoder.not_a_point_embed.weight": (1, out),
        "prompt_encoder.no_mask_embed.weight": (1, out),
        "mask_decoder.iou_token.weight": (1, out),
        "mask_decoder.mask_tokens.weight": (4, out),
    }
    shapes |= {f"prompt_encoder.point_embeddings.{i}.weight": (1, out) for i in range(4)}

    def affine(name, *shape, bias=None):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (bias or shape[0],)

    for index, shape in ((0, (4, 1, 2, 2)), (1, (4,)), (3, (16, 4, 2, 2)), (4, (16,)), (6, (out, 16, 1, 1))):
        affine(f"prompt_encoder.mask_downscaling.{index}", *shape)
    attentions = ["final_attn_token_to_image"]
    for i in range(2):
        layer = f"layers.{i}"
        attentions += [f"{layer}.{kind}" for kind in ("cross_attn_token_to_image", "cross_attn_image_to_token")]
        attentions.append(f"{layer}.self_attn")
        for j in range(1, 5):
            affine(f"mask_decoder.transformer.{layer}.norm{j}", out)
        affine(f"mask_decoder.transformer.{layer}.mlp.lin1", mlp, out)
        affine(f"mask_decoder.transformer.{layer}.mlp.lin2", out, mlp)
    for name in attentions:
        inner = out if name.endswith("self_attn") else out // 2
        for part in "qkv":
            affine(f"mask_decoder.transformer.{name}.{part}_proj", inner, out)
        affine(f"mask_decoder.transformer.{name}.out_proj", out, inner)
    affine("mask_decoder.transformer.norm_final_attn", out)
    affine("mask_decoder.output_upscaling.0", out, out // 4, 2, 2, bias=out // 4)
    affine("mask_decoder.output_upscaling.1", out // 4)
    affine("mask_decoder.output_upscaling.3", out // 4, out // 8, 2, 2, bias=out // 8)
    hidden = masks.iou_head_hidden_dim
    for head, (wide, last) in {f"output_hypernetworks_mlps.{i}": (out, out // 8) for i in range(4)}.items():
        for j, shape in enumerate(((wide, out), (wide, wide), (last, wide))):
            affine(f"mask_decoder.{head}.layers.{j}", *shape)
    for j, shape in enumerate(((hidden, out), (hidden, hidden), (4, hidden))):
        affine(f"mask_decoder.iou_prediction_head.layers.{j}", *shape)
    return shapes


@pytest.fixture(scope="module")
def original(model) -> dict[str, torch.Tensor]:
    """A random checkpoint in the original's names."""
    generator = torch.Generator().manual_seed(3)
    shapes = original_encoder(model.config.vision_config) | original_decoder(model)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(shape, generator=generator) * 0.3
    return tensors


# --- the encoder ---------------------------------------------------------------------------------------------------


def test_published_size():
    """10,130,092 parameters in the original checkpoint, of which the classifier is unused; counted without storage."""
    with torch.device("meta"):
        model = MobileSamModel(MobileSamConfig())
    assert parameters(model.vision_encoder) + CLASSIFIER == 6_065_532
    code = model.shared_image_embedding.positional_embedding.numel()  # a buffer in the original
    assert parameters(model) - code + CLASSIFIER == 10_130_092
    assert parameters(model.mask_decoder) == 4_058_340
    shapes = {name: tuple(tensor.shape) for name, tensor in model.vision_encoder.state_dict().items()}
    assert [stage.merge is not None for stage in model.vision_encoder.stages] == [True, True, True, False]
    assert shapes["stages.2.blocks.5.attention.bias"] == (5, 196)
    assert shapes["stages.3.blocks.1.attention.qkv.weight"] == (960, 320)
    assert not [name for name in shapes if name.endswith("index")]


@pytest.mark.parametrize("size", [16, 64, 80, 112])
def test_grid_has_stride_16(size):
    encoder = TinyVit(TinyVitConfig(**VISION | {"image_size": size})).eval()
    with torch.inference_mode():
        output = encoder(torch.randn(2, 3, size, size)).last_hidden_state
    assert output.shape == (2, 32, size // 16, size // 16)
    assert torch.isfinite(output).all()


def test_blocks_return_channels_last_tokens(model):
    encoder, seen = model.vision_encoder, []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape))) for block in encoder.blocks
    ]
    encoder(torch.randn(2, 3, 80, 80))
    for handle in handles:
        handle.remove()
    assert encoder.block_channels == [8, 16, 24, 24, 32]
    assert seen == [(2, 20, 20, 8), (2, 10, 10, 16), (2, 5, 5, 24), (2, 5, 5, 24), (2, 5, 5, 32)]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 14])
def test_offsets_are_numbered_in_order_of_appearance(window):
    """The original numbers absolute offsets as it meets them, pair by pair in row-major order."""
    cells = [(row, column) for row in range(window) for column in range(window)]
    numbers: dict[tuple[int, int], int] = {}
    expected = [[numbers.setdefault((abs(a - c), abs(b - d)), len(numbers)) for c, d in cells] for a, b in cells]
    assert relative_index(window).tolist() == expected
    assert len(numbers) == window * window


def loop_attention(block: TinyVitBlock, tokens):
    """Attention in windows, one query of one head at a time; cells beyond the grid are zeros before the norm."""
    attention, side = block.attention, block.window
    height, width, channels = tokens.shape
    size = channels // attention.heads
    outside = torch.zeros(channels, dtype=tokens.dtype)
    result = torch.empty_like(tokens)
    for row in range(height):
        for column in range(width):
            top, left = row // side * side, column // side * side
            mixed = []
            for head in range(attention.heads):
                rows = slice(head * 3 * size, (head + 1) * 3 * size)
                weight, offset = attention.qkv.weight[rows], attention.qkv.bias[rows]

                def project(y, x, weight=weight, offset=offset):
                    cell = tokens[y, x] if y < height and x < width else outside
                    deviation = (cell - cell.mean()) / torch.sqrt(cell.var(correction=0) + 1e-5)
                    return (weight @ (deviation * attention.norm.weight + attention.norm.bias) + offset).split(size)

                query = project(row, column)[0]
                scores, values = [], []
                for y in range(top, top + side):
                    for x in range(left, left + side):
                        _, key, value = project(y, x)
                        bias = attention.bias[head, abs(y - row) * side + abs(x - column)]
                        scores.append(query @ key / math.sqrt(size) + bias)
                        values.append(value)
                shares = torch.stack(scores).softmax(0)
                mixed.append((shares[:, None] * torch.stack(values)).sum(0))
            result[row, column] = attention.proj.weight @ torch.cat(mixed) + attention.proj.bias
    return result


@settings(deadline=None, max_examples=12)
@given(height=st.integers(1, 7), width=st.integers(1, 7), window=st.integers(1, 4), seed=st.integers(0, 99))
def test_window_attention_equals_loops(height, width, window, seed):
    block = randomise(TinyVitBlock(6, heads=2, window=window, mlp_ratio=2.0, kernel=3), seed).double().eval()
    tokens = torch.randn((1, height, width, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block._attend(tokens)[0], loop_attention(block, tokens[0]))


def test_gradients_reach_every_parameter_and_the_image():
    encoder = randomise(TinyVit(TinyVitConfig(**VISION))).train()
    pixels = torch.randn(2, 3, 80, 80, requires_grad=True)
    encoder(pixels).last_hidden_state[:, :, 1, 2].square().sum().backward()
    assert pixels.grad.abs().sum() > 0
    for name, parameter in encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": 72}, "image_size is 72, expected a multiple of 16"),
        ({"depths": [1, 1, 1]}, "one value per stage"),
        ({"strides": [2, 2]}, "one stride less"),
        ({"num_heads": [1, 2, 5, 4]}, "heads that divide"),
        ({"embed_dims": "wide"}, "cannot be built"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(sizes, words):
    with pytest.raises(ModelError, match=words):
        build_mobile_sam(TINY | {"vision_config": VISION | sizes})


# --- the original's names ------------------------------------------------------------------------------------------


def test_encoder_equals_another_implementation():
    """Output of kornia's encoder for the same tensors under the authors' names (tests/parity/build_mobile.py)."""
    tensors = load_file(FIXTURE)
    with safe_open(FIXTURE, "pt") as file:
        vision = json.loads(file.metadata()["vision_config"])
    pixels, output = tensors.pop("input"), tensors.pop("output")
    keys = mobile_keys(tensors, {"vision_config": vision})
    assert sorted(name for name, ours in keys.items() if ours is None) == [
        f"image_encoder.{name}" for name in ("head.bias", "head.weight", "norm_head.bias", "norm_head.weight")
    ]
    encoder = TinyVit(TinyVitConfig(**vision)).eval()
    encoder.load_state_dict(
        {ours.removeprefix("vision_encoder."): tensors[name] for name, ours in keys.items() if ours}
    )
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pixels).last_hidden_state, output, atol=1e-5, rtol=1e-5)
        encoder.stages[1].blocks[0].attention.bias.zero_()
        assert (encoder(pixels).last_hidden_state - output).abs().max() > 1e-3


def test_published_names_and_shapes_are_all_accounted_for():
    with torch.device("meta"):
        model = MobileSamModel(MobileSamConfig())
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = original_encoder(model.config.vision_config) | original_decoder(model)
    keys = mobile_keys(theirs)
    assert keys.keys() == theirs.keys()
    used = {name: new for name, new in keys.items() if new is not None}
    assert len(set(used.values())) == len(used) == len(keys) - 4
    assert {new: theirs[name] for name, new in used.items()} == {
        name: shape for name, shape in ours.items() if name != "prompt_encoder.shared_embedding.positional_embedding"
    }


def test_original_tensors_survive_both_ways(original, tmp_path):
    """Original names -> ours -> file -> ours: each tensor arrives bit for bit, and the outputs are the same."""
    keys = mobile_keys(original, TINY)
    model = build_mobile_sam(TINY).eval()
    state = {new: original[name] for name, new in keys.items() if new is not None}
    shared = state["shared_image_embedding.positional_embedding"]
    model.load_state_dict(state | {"prompt_encoder.shared_embedding.positional_embedding": shared})
    save_mobile_sam(model, tmp_path)
    again = load_mobile_sam(tmp_path)
    for name, new in keys.items():
        if new is not None:
            torch.testing.assert_close(again.state_dict()[new], original[name], atol=0, rtol=0)
    pixels, points = torch.randn(1, 3, 80, 80), torch.rand(1, 2, 1, 2) * 80
    with torch.inference_mode():
        first, second = (m(pixel_values=pixels, input_points=points) for m in (model, again))
    assert torch.equal(first.pred_masks, second.pred_masks)
    assert torch.equal(first.iou_scores, second.iou_scores)


def test_published_checkpoint_is_converted(tmp_path):
    """A file with the names and shapes of mobile_sam.pt becomes a folder that holds each of its tensors."""
    with torch.device("meta"):
        model = MobileSamModel(MobileSamConfig())
    shapes = original_encoder(model.config.vision_config) | original_decoder(model)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    tensors |= {name: torch.tensor(7) for name in shapes if name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "mobile_sam.pt")
    done = convert(tmp_path / "mobile_sam.pt", tmp_path / "folder")
    assert (done.family, len(done.unused)) == ("mobile_sam", 4)
    loaded = load_mobile_sam(tmp_path / "folder")
    assert loaded.config.vision_config.image_size == 1024
    state = loaded.state_dict()
    for name, new in mobile_keys(tensors).items():
        assert new is None or torch.equal(state[new], tensors[name]), name


def test_foreign_and_missing_names_are_named(original):
    with pytest.raises(ModelError, match=r"1 tensors are foreign \(image_encoder.blocks.0.norm1.weight\)"):
        mobile_keys([*original, "image_encoder.blocks.0.norm1.weight"], TINY)
    with pytest.raises(ModelError, match=r"1 are missing \(vision_encoder.stages.1.blocks.0.attention.bias\)"):
        mobile_keys([name for name in original if not name.endswith("layers.1.blocks.0.attn.attention_biases")], TINY)
    with pytest.raises(ModelError, match="missing"):
        encoder_keys([name for name in original if ".head" not in name and name.startswith("image_encoder.")])
    with pytest.raises(ModelError, match="optimizer.state"):
        mobile_keys([*original, "optimizer.state"], TINY)


def test_what_may_be_left_out_or_added(original):
    """Counters of batch normalisation are read in training alone; indices of biases follow from the window."""
    short = [name for name in original if not name.endswith(("num_batches_tracked", "head.weight", "head.bias"))]
    assert None not in mobile_keys(short, TINY).values()
    index = "image_encoder.layers.2.blocks.1.attn.attention_bias_idxs"
    assert mobile_keys([*original, index], TINY)[index] is None


# --- files and the segmenter ---------------------------------------------------------------------------------------


def test_saved_model_is_the_same_model(model, tmp_path):
    save_mobile_sam(model, tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config["model_type"] == "mobile_sam"
    assert config["vision_config"]["window_sizes"] == [7, 3, 4, 3]
    again = load_mobile_sam(tmp_path / "new" / "folder")
    assert not again.training
    pixels = torch.randn(1, 3, 80, 80)
    with torch.inference_mode():
        first, second = (m.vision_encoder(pixels).last_hidden_state for m in (model, again))
    assert torch.equal(first, second)
    tensors = load_file(tmp_path / "new" / "folder" / "model.safetensors")
    assert len(tensors) == len(model.state_dict()) - 1  # the positional code once


def test_half_precision_files_are_read_as_float32(model, tmp_path):
    save_mobile_sam(model, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}, path)
    again = load_mobile_sam(tmp_path)
    assert all(t.dtype == torch.float32 for t in again.state_dict().values() if t.is_floating_point())
    name = "mask_decoder.iou_token.weight"
    torch.testing.assert_close(again.state_dict()[name], model.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_damaged_folders_are_named(model, tmp_path):
    with pytest.raises(ModelError, match="config.json does not exist"):
        load_mobile_sam(tmp_path)
    save_mobile_sam(model, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(ModelError, match="does not hold the weights"):
        load_mobile_sam(tmp_path)
    weights.write_bytes(good)
    tensors = load_file(weights)
    del tensors["vision_encoder.neck.conv1.weight"]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="does not hold the weights"):
        load_mobile_sam(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="does not exist"):
        load_mobile_sam(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "sam"}))
    with pytest.raises(ModelError, match="type 'sam', expected 'mobile_sam'"):
        load_mobile_sam(tmp_path)
    config.write_text("[1]")
    with pytest.raises(ModelError, match="type None"):
        load_mobile_sam(tmp_path)


def test_seed_decides_the_weights_and_spares_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (build_mobile_sam(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    for name in ("vision_encoder.neck.conv1.weight", "mask_decoder.iou_token.weight"):
        assert not torch.equal(first[name], other[name])


def test_prompts_and_image_share_one_positional_code(model):
    assert model.prompt_encoder.shared_embedding is model.shared_image_embedding
    assert model.mask_decoder.transformer.layers[0].layer_norm1.eps == 1e-5


def test_segmenter_equals_the_models_own_forward(model):
    segmenter = PromptableSegmenter(model, "mobile_sam", "tiny MobileSAM")
    images = torch.rand((2, 3, 80, 80), generator=torch.Generator().manual_seed(0))
    points = torch.rand((2, 3, 1, 2), generator=torch.Generator().manual_seed(1)) * 80
    low, quality = segmenter.decode_low(segmenter.encode(images), points)
    output = model(
        pixel_values=segmenter.preprocess(images),
        input_points=points - 0.5,
        input_labels=torch.ones(2, 3, 1, dtype=torch.long),
    )
    torch.testing.assert_close(low, output.pred_masks)
    torch.testing.assert_close(quality, output.iou_scores)


def test_segmenter_keeps_the_aspect_and_pads(model):
    segmenter = PromptableSegmenter(model, "mobile_sam", "tiny MobileSAM")
    frame = segmenter.frame_of((30, 60))
    assert (frame.content, frame.side) == ((40, 80), 80)
    pixels = segmenter.preprocess(torch.rand(1, 1, 30, 60))
    assert (pixels[..., 40:, :] == 0).all()
    assert (pixels[..., :40, :] != 0).all()
    logits, quality = segmenter.decode(
        segmenter.encode(torch.rand(1, 1, 30, 60)), boxes=torch.tensor([[[5.0, 6.0, 20.0, 25.0]]])
    )
    assert logits.shape == (1, 1, 3, 30, 60)
    assert quality.shape == (1, 1, 3)


def test_hooks_on_the_segmenters_blocks_adapt_it(model):
    segmenter = PromptableSegmenter(model, "mobile_sam", "tiny MobileSAM")
    assert len(segmenter.encoder_blocks) == len(segmenter.block_channels) == 5
    images, shifts = torch.rand(1, 3, 80, 80), [torch.zeros(c, requires_grad=True) for c in segmenter.block_channels]
    handles = [
        block.register_forward_hook(lambda _m, _i, out, s=shift: out + s)
        for block, shift in zip(segmenter.encoder_blocks, shifts, strict=True)
    ]
    try:
        segmenter.encode(images).features[-1][..., 2, 2].square().sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert all(shift.grad.abs().sum() > 0 for shift in shifts)
