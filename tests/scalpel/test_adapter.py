"""The adapter on tiny random SAM and SAM 2 networks: identity at the start, levels, frames, gates, gradients."""

import copy

import pytest
import torch
from torch import nn
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig, HierarchicalAdapter, TokenExperts, choose_levels, prior_tokens
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank

VIT_B = [768] * 12
VIT_B_PARAMETERS = 89_670_912  # image encoder of SAM ViT-B


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


def build(channels, seed=0, **options):
    return HierarchicalAdapter(channels, AdapterConfig(**options), torch.Generator().manual_seed(seed))


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
    responses = (bank or OperatorBank())(4 * pictures - 2)
    with adapter.attached(segmenter, responses):
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

    @pytest.mark.parametrize("levels", ["auto", tuple(range(12))])
    def test_parameters_stay_below_two_percent_of_vit_b(self, levels):
        count = sum(parameter.numel() for parameter in build(VIT_B, levels=levels).parameters())
        assert 100_000 < count < 0.02 * VIT_B_PARAMETERS


class TestIdentityAtTheStart:
    @pytest.mark.parametrize("options", [{}, {"by_depth": False}, {"two_level": False}])
    @pytest.mark.parametrize("size", [(64, 64), (40, 57)])
    def test_bit_for_bit(self, segmenter, options, size):
        pictures = images(2, *size)
        adapter = build(segmenter.block_channels, **options)
        with torch.no_grad():
            before, after = features(segmenter, pictures), features(segmenter, pictures, adapter)
        for plain, adapted in zip(before, after, strict=True):
            assert plain.std() > 1e-5
            assert torch.equal(plain, adapted)
        assert set(adapter.gates) == set(adapter.levels)

    def test_awake_adapter_changes_the_embedding_and_leaves_no_trace(self, segmenter):
        pictures = images()
        before = features(segmenter, pictures)
        adapter = wake(build(segmenter.block_channels))
        changed = features(segmenter, pictures, adapter)
        assert all(not torch.equal(a, b) for a, b in zip(before, changed, strict=True))
        after = features(segmenter, pictures)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not any(block._forward_hooks for block in segmenter.encoder_blocks)

    def test_hooks_go_when_the_body_fails(self, segmenter):
        adapter = build(segmenter.block_channels)
        with pytest.raises(KeyError), adapter.attached(segmenter, torch.zeros(1, 4, 8, 8)):
            raise KeyError
        assert not any(block._forward_hooks for block in segmenter.encoder_blocks)
        features(segmenter, images(), adapter)

    def test_same_seed_same_adapter(self, segmenter):
        one, two = build(segmenter.block_channels), build(segmenter.block_channels)
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key])


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

    def test_questions_before_a_forward_pass(self):
        adapter = build([8, 16])
        with pytest.raises(ModelError, match="no gates yet"):
            adapter.balance_loss()

    def test_state_dict_holds_the_adapter_alone_and_reloads(self, segmenter):
        adapter = wake(build(segmenter.block_channels))
        want = features(segmenter, images(), adapter)
        state = adapter.state_dict()
        assert all(key.startswith(("adapters.", "routers.")) for key in state)
        assert len(state) == len(list(adapter.parameters()))
        other = build(segmenter.block_channels, seed=9)
        other.load_state_dict(state)
        for a, b in zip(want, features(segmenter, images(), other), strict=True):
            assert torch.equal(a, b)

    def test_copies_after_a_forward_pass(self, segmenter):
        adapter = wake(build(segmenter.block_channels))
        want = features(segmenter, images(), adapter)
        assert adapter.balance_loss().requires_grad
        twin = copy.deepcopy(adapter)
        for a, b in zip(want, features(segmenter, images(), twin), strict=True):
            assert torch.equal(a, b)


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

    def test_a_few_steps_reduce_a_loss(self, segmenter):
        """An awake adapter is the goal of a fresh one."""
        adapter, pictures = build(segmenter.block_channels), images()
        target = features(segmenter, pictures, wake(build(segmenter.block_channels, seed=3)))[-1].detach()
        optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
        losses = []
        for _ in range(5):
            loss = (features(segmenter, pictures, adapter)[-1] - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]

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
            with adapter.attached(segmenter, prior):
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
    def test_other_segmenter(self, segmenter):
        with (
            pytest.raises(ModelError, match="block_channels"),
            build([8, 16]).attached(segmenter, torch.zeros(1, 4, 8, 8)),
        ):
            pass

    def test_wrong_number_of_responses(self, segmenter):
        adapter = build(segmenter.block_channels)
        with (
            pytest.raises(ModelError, match="OperatorBank"),
            adapter.attached(segmenter, torch.zeros(1, 3, 8, 8)),
        ):
            pass

    def test_responses_of_other_images(self, segmenter):
        adapter = build(segmenter.block_channels)
        with (
            pytest.raises(ModelError, match="same images"),
            adapter.attached(segmenter, torch.zeros(3, 4, 64, 64)),
        ):
            segmenter.encode(images(2))

    def test_attached_twice(self, segmenter):
        adapter, responses = build(segmenter.block_channels), torch.zeros(1, 4, 8, 8)
        with (
            adapter.attached(segmenter, responses),
            pytest.raises(ModelError, match="already"),
            adapter.attached(segmenter, responses),
        ):
            pass
        with adapter.attached(segmenter, responses):
            pass

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
    def test_outputs_are_of_one_scale_and_zero_on_flat_tokens(self):
        experts = TokenExperts(6)
        tokens = torch.randn(2, 6, 24, 24, generator=torch.Generator().manual_seed(0))
        for scale in (1.0, 30.0):
            powers = [output.square().mean().sqrt().item() for output in experts(scale * tokens)]
            assert max(powers) < 2
            assert min(powers) > 0.1
        assert all(torch.count_nonzero(output) == 0 for output in experts(torch.full((1, 6, 9, 9), 2.5)))
