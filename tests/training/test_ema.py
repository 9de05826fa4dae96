import copy

import pytest
import torch
from torch import nn

from fewlabel.training.ema import BurnInEma, Ema, trainable


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    return model


def drift(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator))


def test_average_agrees_with_a_loop_in_double_precision():
    model = make()
    ema = Ema(model, 0.9)
    slow = {name: value.detach().double().clone() for name, value in trainable(model).items()}
    for n in range(1, 120):
        drift(model, n)
        ema.update(model)
        rate = min(0.9, (1 + n) / (10 + n))
        slow = {name: rate * slow[name] + (1 - rate) * value.double() for name, value in trainable(model).items()}
    assert ema.updates == 119
    for name, value in slow.items():
        torch.testing.assert_close(ema.weights[name].double(), value, rtol=0, atol=1e-5)


def test_warm_up_forgets_the_start():
    model = make()
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(1000.0)
    ema = Ema(model, 0.999)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    for _ in range(100):
        ema.update(model)
    # With a constant rate of 0.999, 905 would be left of the start.
    assert all(value.abs().max() < 1e-2 for value in ema.weights.values())


def test_frozen_parameters_are_not_copied_and_zero_decay_follows():
    model = make()
    ema = Ema(model, 0.0)
    assert set(ema.weights) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    drift(model, 1)
    ema.update(model)
    assert all(torch.equal(ema.weights[name], value) for name, value in trainable(model).items())


def test_applied_swaps_and_restores_even_after_an_error():
    model = make()
    ema = Ema(model, 0.5)
    drift(model, 1)
    ema.update(model)
    drift(model, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert all(torch.equal(ema.weights[name], value) for name, value in trainable(model).items())
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_decay_of_one_is_refused():
    with pytest.raises(ValueError, match="1.0"):
        Ema(make(), 1.0)


def test_burn_in_copies_bit_for_bit_and_then_closes_in_by_the_decay():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    ema = BurnInEma(model, 0.9, burn_in=3)
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 4))
        ema.update(model)
        assert torch.equal(ema.weights["weight"], model.weight)
    with torch.no_grad():
        model.weight.add_(1.0)
    gap = (ema.weights["weight"] - model.weight.detach()).norm()
    for _ in range(4):
        ema.update(model)
        now = (ema.weights["weight"] - model.weight.detach()).norm()
        assert float(now / gap) == pytest.approx(0.9, rel=1e-5)
        gap = now
    assert not any(value.requires_grad for value in ema.weights.values())


def test_without_burn_in_the_first_update_moves_already():
    model = nn.Linear(2, 2)
    ema = BurnInEma(model, 0.5, burn_in=0)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    assert torch.allclose(ema.weights["weight"], before + 0.5)
