"""Experts on token grids: operators at token sizes, convolutions as their control."""

import io

import numpy as np
import onnxruntime
import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.deploy.export import AXES, OPSET
from fewlabel.scalpel.bank import OPERATOR_NAMES
from fewlabel.scalpel.experts import token_experts

KINDS = ("operators", "convolutions")
CHANNELS = 6


def tokens(*grid, batch=2, seed=0):
    return torch.randn(batch, CHANNELS, *grid, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=KINDS)
def experts(request):
    torch.manual_seed(0)
    return token_experts(request.param, OPERATOR_NAMES, CHANNELS)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (16, 16), (9, 14)])
def test_keep_the_shape_of_any_grid(experts, grid):
    assert len(experts) == 4
    for expert in experts:
        response = expert(tokens(*grid))
        assert response.shape == (2, CHANNELS, *grid)
        assert torch.isfinite(response).all()


def test_empty_tokens_give_zero_and_finite_gradients(experts):
    for expert in experts:
        empty = torch.zeros(1, CHANNELS, 7, 5, requires_grad=True)
        response = expert(empty)
        assert torch.count_nonzero(response) == 0
        response.sum().backward()
        assert torch.isfinite(empty.grad).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in expert.parameters())


def test_every_weight_learns(experts):
    for expert in experts:
        spots = tokens(12, 12)
        spots[..., 6, 6] += 8
        expert(spots).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in expert.parameters())


def test_are_local_and_do_not_wrap_around(experts):
    spot = torch.zeros(1, CHANNELS, 16, 16)
    spot[..., 8, 1] = 5.0
    for expert in experts:
        response = expert(spot)
        assert response[..., :3].abs().max() > 0
        assert torch.count_nonzero(response[..., 9:]) == 0


def test_order_and_weights_follow_the_names():
    names = ("blob_response", "ring_top_hat")
    part, whole = token_experts("operators", names, CHANNELS), token_experts("operators", OPERATOR_NAMES, CHANNELS)
    grid = tokens(8, 8)
    for name, expert in zip(names, part, strict=True):
        assert torch.equal(expert(grid), whole[OPERATOR_NAMES.index(name)](grid))
    assert len(token_experts("convolutions", names, CHANNELS)) == 2
    assert len(token_experts("none", names, CHANNELS)) == 0


def test_operators_see_each_channel_alone_at_token_sizes():
    experts = token_experts("operators", OPERATOR_NAMES, CHANNELS)
    assert sum(parameter.numel() for parameter in experts.parameters()) == 10
    assert experts[0].radius.item() == pytest.approx(2.0)
    grid = tokens(9, 9)
    for expert in experts:
        torch.testing.assert_close(expert(grid)[:, 2:3], expert(grid[:, 2:3]))


def test_convolutions_start_from_the_global_generator():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(token_experts("convolutions", OPERATOR_NAMES, CHANNELS).state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_convolution_against_loops():
    """Depthwise 3x3 with replicated border, ReLU, then a mix of the channels."""
    torch.manual_seed(3)
    (expert,) = token_experts("convolutions", OPERATOR_NAMES[:1], CHANNELS)
    grid = tokens(3, 4, batch=1)
    depthwise, pointwise = expert.depthwise.weight.detach()[:, 0], expert.pointwise.weight.detach()[:, :, 0, 0]
    want = np.zeros((CHANNELS, 3, 4))
    for row, column in np.ndindex(3, 4):
        seen = np.zeros(CHANNELS)
        for channel in range(CHANNELS):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    token = grid[0, channel, min(max(row + i, 0), 2), min(max(column + j, 0), 3)]
                    seen[channel] += float(depthwise[channel, i + 1, j + 1] * token)
        want[:, row, column] = pointwise.numpy() @ np.maximum(seen, 0)
    np.testing.assert_allclose(expert(grid)[0].detach(), want, atol=1e-5)


@pytest.mark.parametrize("names", [(), ("blob",), ("ring_top_hat", "ring_top_hat")])
@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_bad_names_are_refused(kind, names):
    with pytest.raises(ModelError, match="one or more of ring_top_hat"):
        token_experts(kind, names, CHANNELS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_export_with_dynamic_axes(kind):
    """One file for all experts of a level, run by ONNX Runtime on grids down to a single token."""
    torch.manual_seed(0)
    experts = token_experts(kind, OPERATOR_NAMES, CHANNELS).requires_grad_(False)

    class Level(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = experts

        def forward(self, grid):
            return torch.cat([expert(grid) for expert in self.experts], dim=1)

    level, buffer = Level(), io.BytesIO()
    torch.onnx.export(
        level,
        (tokens(7, 9),),
        buffer,
        dynamo=False,
        opset_version=OPSET,
        input_names=["tokens"],
        output_names=["responses"],
        dynamic_axes=dict.fromkeys(("tokens", "responses"), AXES),
    )
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 1, 1), (2, 1, 3), (1, 2, 5), (1, 33, 17)):
        grid = tokens(height, width, batch=batch, seed=width)
        (got,) = session.run(None, {"tokens": grid.numpy()})
        np.testing.assert_allclose(got, level(grid).numpy(), atol=1e-4)
