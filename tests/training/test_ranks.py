"""Two processes over gloo: one network, batches of their own, the same steps."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fewlabel.training import ranks
from fewlabel.training.loop import LoopConfig, fit

WORKER = """
import json, sys
import torch
from pathlib import Path
from torch import nn
torch.set_num_threads(1)
from fewlabel.core.errors import RunError
from fewlabel.training import ranks
from fewlabel.training.loop import LoopConfig, fit

assert ranks.join() == "cpu"
me, out = ranks.rank(), Path(sys.argv[1])
facts = {"size": ranks.size(), "said": ranks.first_only(lambda: f"from {me}")}

def broken():
    raise RunError("no disk")

try:
    ranks.first_only(broken)
except RunError as error:
    facts["error"] = str(error)

one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
one.grad = torch.tensor([1.0, 3.0]) * (me + 1)
if me:
    other.grad = torch.tensor([8.0])
ranks.average_gradients([one, other])
facts["gradients"] = [one.grad.tolist(), other.grad.tolist()]
facts["mean"] = ranks.mean(torch.tensor([float(me), float("nan") if me else 0.0])).isnan().tolist()

torch.manual_seed(0)
model = nn.Linear(3, 1)
steps = []

def step_loss(model, step):
    steps.append(step)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

config = LoopConfig(steps=6, batch=4, lr=0.05, log_every=2, checkpoint_seconds=0)
fit(model, step_loss, config, out / "run", seed=0, label="together")
facts |= {"steps": steps, "weights": model.weight.flatten().tolist()}
(out / f"{me}.json").write_text(json.dumps(facts))
ranks.end(0)
"""


def start(code: str, folder: Path, count: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env=common | {"RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    workers = start(WORKER, folder, 2)
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    return folder, [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


def test_what_the_first_finds_or_fails_at_is_told_to_all(two):
    for facts in two[1]:
        assert facts["size"] == 2
        assert facts["said"] == "from 0"
        assert facts["error"] == "no disk"


def test_gradients_are_averaged_and_missing_ones_are_0(two):
    for facts in two[1]:
        assert facts["gradients"] == [[1.5, 4.5], [4.0]]
        assert facts["mean"] == [False, True]


def test_two_ranks_take_the_steps_of_one_with_both_batches(two, tmp_path):
    folder, (first, second) = two
    assert first["steps"] == [0, 2, 4, 6, 8, 10]
    assert second["steps"] == [1, 3, 5, 7, 9, 11]
    assert first["weights"] == second["weights"]
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def step_loss(model, step):
        batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(2 * step + i)) for i in range(2)]
        return {"loss": sum((model(x) - x.sum(1, keepdim=True)).square().mean() for x in batches) / 2}

    fit(model, step_loss, LoopConfig(steps=6, batch=4, lr=0.05, log_every=2), tmp_path, seed=0, label="alone")
    assert first["weights"] == pytest.approx(model.weight.flatten().tolist(), abs=1e-6)
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder / "run", tmp_path)
    ]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], rel=1e-5)
    assert not (folder / "run" / "checkpoint.safetensors").exists()


def test_alone_nothing_is_asked_of_others():
    ranks.end(3)  # does nothing
    assert ranks.join() is None
    assert (ranks.size(), ranks.rank(), ranks.is_first()) == (1, 0, True)
    assert ranks.first_only(lambda: 7) == 7
    values = torch.ones(2)
    assert ranks.mean(values) is values
