"""What every kind of adapter keeps to, on a tiny network of every family of SAM, and what it costs on a ViT-B."""

import copy
import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig, make_adapter
from fewlabel.scalpel.bank import OPERATOR_NAMES, make_bank
from fewlabel.training.checkpoint import load_weights, save_weights

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

SIZES = [(64, 64), (37, 61)]


@cache
def segmenter_of(family):
    return PromptableSegmenter(tiny.BUILDERS[family]().eval().requires_grad_(False), family, f"tiny {family}")


@cache
def vit_b():
    """SAM with a ViT-B encoder on the device "meta", where weights take no memory."""
    with torch.device("meta"):
        return PromptableSegmenter(SamModel(SamConfig()), "sam", "ViT-B")


def pictures(batch=2, height=64, width=64, seed=0):
    """Standardised images with a few bright targets, whose structure exceeds a token."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 1, height, width, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for row, column in ((0.2, 0.3), (0.7, 0.6)):
        distance = (rows - row * height) ** 2 + (columns - column * width) ** 2
        images = images + 4 * torch.exp(-distance / 60)
    return images


def traces(segmenter):
    """How many hooks hang on any module of the encoder."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in segmenter.modules())


@cache
def trained(contract, family):
    """An adapter after one step on an arbitrary loss; not to be changed."""
    kind, segmenter = contract(), segmenter_of(family)
    adapter = kind.build(segmenter)
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
    kind.loss(segmenter, adapter).backward()
    optimiser.step()
    return adapter


