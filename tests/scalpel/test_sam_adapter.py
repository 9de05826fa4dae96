"""Prompts from the high-passed image: numpy's transform as the oracle, frames, sharing, what is refused."""

import copy
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig
from fewlabel.scalpel.sam_adapter import PromptAdapter, high_pass, input_channels

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)


@cache
def segmenter_of(family):
    return PromptableSegmenter(tiny.BUILDERS[family]().eval().requires_grad_(False), family, f"tiny {family}")


def build(segmenter, **options):
    config = AdapterConfig(kind="sam-adapter", **options)
    return PromptAdapter(segmenter, config, torch.Generator().manual_seed(0))


def encode(segmenter, adapter, images):
    with adapter.attached(segmenter, images[:, :0], images):
        return segmenter.encode(torch.sigmoid(images)).features


class TestHighPass:
    @settings(deadline=None, max_examples=40)
    @given(height=st.integers(1, 12), width=st.integers(1, 12), rate=st.floats(0, 1), seed=st.integers(0, 99))
    def test_against_a_sum_over_all_frequencies(self, height, width, rate, seed):
        image = np.random.default_rng(seed).normal(size=(height, width))
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        kept = np.zeros((height, width), dtype=complex)
        for y in range(height):
            for x in range(width):
                across, down = min(x, width - x) / width, min(y, height - y) / height
                if max(across, down) >= np.float32(0.5 * rate**0.5):
                    wave = np.exp(2j * np.pi * (y * rows / height + x * columns / width))
                    kept += (image * wave.conj()).sum() * wave / image.size
        assert np.abs(kept.imag).max() < 1e-9
        got = high_pass(torch.from_numpy(image)[None, None], rate)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got[0, 0], np.abs(kept.real), atol=1e-5)

    def test_of_a_square_image_the_central_square_goes(self):
        delta = torch.zeros(1, 1, 64, 64)
        delta[..., 0, 0] = 64 * 64  # all frequencies alike
        share = 1 - high_pass(delta)[..., 0, 0].item() / 64**2
        assert share == pytest.approx(0.25, abs=0.02)

    @pytest.mark.parametrize(("cycles", "kept"), [(0, 0.0), (3, 0.0), (15, 0.0), (16, 1.0), (25, 1.0), (32, 1.0)])
    def test_waves(self, cycles, kept):
        wave = torch.cos(2 * torch.pi * cycles * torch.arange(64) / 64).expand(1, 1, 48, 64)
        torch.testing.assert_close(high_pass(wave), kept * wave.abs(), rtol=0, atol=1e-5)


class TestPrompts:
    @pytest.mark.parametrize("family", tiny.BUILDERS)
    def test_channels_that_blocks_take(self, family):
        segmenter, seen = segmenter_of(family), []
        handles = [
            block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].shape[-1]))
            for block in segmenter.encoder_blocks
        ]
        segmenter.encode(torch.rand(1, 1, 64, 64))
        for handle in handles:
            handle.remove()
        assert [input_channels(block) for block in segmenter.encoder_blocks] == seen

    def test_up_is_shared_by_the_blocks_of_a_width(self):
        plain, hierarchy = build(segmenter_of("sam_hq")), build(segmenter_of("sam2"))
        assert {width: len(prompter.tune) for width, prompter in plain.prompters.items()} == {"16": 3}
        assert {width: len(prompter.tune) for width, prompter in hierarchy.prompters.items()} == {"8": 2, "24": 2}

    @pytest.mark.parametrize("family", ["sam", "sam2"])
    def test_a_target_prompts_the_token_that_sees_it(self, family):
        """With the tokens' part silent, an upright image's target is seen in its own place of the frame."""
        segmenter = segmenter_of(family)
        adapter = build(segmenter, levels=(0,))
        prompter = next(iter(adapter.prompters.values()))
        images = torch.zeros(1, 1, 64, 32)
        images[0, 0, 62, 2] = 50
        edges = high_pass(images)
        assert divmod(int(edges.argmax()), 32) == (62, 2)
        with torch.no_grad():
            nn.init.zeros_(prompter.embed.weight)
            for layer in (prompter.cells, prompter.tune[0], prompter.up):
                nn.init.ones_(layer.weight)  # the prompt grows with the sum of what a cell sees
            tokens = []
            handle = segmenter.encoder_blocks[0].register_forward_pre_hook(
                lambda _block, inputs: tokens.append(inputs[0])
            )
            with adapter.attached(segmenter, images[:, :0], images):
                inside = segmenter.encoder_blocks[0].register_forward_pre_hook(
                    lambda _block, inputs: tokens.append(inputs[0])
                )
                segmenter.encode(torch.sigmoid(images))
                inside.remove()
            handle.remove()
        moved = (tokens[1] - tokens[0]).abs().sum(-1)[0]
        side = moved.shape[0]
        frame = 64 if family == "sam" else 32
        assert divmod(int(moved.argmax()), side) == (int(62.5 / 64 * side), int(2.5 / frame * side))
        if family == "sam":
            assert torch.count_nonzero(moved[:, side // 2 :]) == 0, "the padding beside the image has no edges"

    def test_a_segmenter_whose_blocks_take_other_channels(self):
        segmenter, images = segmenter_of("sam2"), torch.zeros(1, 1, 64, 64)
        other = copy.deepcopy(segmenter)
        other.encoder_blocks[0].layer_norm1 = nn.LayerNorm(5)
        with pytest.raises(ModelError, match="take"), build(segmenter).attached(other, images[:, :0], images):
            pass

    def test_other_images(self):
        segmenter, images = segmenter_of("sam"), torch.zeros(3, 1, 64, 64)
        with (
            pytest.raises(ModelError, match="same images"),
            build(segmenter).attached(segmenter, images[:, :0], images),
        ):
            segmenter.encode(torch.rand(2, 1, 64, 64))

    def test_a_block_that_does_not_tell_its_channels(self):
        with pytest.raises(ModelError, match="Identity"):
            input_channels(nn.Identity())

    def test_flat_images_are_harmless(self):
        segmenter = segmenter_of("sam")
        adapter = build(segmenter)
        with torch.no_grad():
            for prompter in adapter.prompters.values():
                nn.init.ones_(prompter.up.weight)
        sum(feature.sum() for feature in encode(segmenter, adapter, torch.zeros(1, 1, 64, 64))).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in adapter.parameters())
