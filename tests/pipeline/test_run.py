"""A whole run: done once, continued after kills, refused when settings change, exported and used."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.files import sha256_file
from fewlabel.deploy.predict import predict_folder
from fewlabel.pipeline.export import export_run
from fewlabel.pipeline.folder import MANIFEST, S4M, SCALPEL, STARTED, Plan, RunFolder, Stage
from fewlabel.pipeline.run import Run, check_folder
from fewlabel.pipeline.scoring import score_table
from fewlabel.recipe import load_recipe

RESULTS = ("teach/weights.safetensors", "label/summary.json", "train/fewlabel/weights.safetensors", "eval/scores.json")


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbed."""
    import yaml

    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_values_of(scenes)))
    run = Run(load_recipe(folder / "tiny.yaml"), folder / "run")
    run.execute()
    return run


def tiny_values_of(root: Path) -> dict:
    """The recipe of the fixture, for fixtures of a wider scope."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny_conftest", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_values(root)


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of a run's results; of weights the tensors alone, because their header also tells the seconds."""
    return {
        name: tensors_hash(folder / name) if name.endswith("safetensors") else sha256_file(folder / name)
        for name in RESULTS
    }


def tensors_hash(path: Path) -> str:
    """Hash of names and bytes of all tensors of a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("plan", [SCALPEL, S4M])
def test_plan_puts_every_stage_after_what_it_needs(plan: Plan) -> None:
    assert plan.until("report") == list(plan.stages)
    assert SCALPEL.until("baselines") == ["check", "split", "synthetic", "baselines"]
    assert set(plan.rooms) == set(plan.stages) >= plan.costly
    for stage in plan.stages:
        order = plan.until(stage)
        assert all(order.index(need) < order.index(later) for later in order for need in plan.needs[later])


def test_a_run_leaves_scores_for_every_method_and_a_report(finished: Run) -> None:
    scores = json.loads((finished.path / "eval" / "scores.json").read_text())
    assert set(scores["methods"]) == {"labels-only", "synthetic-pretrained", "fewlabel", "all-labels"}
    assert scores["pseudo_labels"]["images"] == 6 and scores["methods"]["fewlabel"]["images"] == 3
    page = (finished.path / "report" / "report.html").read_text()
    assert "fewlabel" in page and not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    # Three steps teach nothing, so every label with a target is doubted; unlabelled and test images are never asked.
    doubted = {item["id"] for item in scores["doubtful_labels"]}
    with_targets = {id for id in finished.split.labelled if len(finished.dataset.labelled(id).instances)}
    assert with_targets <= doubted <= set(finished.split.labelled)
    assert "Labels worth another look" in page and all(f"<code>{id}</code>" in page for id in doubted)


def test_a_second_run_does_nothing(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}
    Run(finished.recipe, finished.path).execute()
    said = capsys.readouterr().out
    assert said.count("already done") == len(SCALPEL.stages)
    after = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}
    changed = {path.name for path in before | after if before.get(path) != after.get(path)}
    assert changed <= {"recipe.yaml"}


@pytest.mark.parametrize("stage", ["split", "label", "baselines"])
def test_a_run_stopped_at_the_end_of_a_stage_continues(
    finished: Run, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """The work of the stage is done, but its manifest is not written: the stage goes on from its files."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, folder.path)
    for later in SCALPEL.stages[SCALPEL.stages.index(stage) :]:
        manifest = folder.manifest(later) or {}
        (folder.stage(later) / MANIFEST).unlink()
        if later == stage:
            started = {"stage": later, "fingerprint": manifest["fingerprint"], "seconds": 1.0}
            (folder.stage(later) / STARTED).write_text(json.dumps(started))
        else:
            shutil.rmtree(folder.stage(later))
    Run(finished.recipe, folder.path).execute()
    assert hashes(folder.path) == hashes(finished.path)


