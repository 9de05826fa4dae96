"""The mixture of experts on tiny random SAM and SAM 2 networks: levels, frames, gates, gradients, experts.

What it shares with the other kinds of adapter is in `test_adapter_contract.py`.
"""

import pytest
import torch
from torch import nn
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import (
    AdapterConfig,
    HierarchicalAdapter,
    TokenExperts,
    choose_levels,
    make_adapter,
    prior_tokens,
)
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank
from fewlabel.scalpel.experts import token_experts

VIT_B = [768] * 12


def tiny_sam():
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [2],
        "mlp_dim": 48,
        "output_channels": 16,
        "num_pos_feats": 8,
        "initializer_range": 0.3,  # the default of 1e-10 would leave nothing to compare
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


def tiny_sam2():
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


@pytest.fixture(scope="module", params=["sam", "sam2"])
def segmenter(request):
    torch.manual_seed(0)
    model = tiny_sam() if request.param == "sam" else tiny_sam2()
    return PromptableSegmenter(model.eval().requires_grad_(False), request.param, f"tiny {request.param}")


def images(batch=2, height=64, width=64, seed=0):
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))


def build(block_channels, seed=0, experts="operators", operators=OPERATOR_NAMES, **options):
    return HierarchicalAdapter(
        block_channels,
        AdapterConfig(**options),
        experts,
        operators,
        len(operators),
        torch.Generator().manual_seed(seed),
    )


