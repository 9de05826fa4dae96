import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewlabel.core.errors import RunError
from fewlabel.training.checkpoint import load_state, read_tensors
from fewlabel.training.loop import LoopConfig, fit, learning_rate

CONFIG = LoopConfig(steps=30, warmup=4, log_every=7, ema=0.9)

# Both the killed process and this one run these very lines.
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
import torch
from torch import nn
from fewlabel.training.loop import LoopConfig, fit

torch.set_num_threads(1)


def make():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 1, 1))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def step_loss(model, step, pause=0.0):
    time.sleep(pause)
    rng = np.random.default_rng([3, step])
    x = torch.from_numpy(rng.normal(size=(2, 1, 12, 12)).astype(np.float32))
    error = (model(x) - x).square().mean()
    return {"loss": error, "doubled": 2 * error}


def train(folder, checkpoint_seconds=60.0, pause=0.0):
    config = LoopConfig(steps=60, warmup=4, log_every=7, ema=0.9, checkpoint_seconds=checkpoint_seconds)
    model = make()
    fit(model, lambda m, s: step_loss(m, s, pause), config, Path(folder), seed=1, label="conv")
    return model
"""
scope: dict = {}
exec(PROGRAM, scope)
make, step_loss, train = scope["make"], scope["step_loss"], scope["train"]


def run(folder: Path, loss=step_loss, config: LoopConfig = CONFIG, **options) -> nn.Module:
    model = make()
    fit(model, loss, config, folder, **{"seed": 1, "label": "conv", **options})
    return model


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stopping(at: int, kind: int = signal.SIGTERM):
    def loss(model: nn.Module, step: int) -> dict:
        if step == at:
            os.kill(os.getpid(), kind)
        return step_loss(model, step)

    return loss


def test_killed_process_resumes_to_the_same_weights(tmp_path: Path):
    whole = train(tmp_path / "whole")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + "\ntrain(sys.argv[1], checkpoint_seconds=0.0, pause=0.05)\n")
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, str(program), str(killed)], stderr=subprocess.DEVNULL)
    log, deadline = killed / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "weights.safetensors").exists()
    state, _ = load_state(killed / "checkpoint.safetensors")
    assert 13 <= state["step"] < 60
    with log.open("a") as file:
        file.write('{"step": 59, "lr"')  # what a kill in the middle of a line leaves
    resumed = train(killed)
    assert same(whole, resumed)
    assert lines(tmp_path / "whole") == lines(killed)
    assert sorted(path.name for path in killed.iterdir()) == ["log.jsonl", "weights.safetensors"]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_rest_is_exact(tmp_path: Path, kind: int):
    before = signal.getsignal(kind)
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 12"):
        run(tmp_path / "cut", stopping(11, kind))
    assert signal.getsignal(kind) is before
    # Twice, so that the second session starts from what a first one has resumed.
    with pytest.raises(KeyboardInterrupt, match="step 20"):
        run(tmp_path / "cut", stopping(19, kind))
    assert same(whole, run(tmp_path / "cut"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_bfloat16_resumes_exactly_and_keeps_float32_weights(tmp_path: Path):
    config = CONFIG.model_copy(update={"precision": "bf16"})
    whole = run(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stopping(11), config=config)
    assert same(whole, run(tmp_path / "cut", config=config))
    assert {value.dtype for value in whole.parameters()} == {torch.float32}
    assert not same(whole, run(tmp_path / "fp32"))


def test_agrees_with_adamw_written_out(tmp_path: Path):
    config = LoopConfig(steps=25, warmup=3, clip=0.5, weight_decay=0.3, ema=0.8, lr=0.01)
    model, slow = make(), make()
    model[3].p = slow[3].p = 0.0
    fit(model, step_loss, config, tmp_path, seed=1, label="conv")
    values = dict(slow.named_parameters())
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in values.items()}
    average = {name: value.detach().clone() for name, value in values.items()}
    slow.train()
    for step in range(config.steps):
        slow.zero_grad()
        step_loss(slow, step)["loss"].backward()
        norm = math.sqrt(sum(value.grad.square().sum().item() for value in values.values()))
        rate = 0.01 * (step + 1) / 3 if step < 3 else 0.005 * (1 + math.cos(math.pi * (step - 3) / 22))
        keep = min(0.8, (2 + step) / (11 + step))
        with torch.no_grad():
            for name, value in values.items():
                gradient = value.grad * min(1, 0.5 / norm)
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                if value.ndim > 1:
                    value.mul_(1 - rate * 0.3)
                corrected = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                value.sub_(rate * first / (1 - 0.9 ** (step + 1)) / corrected)
                average[name] = keep * average[name] + (1 - keep) * value
    for name, value in model.named_parameters():
        if name == "0.bias":  # its gradient is rounding noise, for the normalisation behind it removes any offset
            continue
        torch.testing.assert_close(value.detach(), average[name], rtol=0, atol=2e-5)
    torch.testing.assert_close(model[1].running_var, slow[1].running_var, rtol=1e-4, atol=1e-5)


def test_learning_rate_rises_then_falls_to_zero():
    config = LoopConfig(steps=1000, warmup=100, lr=0.5)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[100] == 0.5
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[-1] < 1e-5
    assert max(learning_rate(step, LoopConfig(steps=10, lr=0.5)) for step in range(10)) == 0.5
    assert learning_rate(0, LoopConfig(steps=1, lr=0.5)) == 0.5


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_non_finite_stops_at_the_step_and_keeps_the_last_good_state(tmp_path: Path, broken: str):
    def loss(model: nn.Module, step: int) -> dict:
        terms = step_loss(model, step)
        if step == 13:
            # The square root of 0 is finite, its gradient is not.
            bad = terms["loss"] * math.nan if broken == "loss" else (terms["loss"] * 0).sqrt()
            return {**terms, "loss": bad}
        return terms

    often = CONFIG.model_copy(update={"checkpoint_seconds": 0})
    with pytest.raises(RunError, match=r"at step 13 .*expected a finite number.*the last good checkpoint is kept"):
        run(tmp_path, loss, often)
    state, tensors = load_state(tmp_path / "checkpoint.safetensors")
    assert state["step"] == 13
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert not (tmp_path / "weights.safetensors").exists()
    # Going on meets the same batch again, whose images are named if they are known.
    with pytest.raises(RunError, match=r"at step 13 on images 13a, 13b \(.*expected a finite number"):
        run(tmp_path, loss, often, describe=lambda step: f"images {step}a, {step}b")
    assert load_state(tmp_path / "checkpoint.safetensors")[0]["step"] == 13
    assert same(run(tmp_path), run(tmp_path.with_name(tmp_path.name + "-whole")))


def test_a_first_step_that_is_not_finite_claims_no_checkpoint(tmp_path: Path):
    with pytest.raises(RunError, match="at step 0 .*no checkpoint was written yet"):
        run(tmp_path, lambda model, step: {"loss": step_loss(model, step)["loss"] * math.nan})
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_folder_of_other_settings_is_refused(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopping(5))
    faster = CONFIG.model_copy(update={"lr": 0.5})
    for options in ({"config": faster}, {"seed": 2}, {"fingerprint": "other data"}):
        with pytest.raises(RunError, match="choose another folder, or remove"):
            run(tmp_path, **options)
    # How often it is saved and logged changes nothing.
    run(tmp_path, config=CONFIG.model_copy(update={"checkpoint_seconds": 1, "log_every": 3}))
    with pytest.raises(RunError, match=r"weights\.safetensors.*other settings"):
        run(tmp_path, seed=2)


def test_a_finished_folder_is_loaded_and_not_trained(tmp_path: Path):
    first = run(tmp_path)
    calls = []

    def loss(model: nn.Module, step: int) -> dict:
        calls.append(step)
        return step_loss(model, step)

    model = make()
    result = fit(model, loss, CONFIG, tmp_path, seed=1, label="conv")
    assert not calls
    assert same(first, model)
    assert not model.training
    assert (result.steps, result.folder) == (30, tmp_path)
    assert result.seconds > 0


def test_log_holds_means_and_validation_of_the_averaged_weights(tmp_path: Path):
    seen: list[float] = []
    modes: list[bool] = []

    def loss(model: nn.Module, step: int) -> dict:
        modes.append(model.training)
        terms = step_loss(model, step)
        seen.append(terms["loss"].item())
        return terms

    def validate(model: nn.Module) -> dict[str, float]:
        modes.append(model.training)
        return {"bias": model[4].bias.item()}

    model = run(tmp_path, loss, validate=validate, validate_every=10)
    log = lines(tmp_path)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == [7, 14, 21, 28, 30]
    windows = [seen[:7], seen[7:14], seen[14:21], seen[21:28], seen[28:]]
    assert [line["loss"] for line in steps] == pytest.approx([np.mean(window) for window in windows])
    assert [line["doubled"] for line in steps] == pytest.approx([2 * np.mean(window) for window in windows])
    validations = [line for line in log if "val" in line]
    assert [line["step"] for line in validations] == [10, 20, 30]
    assert validations[-1]["val"]["bias"] == model[4].bias.item()
    assert modes == ([True] * 10 + [False]) * 3
    # Validation leaves no trace in the weights.
    assert same(model, run(tmp_path.with_name(tmp_path.name + "-plain")))


def test_frozen_parameters_stay_and_are_not_written(tmp_path: Path):
    model = make()
    model[0].requires_grad_(False)
    kept = model[0].weight.clone()
    fit(model, step_loss, CONFIG, tmp_path, seed=1, label="conv")
    assert torch.equal(model[0].weight, kept)
    names = set(read_tensors(tmp_path / "weights.safetensors").tensors)
    assert "0.weight" not in names
    assert {"4.weight", "1.running_mean"} <= names
    with pytest.raises(RunError, match="no trainable parameter"):
        fit(make().requires_grad_(False), step_loss, CONFIG, tmp_path / "none", seed=1, label="conv")


def test_left_over_part_files_are_removed(tmp_path: Path):
    (tmp_path / ".checkpoint.abc.safetensors").write_bytes(b"half a file")
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "weights.safetensors"]
