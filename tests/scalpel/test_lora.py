"""LoRA and Conv-LoRA: merged weights and a plain computation as oracles, the gate's gradient, what is refused."""

import copy
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from torch import nn
from torch.nn import functional

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig
from fewlabel.scalpel.lora import SCALES, ConvLowRank, LoraAdapter, LowRank, projections

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)


@cache
def segmenter_of(family):
    return PromptableSegmenter(tiny.BUILDERS[family]().eval().requires_grad_(False), family, f"tiny {family}")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(update, seed=1):
    """The update with all weights drawn, as after training."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.normal_(0, 0.5, generator=source)
    return update


def encode(segmenter, adapter, images):
    with adapter.attached(segmenter, images[:, :0], images):
        return segmenter.encode(torch.sigmoid(images)).features


@pytest.mark.parametrize(
    ("family", "names", "levels"),
    [
        ("sam", ["attn.qkv"], (0, 1)),
        ("sam_hq", ["attn.qkv"], (0, 1, 2)),
        ("sam2", ["attn.qkv"], (0, 1, 3, 4)),
        ("sam3_tracker", ["attention.q_proj", "attention.v_proj"], (0, 1, 2)),
        ("mobile_sam", ["attention.qkv"], (1, 2, 3)),  # the first block has no attention
    ],
)
def test_layers_that_are_adapted(family, names, levels):
    segmenter = segmenter_of(family)
    adapter = LoraAdapter(segmenter, AdapterConfig(kind="lora"), generator())
    assert adapter.levels == levels
    assert all(list(projections(segmenter.encoder_blocks[level])) == names for level in levels)
    assert len(adapter.updates) == len(names) * len(levels)


@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_lora_is_the_sum_of_the_weight_and_a_low_rank_product(family):
    segmenter, images = segmenter_of(family), normal(2, 1, 40, 57)
    adapter = LoraAdapter(segmenter, AdapterConfig(kind="lora", rank=3), generator())
    awake(adapter)
    merged, updates = copy.deepcopy(segmenter), iter(adapter.updates)
    with torch.no_grad():
        for level in adapter.levels:
            for layer in projections(merged.encoder_blocks[level]).values():
                update = next(updates)
                layer.weight += update.up.weight @ update.down.weight
        want = merged.encode(torch.sigmoid(images)).features
        plain = segmenter.encode(torch.sigmoid(images)).features
        adapted = encode(segmenter, adapter, images)
    for expected, got in zip(want, adapted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(adapted[-1], plain[-1], rtol=1e-2)


def test_start_of_a_low_rank_update():
    update = LowRank(64, 30, 8, generator())
    assert torch.count_nonzero(update.up.weight) == 0
    assert update.down.weight.abs().max() <= 64**-0.5
    assert update.down.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)


def plain_conv_lora(update, tokens, batch):
    """The formula in numpy, window by window: scipy's correlation and error function, means by reshaping."""
    weight = {name: value.detach().numpy() for name, value in update.state_dict().items()}
    low = np.einsum("nhwc,rc->nrhw", tokens.numpy(), weight["down.weight"])
    windows, rank, height, width = low.shape
    per_image = low.reshape(batch, windows // batch, rank, height, width)
    statistics = np.concatenate([per_image.mean((1, 3, 4)), np.sqrt(per_image.var((1, 3, 4)) + 1e-6)], axis=1)
    gates = special.softmax(statistics @ weight["router.image.weight"].T + weight["router.image.bias"], axis=1)
    mixed = low.copy()
    for window in range(windows):
        for index, scale in enumerate(SCALES):
            large = torch.from_numpy(low[window][None])
            if scale > 1:
                large = functional.interpolate(large, scale_factor=scale, mode="bicubic", align_corners=False)
            for out in range(rank):
                kernel, bias = weight[f"convolutions.{index}.weight"][out], weight[f"convolutions.{index}.bias"][out]
                response = bias + sum(
                    ndimage.correlate(large[0, channel].numpy(), kernel[channel], mode="constant")
                    for channel in range(rank)
                )
                response = 0.5 * response * (1 + special.erf(response / np.sqrt(2)))
                response = response.reshape(height, scale, width, scale).mean((1, 3))
                mixed[window, out] += gates[window // (windows // batch), index] * response
    return np.einsum("nrhw,or->nhwo", mixed, weight["up.weight"]), gates


@pytest.mark.parametrize(("windows", "height", "width"), [(1, 5, 4), (3, 4, 4)])
def test_conv_lora_against_plain_numpy(windows, height, width):
    update = awake(ConvLowRank(6, 7, 2, "learned", generator()))
    tokens = normal(2 * windows, height, width, 6)
    with torch.no_grad():
        delta, gates = update(tokens, 2)
    want, shares = plain_conv_lora(update, tokens, 2)
    np.testing.assert_allclose(delta, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gates.image, shares, rtol=1e-4, atol=1e-5)


def test_tokens_of_square_windows_in_one_row():
    update = awake(ConvLowRank(6, 7, 2, "learned", generator()))
    tokens = normal(4, 5, 5, 6)
    with torch.no_grad():
        grid, row = update(tokens, 2)[0], update(tokens.flatten(1, 2), 2)[0]
    assert row.shape == (4, 25, 7)
    torch.testing.assert_close(row.reshape(grid.shape), grid)


def test_the_gate_is_that_of_the_image_whatever_the_order_of_its_windows():
    update, tokens = awake(ConvLowRank(6, 7, 2, "learned", generator())), normal(6, 4, 4, 6)
    gates = update(tokens, 2)[1].image
    torch.testing.assert_close(update(tokens[[2, 0, 1, 4, 5, 3]], 2)[1].image, gates)
    assert not torch.allclose(update(tokens[[3, 1, 2, 0, 4, 5]], 2)[1].image, gates, rtol=1e-3)


def test_the_task_reaches_the_router_as_soon_as_b_is_awake():
    update, tokens = ConvLowRank(6, 7, 2, "learned", generator()), normal(4, 5, 5, 6)
    update(tokens, 2)[0].square().sum().backward()
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in update.router.parameters())
    nn.init.normal_(update.up.weight, generator=generator(5))
    update(tokens, 2)[0].square().sum().backward()
    for name, parameter in update.named_parameters():
        assert parameter.grad.abs().sum() > 1e-6, name


@pytest.mark.parametrize("gate", ["random", "uniform"])
def test_gates_that_are_not_learned(gate):
    segmenter, images = segmenter_of("sam"), normal(2, 1, 64, 64)
    adapter = LoraAdapter(segmenter, AdapterConfig(kind="conv-lora", gate=gate), generator())
    assert not [name for name, _ in adapter.named_parameters() if "router" in name]
    encode(segmenter, adapter, images)
    assert not adapter.balance_loss().requires_grad
    spread = max(gate.std(dim=1).max().item() for gates in adapter.gates.values() for gate in gates)
    assert (spread < 1e-6) == (gate == "uniform")


@pytest.mark.parametrize(("shape", "batch"), [((4, 3, 3, 6), 3), ((4, 8, 6), 2), ((4, 6), 2)])
def test_tokens_without_a_grid_or_of_other_images(shape, batch):
    with pytest.raises(ModelError, match="same images"):
        ConvLowRank(6, 7, 2, "learned", generator())(torch.zeros(shape), batch)


@pytest.mark.parametrize("kind", ["lora", "conv-lora"])
def test_blocks_without_attention(kind):
    with pytest.raises(ModelError, match="have none"):
        LoraAdapter(segmenter_of("mobile_sam"), AdapterConfig(kind=kind, levels=(0,)), generator())


def test_a_segmenter_with_other_attention():
    segmenter, images = segmenter_of("sam"), normal(1, 1, 64, 64)
    adapter = LoraAdapter(segmenter, AdapterConfig(kind="lora"), generator())
    other = copy.deepcopy(segmenter)
    other.encoder_blocks[1].attn.qkv = nn.Identity()
    with pytest.raises(ModelError, match="attention layers"), adapter.attached(other, images[:, :0], images):
        pass
    assert not any(module._forward_hooks for module in other.modules())