def wake(adapter, seed=1):
    """Give Up and the routers weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in adapter.adapters:
            level.up.weight.normal_(0, 0.3, generator=generator)
        for router in adapter.routers:
            for parameter in router.parameters():
                parameter.normal_(0, 0.5, generator=generator)
    return adapter


def features(segmenter, pictures, adapter=None, bank=None):
    if adapter is None:
        return segmenter.encode(pictures).features
    standardised = 4 * pictures - 2
    responses = (bank or OperatorBank())(standardised)
    with adapter.attached(segmenter, responses, standardised):
        return segmenter.encode(pictures).features


class TestLevels:
    @pytest.mark.parametrize(
        ("channels", "levels"),
        [
            (VIT_B, (2, 5, 8, 11)),
            ([1280] * 32, (7, 15, 23, 31)),
            ([96, 192, 192] + [384] * 7 + [768] * 2, (0, 2, 9, 11)),
            ([32], (0,)),
            ([32] * 2, (0, 1)),
            ([32] * 5, (0, 1, 3, 4)),
            ([8, 16], (0, 1)),
        ],
    )
    def test_choice(self, channels, levels):
        assert choose_levels(channels) == levels
        assert build(channels).levels == levels

    def test_named_levels(self):
        assert build(VIT_B, levels=(11, 3)).levels == (3, 11)

    @pytest.mark.parametrize("levels", [(12,), (-1,), ()])
    def test_levels_outside_the_encoder(self, levels):
        with pytest.raises(ModelError, match="blocks 0 to 11"):
            build(VIT_B, levels=levels)

    def test_no_blocks(self):
        with pytest.raises(ModelError, match="without blocks"):
            build([])

    def test_rank_is_capped_by_half_the_channels(self):
        assert [level.down.out_features for level in build([8, 16, 128]).adapters] == [4, 8, 32]

    def test_shared_router_without_depth(self):
        shared, own = build([8, 16, 128], by_depth=False), build([8, 16, 128])
        assert (len(shared.routers), len(own.routers)) == (1, 3)
        assert [level.down.out_features for level in shared.adapters] == [4, 4, 4]


class TestIdentityAtTheStart:
    @pytest.mark.parametrize(
        "options", [{"by_depth": False}, {"two_level": False}, {"gate": "random"}, {"gate": "uniform"}]
    )
    def test_bit_for_bit(self, segmenter, options):
        pictures = images(2, 40, 57)
        adapter = build(segmenter.block_channels, **options)
        with torch.no_grad():
            before, after = features(segmenter, pictures), features(segmenter, pictures, adapter)
        for plain, adapted in zip(before, after, strict=True):
            assert plain.std() > 1e-5
            assert torch.equal(plain, adapted)
        assert set(adapter.gates) == set(adapter.levels)


class TestOutputs:
    def test_gates_balance_and_entropy(self, segmenter):
        adapter = build(segmenter.block_channels, balance=0.5)
        features(segmenter, images(3), adapter)
        assert adapter.balance_loss().item() == pytest.approx(0, abs=1e-6)
        assert all(entropy == pytest.approx(1) for entropy in adapter.entropy().values())
        wake(adapter)
        features(segmenter, images(3), adapter)
        for image_gate, token_gate in adapter.gates.values():
            assert image_gate.shape == token_gate.shape == (3, len(OPERATOR_NAMES))
            torch.testing.assert_close(image_gate.sum(1), torch.ones(3))
            torch.testing.assert_close(token_gate.sum(1), torch.ones(3))
        assert all(0 <= entropy < 1 for entropy in adapter.entropy().values())
        mass = torch.stack([gate.mean(0) for _, gate in adapter.gates.values()])
        want = 0.5 * (mass.var(1, unbiased=False) / mass.mean(1) ** 2).mean()
        torch.testing.assert_close(adapter.balance_loss().detach(), want)

    @pytest.mark.parametrize("gate", ["random", "uniform"])
    def test_gates_that_are_not_learned(self, segmenter, gate):
        adapter, bank = build(segmenter.block_channels, gate=gate), OperatorBank()
        with torch.no_grad():
            for level in adapter.adapters:
                level.up.weight.fill_(0.1)
        assert not [name for name, _ in adapter.named_parameters() if "router" in name]
        outputs = features(segmenter, images(), adapter, bank)
        (sum(output.square().mean() for output in outputs) + adapter.balance_loss()).backward()
        assert not adapter.balance_loss().requires_grad
        assert all(parameter.grad is not None for parameter in adapter.parameters())
        flat = all(entropy == pytest.approx(1, abs=1e-4) for entropy in adapter.entropy().values())
        assert flat == (gate == "uniform")

    def test_a_random_gate_belongs_to_the_state_and_to_the_seed(self):
        one, two, three = (build(VIT_B, gate="random", seed=seed) for seed in (0, 0, 1))
        keys = [key for key in one.state_dict() if key.startswith("routers.")]
        assert len(keys) == 3 * len(one.levels)
        assert all(torch.equal(one.state_dict()[key], two.state_dict()[key]) for key in keys)
        assert not torch.equal(one.routers[0].image.weight, three.routers[0].image.weight)

    def test_names_in_saved_weights(self):
        """Teachers that were saved before go on loading."""
        level = ["norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias"]
        level += ["prior.weight", "prior.bias", "experts.gain"]
        scalars = ["0.size_logits", "0.raw_beta", "1.shift_logits", "2.raw_sigma", "3.raw_conductance"]
        level += [f"experts.operators.{scalar}" for scalar in scalars]
        want = {f"adapters.{number}.{name}" for number in range(4) for name in level}
        want |= {
            f"routers.{number}.{name}" for number in range(4) for name in ("image.weight", "image.bias", "token.weight")
        }
        assert set(build(VIT_B).state_dict()) == want


class TestLearning:
    def test_every_parameter_gets_a_finite_gradient_once_up_is_awake(self, segmenter):
        adapter, bank = wake(build(segmenter.block_channels)), OperatorBank()
        outputs = features(segmenter, images(), adapter, bank)
        (sum(output.square().mean() for output in outputs) + adapter.balance_loss()).backward()
        for name, parameter in [*adapter.named_parameters(), *bank.named_parameters()]:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        for name, parameter in adapter.named_parameters():
            assert "operators" in name or parameter.grad.abs().sum() > 0, name
        assert all(parameter.grad is None for parameter in segmenter.parameters())

    def test_constant_image_is_harmless(self, segmenter):
        adapter = wake(build(segmenter.block_channels))
        outputs = features(segmenter, torch.full((1, 1, 64, 64), 0.5), adapter)
        sum(output.sum() for output in outputs).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in adapter.parameters())


class TestFrames:
    def test_square_images_agree_in_both_frames(self):
        responses = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(prior_tokens(responses, (8, 8), True), prior_tokens(responses, (8, 8), False))

    @pytest.mark.parametrize(("height", "width"), [(64, 32), (32, 64), (48, 64), (64, 64)])
    @pytest.mark.parametrize("keep_aspect", [True, False])
    def test_peak_lands_on_the_token_that_sees_it(self, height, width, keep_aspect):
        side = 64
        row, column = height - 5, width - 3
        responses = torch.zeros(1, 4, height, width)
        responses[0, 2, row, column] = 1
        tokens = prior_tokens(responses, (8, 8), keep_aspect)
        assert tokens.shape == (1, 8, 8, 8)
        scale = (side / max(height, width),) * 2 if keep_aspect else (side / height, side / width)
        want = int((row + 0.5) * scale[0] // 8), int((column + 0.5) * scale[1] // 8)
        for channel in (2, 6):  # mean and maximum of operator 2
            assert divmod(int(tokens[0, channel].argmax()), 8) == want
        assert tokens[0, 6].max() == 1
        assert torch.count_nonzero(tokens[0, [0, 1, 3, 4, 5, 7]]) == 0

    def test_tile_smaller_than_the_grid(self):
        assert prior_tokens(torch.ones(1, 4, 3, 5), (8, 8), True).shape == (1, 8, 8, 8)

    def test_prior_reaches_the_token_of_the_frame(self, segmenter):
        """With only the prior alive, an upright image's target moves the tokens of its own place in the frame."""
        adapter = build(segmenter.block_channels, levels=(0,))
        level = adapter.adapters[0]
        with torch.no_grad():
            level.up.weight.fill_(1.0)
            level.experts.gain.zero_()
        pictures = images(1, 64, 32)
        responses = torch.zeros(1, 4, 64, 32)
        responses[0, 0, 60, 2] = 5
        tokens = []
        for prior in (torch.zeros_like(responses), responses):
            with adapter.attached(segmenter, prior, pictures):
                handle = segmenter.encoder_blocks[0].register_forward_hook(lambda _m, _i, out: tokens.append(out))
                segmenter.encode(pictures)
                handle.remove()
        moved = (tokens[1] - tokens[0]).abs().sum(-1)[0]
        side = moved.shape[0]
        rows, columns = moved.nonzero(as_tuple=True)
        assert (rows == int(60.5 / 64 * side)).all()
        width = 64 if segmenter.family == "sam" else 32
        assert set(columns.tolist()) == {int(2.5 / width * side)}