class AdapterContract:
    """A subclass names a configuration, what the experts are, and how many the router sees."""

    config: AdapterConfig
    experts = "operators"
    gated = 0
    silent: tuple[str, ...] = ()

    @pytest.fixture(params=tiny.BUILDERS)
    def segmenter(self, request):
        return segmenter_of(request.param)

    @pytest.fixture
    def adapter(self, segmenter):
        return copy.deepcopy(trained(type(self), segmenter.family))

    def build(self, segmenter, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        config = self.config.model_copy(update=options)
        channels = make_bank(self.experts, OPERATOR_NAMES).channels
        return make_adapter(config, segmenter, self.experts, OPERATOR_NAMES, channels, generator)

    def responses(self, images):
        torch.manual_seed(0)
        return make_bank(self.experts, OPERATOR_NAMES)(images).detach()

    def encode(self, segmenter, images, adapter=None):
        unit = torch.sigmoid(images)
        if adapter is None:
            return segmenter.encode(unit).features
        with adapter.attached(segmenter, self.responses(images), images):
            return segmenter.encode(unit).features

    def loss(self, segmenter, adapter, seed=0):
        features = self.encode(segmenter, pictures(seed=seed), adapter)
        generator = torch.Generator().manual_seed(0)
        patterns = [torch.randn(feature.shape, generator=generator) for feature in features]
        task = sum((feature * pattern).mean() for feature, pattern in zip(features, patterns, strict=True))
        return task + adapter.balance_loss()

    @pytest.mark.parametrize("size", SIZES)
    def test_at_the_start_it_is_sam_bit_for_bit(self, segmenter, size):
        images, adapter = pictures(2, *size), self.build(segmenter)
        with torch.no_grad():
            before, after = self.encode(segmenter, images), self.encode(segmenter, images, adapter)
        for plain, adapted in zip(before, after, strict=True):
            assert plain.std() > 1e-5
            assert torch.equal(plain, adapted)

    def test_trained_it_changes_the_embedding_and_leaves_no_trace(self, segmenter, adapter):
        images, hooks = pictures(2, *SIZES[1]), traces(segmenter)
        state = {name: value.clone() for name, value in segmenter.state_dict().items()}
        with torch.no_grad():
            before = self.encode(segmenter, images)
            changed = self.encode(segmenter, images, adapter)
            after = self.encode(segmenter, images)
        assert not torch.equal(before[-1], changed[-1])
        assert all(torch.isfinite(feature).all() for feature in changed)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert traces(segmenter) == hooks
        assert all(torch.equal(value, state[name]) for name, value in segmenter.state_dict().items())
        assert all(parameter.grad is None for parameter in segmenter.parameters())

    def test_hooks_go_when_the_body_fails(self, segmenter):
        adapter, images, hooks = self.build(segmenter), pictures(1), traces(segmenter)
        with pytest.raises(KeyError), adapter.attached(segmenter, self.responses(images), images):
            assert traces(segmenter) > hooks
            raise KeyError
        assert traces(segmenter) == hooks

    def test_after_one_step_every_parameter_has_a_gradient(self, segmenter, adapter):
        adapter.zero_grad()
        self.loss(segmenter, adapter, seed=7).backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.requires_grad, name
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0 or any(part in name for part in self.silent), name

    def test_a_few_steps_lower_the_loss(self):
        segmenter = segmenter_of("sam")
        adapter = self.build(segmenter)
        optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
        losses = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = self.loss(segmenter, adapter)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_the_state_is_the_adapters_alone_and_reloads(self, segmenter, adapter, tmp_path):
        assert sum(value.numel() for value in adapter.state_dict().values()) < 20_000
        assert not {id(value) for value in adapter.modules()} & {id(value) for value in segmenter.modules()}
        save_weights(tmp_path / "adapter.safetensors", adapter, {})
        other = self.build(segmenter, seed=9)
        load_weights(tmp_path / "adapter.safetensors", other)
        with torch.no_grad():
            want, got = (self.encode(segmenter, pictures(1), one) for one in (adapter, other))
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))

    def test_the_generator_alone_decides_the_weights(self, segmenter):
        torch.manual_seed(1)
        one = self.build(segmenter, seed=3).state_dict()
        torch.manual_seed(2)
        two, three = self.build(segmenter, seed=3).state_dict(), self.build(segmenter, seed=4).state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(one[name], three[name]) for name in one)

    def test_images_of_a_batch_do_not_touch_each_other(self, segmenter, adapter):
        images = pictures()
        with torch.no_grad():
            both = self.encode(segmenter, images, adapter)
            alone = [self.encode(segmenter, image[None], adapter) for image in images]
        for index, feature in enumerate(both):
            torch.testing.assert_close(feature, torch.cat([single[index] for single in alone]), rtol=1e-4, atol=1e-5)

    def test_what_the_log_is_told(self, segmenter):
        adapter = self.build(segmenter)
        assert len(adapter.expert_names) == self.gated
        if adapter.expert_names:
            with pytest.raises(ModelError, match="no gates yet"):
                adapter.balance_loss()
        self.encode(segmenter, pictures(3), adapter)
        balance = adapter.balance_loss()
        assert balance.shape == ()
        assert balance.item() == pytest.approx(0, abs=1e-6)
        levels = set(adapter.levels) if adapter.expert_names else set()
        assert set(adapter.gates) == set(adapter.entropy()) == levels
        assert all(entropy == pytest.approx(1) for entropy in adapter.entropy().values())
        for gates in adapter.gates.values():
            for gate in gates:
                torch.testing.assert_close(gate, torch.full((3, self.gated), 1 / self.gated))

    def test_another_segmenter_is_refused(self, segmenter):
        adapter, images = self.build(segmenter), pictures(1)
        other = segmenter_of("sam2" if segmenter.family != "sam2" else "sam")
        with pytest.raises(ModelError, match="block_channels"), adapter.attached(other, self.responses(images), images):
            pass

    def test_images_of_another_size_are_refused(self):
        segmenter, images = segmenter_of("sam"), pictures(1)
        with (
            pytest.raises(ModelError, match="standardised images"),
            self.build(segmenter).attached(segmenter, self.responses(images), images[..., 1:]),
        ):
            pass

    def test_attached_twice(self):
        segmenter, images = segmenter_of("sam"), pictures(1)
        adapter, responses = self.build(segmenter), self.responses(images)
        with (
            adapter.attached(segmenter, responses, images),
            pytest.raises(ModelError, match="already"),
            adapter.attached(segmenter, responses, images),
        ):
            pass
        with adapter.attached(segmenter, responses, images):
            pass

    def test_levels_outside_the_encoder(self):
        with pytest.raises(ModelError, match="blocks 0 to 1"):
            self.build(segmenter_of("sam"), levels=(2,))

    @pytest.mark.parametrize("levels", ["auto", tuple(range(12))])
    def test_at_most_two_percent_of_a_vit_b(self, levels):
        encoder = sum(parameter.numel() for parameter in vit_b().model.vision_encoder.parameters())
        assert encoder == 89_670_912
        adapter = self.build(vit_b(), levels=levels, rank=AdapterConfig().rank)
        count = sum(value.numel() for value in adapter.state_dict().values())
        print(f"{type(self).__name__}: {count} weights, {100 * count / encoder:.2f} % of ViT-B's encoder")
        assert 30_000 < count <= 0.02 * encoder


class TestOperatorExperts(AdapterContract):
    config = AdapterConfig(rank=4)
    gated = 4
    silent = ("operators",)  # a ring or shift that finds nothing on so few tokens answers 0


class TestConvolutionExperts(AdapterContract):
    config = AdapterConfig(rank=4)
    experts = "convolutions"
    gated = 4


class TestLora(AdapterContract):
    config = AdapterConfig(kind="lora", rank=4)
    experts = "none"


class TestConvLora(AdapterContract):
    config = AdapterConfig(kind="conv-lora", rank=4)
    experts = "none"
    gated = 3


class TestSamAdapter(AdapterContract):
    config = AdapterConfig(kind="sam-adapter", rank=4)
    experts = "none"
