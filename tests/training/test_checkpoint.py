import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from fewlabel.core.errors import ModelError, RunError
from fewlabel.training.checkpoint import (
    learnt_state,
    load_checkpoint,
    load_state,
    load_weights,
    read_metadata,
    save_checkpoint,
    save_weights,
    weights_sha256,
)
from fewlabel.training.ema import Ema, trainable


def make(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))
    model.append(nn.Conv2d(1, 1, 1).requires_grad_(False))
    return model.to(memory_format=torch.channels_last)


def trained(seed: int) -> tuple[nn.Module, Ema, torch.optim.Optimizer]:
    model = make(seed)
    ema, optimizer = Ema(model, 0.9), torch.optim.AdamW(trainable(model).values(), fused=True)
    step(model, ema, optimizer, seed)
    return model, ema, optimizer


def step(model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()
    ema.update(model)


def test_learnt_state_leaves_frozen_parameters_out_and_keeps_buffers():
    names = set(learnt_state(make()))
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked", "2.bias"} <= names
    assert not any(name.startswith("3.") for name in names)


def test_weights_round_trip_with_layout_and_metadata(tmp_path: Path):
    path = tmp_path / "new" / "weights.safetensors"
    source, target = make(0), make(1)
    save_weights(path, source, {"seed": "0"})
    assert load_weights(path, target) == {"seed": "0"} == read_metadata(path)
    for name, value in learnt_state(source).items():
        assert torch.equal(learnt_state(target)[name], value)
    assert target[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(source[3].weight, target[3].weight)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_hash_sees_every_weight_buffer_name_type_and_shape():
    model = make()
    digest = weights_sha256(model)
    assert digest == weights_sha256(make()) and len(digest) == 64
    relaid = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    assert weights_sha256(relaid) == digest, "the layout in memory is no value"
    for name, value in model.state_dict().items():
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.state_dict()[name].view(-1)[-1] += 1 if value.dtype == torch.int64 else 1e-6
        assert weights_sha256(other) != digest, name
    zeros = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(6).bfloat16()]
    digests = set()
    for name, value in itertools.product(("a", "b"), zeros):
        holder = nn.Module()
        holder.register_buffer(name, value)
        digests.add(weights_sha256(holder))
    assert len(digests) == 8


def test_tied_parameters_survive(tmp_path: Path):
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, target = tied(0), tied(1)
    save_weights(tmp_path / "w.safetensors", source, {})
    load_weights(tmp_path / "w.safetensors", target)
    assert target[1].weight is target[0].weight
    assert torch.equal(target[0].weight, source[0].weight)


def test_loading_into_another_architecture_says_what_differs(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, make(), {})
    with pytest.raises(ModelError, match=r"weights\.safetensors.*'0\.bias'.*\(4,\).*\(5,\)"):
        load_weights(path, make(width=5))
    with pytest.raises(ModelError, match="holds '1.bias'"):
        load_weights(path, nn.Sequential(nn.Conv2d(1, 4, 3)))
    larger = make()
    larger.append(nn.Linear(1, 1))
    before = larger[0].weight.clone()
    with pytest.raises(ModelError, match="lacks '4.bias'"):
        load_weights(path, larger)
    assert torch.equal(larger[0].weight, before)


def test_broken_and_missing_files_are_named(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ModelError, match="no such weights file"):
        load_weights(path, make())
    save_weights(path, make(), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_weights(path, make())
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_state(path)
    save_weights(path, make(), {})
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_state(path)


def test_checkpoint_continues_exactly(tmp_path: Path):
    path = tmp_path / "checkpoint.safetensors"
    first = trained(0)
    save_checkpoint(path, *first, {"step": 1})
    state, tensors = load_state(path)
    assert state == {"step": 1, "ema_updates": 1}
    second = trained(5)
    load_checkpoint(path, *second, tensors)
    second[1].updates = state["ema_updates"]
    with torch.no_grad():
        second[0][3].load_state_dict(first[0][3].state_dict())
    for seed in range(10, 15):
        step(*first, seed)
        step(*second, seed)
    for name, value in first[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name
    for name, value in first[1].weights.items():
        assert torch.equal(second[1].weights[name], value), name


def test_parameter_names_that_begin_alike_are_kept_apart(tmp_path: Path):
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.a.extra = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a.extra(self.a(x)) * self.scale

    model = Nested()
    ema, optimizer = Ema(model, 0.9), torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    before = {name: dict(optimizer.state[value]) for name, value in trainable(model).items()}
    save_checkpoint(tmp_path / "c.safetensors", model, ema, optimizer, {})
    load_checkpoint(tmp_path / "c.safetensors", model, ema, optimizer, load_state(tmp_path / "c.safetensors")[1])
    for name, value in trainable(model).items():
        assert optimizer.state[value].keys() == before[name].keys()
        assert all(torch.equal(optimizer.state[value][key], entry) for key, entry in before[name].items())