def test_kill_9_in_the_middle_and_the_same_command_again(finished: Run, recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewlabel.cli", "run", str(recipe_file), "--out", str(tmp_path / "run")]
    command += ["--threads", "1"]
    for file in ("teach/log.jsonl", "train/fewlabel/log.jsonl"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / file).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"the run ended before {file} was there"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hashes(tmp_path / "run") == hashes(finished.path)


def test_other_settings_are_refused_and_redo_replaces_only_what_they_touch(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    changed = load_recipe(finished.path / "recipe.yaml", ("label.margin=0.2",))
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    hint = r"\(label.margin was 0.1, is 0.2\)"
    with pytest.raises(RunError, match=rf"Stage 'label' in .* other settings, data or code {hint}; .*--out.*--redo"):
        Run(changed, tmp_path / "run").execute()
    assert (tmp_path / "run" / "recipe.yaml").read_text() == written
    capsys.readouterr()
    Run(changed, tmp_path / "run", redo=True).execute()
    said = capsys.readouterr().out
    assert "teach: already done" in said and "baselines: already done" in said
    assert "label: done in" in said and "train: done in" in said


def test_a_refusal_says_what_differs_where_that_is_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def make(fingerprint: str, settings: dict) -> bool:
        return folder.run_stage("teach", fingerprint, lambda out: None, settings=settings, recipe={})

    settings = {"teach": {"steps": 2, "lr": 0.1}, "seed": 0}
    assert make("a", settings)
    assert not make("a", settings)
    for changed, hint in (
        ({"teach": {"steps": 3, "lr": 0.1}, "seed": 0}, r"\(teach.steps was 2, is 3\)"),
        ({"teach": {"steps": 3, "lr": 0.2}, "seed": 1}, r"\(teach.steps was 2, is 3 and 2 more\)"),
        ({"teach": {"steps": 2, "lr": 0.1, "new": 1}, "seed": 0}, r"\(teach.new was None, is 1\)"),
        (settings, r"\(its own settings are the same: the code, or a stage before it, has changed\)"),
    ):
        with pytest.raises(RunError, match=hint):
            make("b", changed)
    manifest = json.loads((tmp_path / "teach" / MANIFEST).read_text())
    del manifest["settings"]
    (tmp_path / "teach" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="other settings, data or code; choose"):
        make("b", settings)


def test_changed_data_are_noticed(finished: Run, scenes: Path) -> None:
    image = next((scenes / "images").iterdir())
    before, content = image.stat(), image.read_bytes()
    files = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.name != "data-files.json"}
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    Run(finished.recipe, finished.path).execute()  # a touched file is no other file
    try:
        image.write_bytes(content + b" ")
        with pytest.raises(RunError, match=rf"made from: 1 file was changed \(images/{image.name}\); restore them"):
            Run(finished.recipe, finished.path).execute()
        image.rename(image.with_suffix(".gone"))
        with pytest.raises(RunError, match=r"1 file was added .*, 1 file was removed \(images/"):
            Run(finished.recipe, finished.path).execute()
    finally:
        image.with_suffix(".gone").unlink(missing_ok=True)
        image.write_bytes(content)
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    Run(finished.recipe, finished.path).execute()
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_export_and_predict(finished: Run, scenes: Path, tmp_path: Path) -> None:
    parity = export_run(finished.path, tmp_path / "model.onnx", images=3)
    assert parity.images == 3
    predict_folder(tmp_path / "model.onnx", scenes / "images", tmp_path / "out", keep_going=False)
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(coco["images"]) == 15
    with pytest.raises(RunError, match="no student by method 'mean-teacher'"):
        export_run(finished.path, tmp_path / "other.onnx", method="mean-teacher")
    with pytest.raises(DataError, match="not a run folder"):
        export_run(tmp_path, tmp_path / "other.onnx")


def test_cheap_stages_are_replaced_without_asking_and_a_failed_one_leaves_nothing(scenes: Path, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_values_of(scenes)))
    Run(load_recipe(path, ("split.seed=1",)), tmp_path / "run").execute("split")
    first = (tmp_path / "run" / "split" / "split.json").read_bytes()
    Run(load_recipe(path, ("split.seed=2",)), tmp_path / "run").execute("split")
    assert (tmp_path / "run" / "split" / "split.json").read_bytes() != first
    copied = tmp_path / "copy" / scenes.name
    shutil.copytree(scenes, copied)
    victim = sorted((copied / "images").iterdir())[0]
    good = victim.read_bytes()
    victim.write_bytes(good[:50])
    run = Run(load_recipe(path, (f"data.root={copied}",)), tmp_path / "other")
    with pytest.raises(DataError, match=victim.stem):
        run.execute("split")
    assert not (tmp_path / "other").exists(), "nothing was done, so there is no run"
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=victim.stem):
        run.execute("split")
    assert list((tmp_path / "other").iterdir()) == [], "a folder that was there is left there"
    victim.write_bytes(good)
    run.execute("split")


def test_a_missing_output_is_made_again(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "eval" / "scores.json").unlink()
    Run(finished.recipe, tmp_path / "run").execute("eval")
    assert "eval: done in" in capsys.readouterr().out
    assert hashes(tmp_path / "run") == hashes(finished.path)


def test_without_a_test_list_nothing_is_scored_but_the_report_is_there(scenes: Path, tmp_path: Path) -> None:
    import yaml

    copied = tmp_path / scenes.name
    shutil.copytree(scenes, copied)
    next((copied / "img_idx").glob("test*")).unlink()
    values = tiny_values_of(copied)
    values["student"] |= {"compare": [], "synthetic_steps": 0}
    values["teacher"] |= {"adapter": None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run").execute()
    assert "no test images" in score_table(tmp_path / "run" / "eval")
    assert (tmp_path / "run" / "report" / "report.html").stat().st_size > 10_000


def test_check_folder_prints_what_is_there(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_folder(scenes)
    assert "12 training and 3 test images" in capsys.readouterr().out
