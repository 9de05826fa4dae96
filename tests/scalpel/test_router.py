"""Gates: sums, balance and entropy against plain numpy, and the gradient that a router needs."""

import numpy as np
import pytest
import torch

from fewlabel.scalpel.router import Router, gate_entropy, importance_cv2


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(router, seed=1):
    """The router with random weights, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=generator)
    return router


@pytest.mark.parametrize("two_level", [True, False])
def test_starts_uniform_and_always_sums_to_one(two_level):
    router = Router(6, two_level=two_level)
    gates = router(tokens(2, 6, 5, 7))
    assert gates.weights.shape == (2, 4, 5, 7)
    assert gates.image.shape == (2, 4)
    torch.testing.assert_close(gates.weights, torch.full((2, 4, 5, 7), 0.25))
    gates = shaken(router)(tokens(2, 6, 5, 7))
    torch.testing.assert_close(gates.weights.sum(1), torch.ones(2, 5, 7))
    torch.testing.assert_close(gates.image.sum(1), torch.ones(2))


def test_gate_is_the_renormalised_product_of_both_levels():
    router, maps = shaken(Router(3)), tokens(1, 3, 4, 4)
    gates = router(maps)
    token_gate = torch.softmax(router.token(maps), dim=1)
    product = gates.image[:, :, None, None] * token_gate
    torch.testing.assert_close(gates.weights, product / product.sum(1, keepdim=True))


def test_one_level_gate_is_the_same_at_every_token():
    gates = shaken(Router(3, two_level=False))(tokens(2, 3, 4, 4))
    torch.testing.assert_close(gates.weights, gates.image[:, :, None, None].expand(2, 4, 4, 4))


def test_importance_against_numpy():
    weights = torch.softmax(tokens(3, 4, 5, 6), dim=1)
    mass = weights.numpy().sum(axis=(0, 2, 3))
    assert importance_cv2(weights).item() == pytest.approx(np.var(mass) / np.mean(mass) ** 2, rel=1e-5)


def test_importance_limits():
    assert importance_cv2(torch.full((2, 4, 3, 3), 0.25)).item() == 0
    collapsed = torch.zeros(2, 4, 3, 3)
    collapsed[:, 1] = 1
    assert importance_cv2(collapsed).item() == pytest.approx(3)


def test_entropy_limits_and_numpy():
    assert gate_entropy(torch.full((2, 4, 3, 3), 0.25)).item() == pytest.approx(1)
    single = torch.zeros(1, 4, 2, 2)
    single[:, 2] = 1
    assert gate_entropy(single).item() == pytest.approx(0, abs=1e-6)
    weights = torch.softmax(tokens(2, 4, 3, 5), dim=1)
    numbers = weights.numpy()
    want = -(numbers * np.log(numbers)).sum(1).mean() / np.log(4)
    assert gate_entropy(weights).item() == pytest.approx(want, rel=1e-5)


def test_task_loss_reaches_every_router_weight_from_the_start():
    router = Router(5)
    maps = tokens(2, 5, 4, 4)
    experts = tokens(2, 4, 4, 4, seed=3)
    (router(maps).weights * experts).sum(1).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in router.parameters())


def test_balance_loss_moves_a_collapsed_router_back():
    router = Router(5)
    with torch.no_grad():
        router.image.bias[0] = 3.0
    before = importance_cv2(router(tokens(2, 5, 4, 4)).weights)
    optimiser = torch.optim.SGD(router.parameters(), lr=0.3)
    for _ in range(30):
        optimiser.zero_grad()
        importance_cv2(router(tokens(2, 5, 4, 4)).weights).backward()
        optimiser.step()
    assert importance_cv2(router(tokens(2, 5, 4, 4)).weights) < 0.2 * before


def test_constant_tokens_have_finite_gradients():
    router = shaken(Router(3))
    maps = torch.zeros(1, 3, 1, 1, requires_grad=True)
    router(maps).weights[:, 0].sum().backward()
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("two_level", [True, False])
def test_a_random_gate_is_drawn_once_and_never_trains(two_level):
    router, same, other = (
        Router(6, two_level=two_level, gate="random", generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert not list(router.parameters())
    assert set(router.state_dict()) == set(Router(6, two_level=two_level).state_dict())
    maps = tokens(2, 6, 16, 16).requires_grad_()
    gates = router(maps)
    assert not gates.weights.requires_grad
    assert torch.equal(gates.weights, same(maps).weights)
    assert not torch.allclose(gates.weights, other(maps).weights)
    other.load_state_dict(router.state_dict())
    assert torch.equal(gates.weights, other(maps).weights)
    torch.testing.assert_close(gates.weights.sum(1), torch.ones(2, 16, 16))
    assert gate_entropy(gates.weights) < 0.99


def test_logits_of_a_random_gate_have_unit_variance_at_both_levels():
    source = torch.Generator().manual_seed(0)
    routers = [Router(64, experts=8, gate="random", generator=source) for _ in range(40)]
    maps = tokens(1, 64, 24, 24)
    images = torch.stack([torch.log(router(maps).image) for router in routers])
    assert (images - images.mean(2, keepdim=True)).std().item() == pytest.approx(1, rel=0.15)
    token_logits = torch.stack([router.token(maps) for router in routers])
    assert token_logits.std().item() == pytest.approx(1, rel=0.1)


def test_a_uniform_gate_has_no_weights():
    router = Router(6, experts=3, gate="uniform")
    assert not router.state_dict()
    gates = router(tokens(2, 6, 5, 7))
    torch.testing.assert_close(gates.weights, torch.full((2, 3, 5, 7), 1 / 3))
    torch.testing.assert_close(gates.image, torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("gate", ["learned", "random", "uniform"])
def test_a_single_expert_takes_all(gate):
    router = Router(6, experts=1, gate=gate, generator=torch.Generator().manual_seed(0))
    weights = router(tokens(2, 6, 5, 7)).weights
    assert torch.equal(weights, torch.ones(2, 1, 5, 7))
    assert gate_entropy(weights).item() == 1
    assert importance_cv2(weights).item() == 0