class TestBorders:
    def test_wrong_number_of_responses(self, segmenter):
        adapter = build(segmenter.block_channels)
        with (
            pytest.raises(ModelError, match="expects \\(B, 4, H, W\\)"),
            adapter.attached(segmenter, torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)),
        ):
            pass
        assert not any(block._forward_hooks for block in segmenter.encoder_blocks)

    def test_responses_of_other_images(self, segmenter):
        adapter = build(segmenter.block_channels)
        with (
            pytest.raises(ModelError, match="same images"),
            adapter.attached(segmenter, torch.zeros(3, 4, 64, 64), torch.zeros(3, 1, 64, 64)),
        ):
            segmenter.encode(images(2))

    def test_blocks_that_return_tuples(self, segmenter):
        """Some encoders hand on (tokens, attention); only the tokens are adapted."""

        class Tupled(nn.Module):
            def forward(self, tokens):
                return tokens, "attention"

        adapter = wake(build([16], levels=(0,)))
        tokens = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
        results = []
        for block in (nn.Identity(), Tupled()):
            handle = block.register_forward_hook(adapter._hook(0, torch.zeros(1, 4, 64, 64), False))
            results.append(block(tokens))
            handle.remove()
        assert isinstance(results[1], tuple)
        assert results[1][1] == "attention"
        assert torch.equal(results[0], results[1][0])
        assert not torch.equal(results[0], tokens)


class TestExperts:
    @pytest.mark.parametrize("experts", ["operators", "convolutions"])
    def test_outputs_are_of_one_scale_and_zero_on_flat_tokens(self, experts):
        torch.manual_seed(0)
        mixture = TokenExperts(token_experts(experts, OPERATOR_NAMES, 6), 6)
        tokens = torch.randn(2, 6, 24, 24, generator=torch.Generator().manual_seed(0))
        for scale in (1.0, 30.0):
            powers = [output.square().mean().sqrt().item() for output in mixture(scale * tokens)]
            assert len(powers) == 4
            assert max(powers) < 2
            assert min(powers) > 0.1
        flat = 0.0 if experts == "convolutions" else 2.5
        assert all(torch.count_nonzero(output) == 0 for output in mixture(torch.full((1, 6, 9, 9), flat)))

    @pytest.mark.parametrize("experts", ["operators", "convolutions"])
    def test_fewer_experts(self, segmenter, experts):
        names = ("blob_response", "ring_top_hat", "diffusion_residual")
        adapter = wake(build(segmenter.block_channels, experts=experts, operators=names))
        outputs = features(segmenter, images(), adapter, OperatorBank(names))
        assert all(torch.isfinite(output).all() for output in outputs)
        assert all(gate.shape == (2, 3) for gates in adapter.gates.values() for gate in gates)
        assert len(adapter.expert_names) == 3
        assert (adapter.expert_names == names) == (experts == "operators")

    def test_a_single_expert(self, segmenter):
        adapter = build(segmenter.block_channels, operators=("blob_response",))
        features(segmenter, images(), adapter, OperatorBank(("blob_response",)))
        assert adapter.balance_loss().item() == 0
        assert set(adapter.entropy().values()) == {1.0}

    def test_no_experts(self, segmenter):
        generator = torch.Generator().manual_seed(0)
        with pytest.raises(ModelError, match="'none'"):
            make_adapter(AdapterConfig(), segmenter, "none", OPERATOR_NAMES, 0, generator)
