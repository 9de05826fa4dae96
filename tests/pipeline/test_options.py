"""A run with two rounds, soft targets and online learning: what it writes, and that kills change nothing of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fewlabel.core.errors import RunError
from fewlabel.core.files import sha256_file
from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore
from fewlabel.pipeline.inputs import open_dataset, pseudo_loaders
from fewlabel.pipeline.run import Run
from fewlabel.pipeline.stages import method_pool
from fewlabel.recipe import DataSection, load_recipe

ROUNDS = ("teach", "label/teacher")
STUDENTS = ("train/fewlabel", "baselines/mean-teacher")
OPEN = {"min_quality": 0, "max_spread": 0.5, "max_area_share": 1, "min_contrast": -100, "min_support": 0}


def values_of(root: Path) -> dict:
    """A recipe of a few steps whose teacher, hardly taught, sees targets everywhere and is believed."""
    return {
        "name": "options",
        "data": {"root": str(root)},
        "split": {"fraction": 0.5, "validation_share": 0.2},
        "teacher": {"sam": "nano", "adapter": None, "experts": "none"},
        "teach": {"steps": 4, "batch": 2, "log_every": 1, "crop": 32, "checkpoint_seconds": 0},
        "label": {"views": "one", "rounds": 2, "threshold": 0.01, "gate": OPEN},
        "student": {
            "network": "unet",
            "training": {"steps": 3, "batch": 2, "crop": 32, "log_every": 1, "checkpoint_seconds": 0},
            "soft_weight": 0.4,
            "online": True,
            "compare": ["mean-teacher"],
        },
    }


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values_of(scenes)))
    run = Run(load_recipe(folder / "recipe.yaml"), folder / "run")
    run.execute("train")
    run.execute("baselines")
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def results(run: Path) -> dict[str, str | dict[str, torch.Tensor]]:
    """Hashes of what the label stage wrote, without logs and headers, which tell the seconds; tensors of networks."""
    written = sorted(path for path in (run / "label").rglob("*") if path.suffix in (".jsonl", ".png", ".json"))
    names = {"log.jsonl", "manifest.json"}
    found = {str(path.relative_to(run)): sha256_file(path) for path in written if path.name not in names}
    return found | {name: weights(run / name) for name in (*ROUNDS, *STUDENTS)}


def same(first: dict, second: dict) -> bool:
    """Whether two runs have the same results, bit for bit."""
    if first.keys() != second.keys():
        return False
    for name, value in first.items():
        other = second[name]
        if isinstance(value, str):
            if value != other:
                return False
        elif not all(torch.equal(value[key], other[key]) for key in value):
            return False
    return True


def test_the_second_round_starts_from_the_taught_teacher_and_labels_anew(finished: Run) -> None:
    label = finished.path / "label"
    log = [json.loads(line) for line in (label / "teacher" / "log.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in log) == 2, "half of the steps of the first teaching"
    first, second = (weights(finished.path / name) for name in ROUNDS)
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert 0 < apart < 0.05, "it went on from its own weights"
    stores = [LabelStore(label / "round-1" / "labels"), LabelStore(label / "labels")]
    ids = Split.load(finished.path / "split" / "split.json").unlabelled
    for number, store in enumerate(stores, start=1):
        assert sorted(store.ids()) == sorted(ids)
        assert {found.accepted.round for found in store if len(found.accepted)} == {number}
    assert (label / "summary.json").is_file() and (label / "round-1" / "summary.json").is_file()


def test_the_teachers_probabilities_reach_the_student(finished: Run, scenes: Path) -> None:
    label = finished.path / "label"
    assert not (label / "round-1" / "soft").exists(), "the students learn from the last round"
    store = LabelStore(label / "labels")
    assert sorted(path.stem for path in (label / "soft").iterdir()) == sorted(store.ids())
    dataset = open_dataset(DataSection(root=scenes))
    pool = method_pool("fewlabel", finished.recipe, dataset, finished.split, label)
    drawn = pool.draw(40, np.random.default_rng(0))
    assert {patch.soft is None for patch in drawn if patch.id in store} == {False}
    assert {patch.soft is None for patch in drawn if patch.id not in store} == {True}
    for patch in drawn:
        if patch.soft is not None:
            assert patch.soft.shape == patch.image.shape
            assert ((patch.soft > 0.01) | ~patch.target).all(), "accepted where the probability is above the threshold"
    terms = [json.loads(line) for line in (finished.path / "train/fewlabel/log.jsonl").read_text().splitlines()]
    assert all({"soft_bce", "consistency", "sure"} <= set(record) for record in terms if "loss" in record)


def test_mean_teacher_needs_no_teacher_and_starts_where_fewlabel_does(finished: Run) -> None:
    log = (finished.path / "baselines/mean-teacher/log.jsonl").read_text()
    assert "consistency" in log and "soft_bce" not in log
    assert finished.recipe.methods == ("mean-teacher", "fewlabel")


def test_kill_9_in_the_second_teaching_and_in_online_training(finished: Run, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values_of(scenes)))
    out = tmp_path / "run"
    rest = [str(tmp_path / "recipe.yaml"), "--out", str(out), "--threads", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "fewlabel.cli", "train", *rest]
    for file in ("label/teacher/log.jsonl", "train/fewlabel/log.jsonl"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (out / file).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"the run ended before {file} was there"
    Run(finished.recipe, out).execute("train")
    Run(finished.recipe, out).execute("baselines")
    assert same(results(out), results(finished.path))


def test_a_label_stage_cut_between_its_parts_goes_on(finished: Run, tmp_path: Path) -> None:
    """All of the second round's labels but the last, and the probabilities of the lost one, are there already."""
    shutil.copytree(finished.path, tmp_path / "run")
    label = tmp_path / "run" / "label"
    manifest = json.loads((label / "manifest.json").read_text())
    (label / "manifest.json").unlink()
    (label / "summary.json").unlink()
    (label / "started.json").write_text(json.dumps({"fingerprint": manifest["fingerprint"], "seconds": 1.0}))
    (shard,) = (label / "labels").glob("*.jsonl")
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))
    for stage in ("train", "baselines"):
        shutil.rmtree(tmp_path / "run" / stage)
    Run(finished.recipe, tmp_path / "run").execute("train")
    Run(finished.recipe, tmp_path / "run").execute("baselines")
    assert same(results(tmp_path / "run"), results(finished.path))


