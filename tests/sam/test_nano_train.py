"""The training script of the benchmark, with a tiny budget on the CPU."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "nano-sam" / "train.py"
SPEC = importlib.util.spec_from_file_location("nano_train", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_stops_within_its_call_goes_on_and_publishes(tmp_path, monkeypatch):
    monkeypatch.setitem(
        script.PRESETS, "cpu", script.PretrainConfig(batch=1, targets=1, boxes=1.0, corrections=0.0, log_every=1)
    )
    run, out = tmp_path / "run", tmp_path / "out"
    call = [str(out), "--run", str(run), "--preset", "cpu", "--device", "cpu", "--workers", "0", "--images", "0"]
    script.main([*call, "--seconds", "6", "--probe-seconds", "0.5", "--call-seconds", "0.1"])
    plan = json.loads((run / "plan.json").read_text())
    facts = json.loads((out / "training.json").read_text())
    assert plan["steps"] == pytest.approx(0.97 * 6 * plan["steps_per_second"], abs=1)
    assert facts["steps"] <= plan["steps"]
    script.main([*call, "--seconds", "900"])  # the first call's plan is kept
    facts = json.loads((out / "training.json").read_text())
    assert facts["finished"] is True and facts["steps"] == plan["steps"]
    assert facts["config"]["steps"] == plan["steps"]
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, plan["steps"] + 1))
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "training.json", "log.jsonl"}
    assert (out / "model.safetensors").stat().st_size < 16 * 2**20


def test_a_strangers_signal_is_passed_on():
    with pytest.raises(KeyboardInterrupt), script.stopped_when(lambda: False):
        raise KeyboardInterrupt