@pytest.mark.parametrize(
    ("change", "stage", "hint"),
    [
        ("label.rounds=1", "label", "label.rounds was 2, is 1"),
        ("student.soft_weight=0", "label", "probabilities kept was True, is False"),
        ("student.soft_weight=0.3", "train", "student.soft_weight was 0.4, is 0.3"),
        ("student.mean_teacher.low=0.1", "train", "student.mean_teacher.low was 0.2, is 0.1"),
        ("student.online=false", "train", "student.online was True, is False"),
    ],
)
def test_each_option_belongs_to_the_stages_that_read_it(finished: Run, change: str, stage: str, hint: str) -> None:
    changed = Run(load_recipe(finished.path / "recipe.yaml", (change,)), finished.path)
    with pytest.raises(RunError, match=rf"Stage '{stage}' .*\({hint}"):
        changed.execute("train")


def test_a_silent_teacher_is_told_on_the_terminal_and_teaches_nothing(
    finished: Run, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    change = ("label.threshold=0.999", "label.rounds=1", "student.soft_weight=0")
    run = Run(load_recipe(finished.path / "recipe.yaml", change), tmp_path / "run", redo=True)
    run.execute("label")
    run.execute("label")
    said = capsys.readouterr().out
    warning = "warning: the teacher proposed no target in 6 unlabelled images"
    assert said.count(warning) == 2, "also when the stage was done before"
    assert said.count("the student learns from the labels alone") == 2
    pool = method_pool(
        "fewlabel", run.recipe, open_dataset(DataSection(root=scenes)), run.split, tmp_path / "run" / "label"
    )
    assert len(pool) == len(run.split.train)


def test_unsure_images_are_left_out_of_the_students_training(finished: Run, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    change = ("label.gate.min_quality=1.0", "label.rounds=1", "student.soft_weight=0", "label.threshold=0.012")
    run = Run(load_recipe(finished.path / "recipe.yaml", change), tmp_path / "run", redo=True)
    run.execute("label")
    store = LabelStore(tmp_path / "run" / "label" / "labels")
    assert store.summary()["unsure"] == len(store) == 6, "everything is proposed and nothing is accepted"
    pool = method_pool(
        "fewlabel", run.recipe, open_dataset(DataSection(root=scenes)), run.split, tmp_path / "run" / "label"
    )
    assert len(pool) == len(run.split.train)
    loaded = [load() for load in pseudo_loaders(open_dataset(DataSection(root=scenes)), store, store.ids())]
    assert not any(patch.weight.any() for patch in loaded)
