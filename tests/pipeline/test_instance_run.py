"""A whole run of instance segmentation with the smallest networks, on rendered scenes in COCO's layout."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewlabel.core.errors import DataError, RecipeError, RunError
from fewlabel.core.files import read_json, write_json
from fewlabel.data.synth.objects import ObjectsConfig
from fewlabel.data.synth.objects_coco import write_coco_dataset
from fewlabel.pipeline.folder import MANIFEST, S4M
from fewlabel.pipeline.start import run_of
from fewlabel.recipe import InstanceRecipe, load_recipe
from fewlabel.training.log import LOG, read_log

RECIPE = """
name: tiny
method: s4m
data: {format: coco, root: data}
split: {fraction: 0.5, validation_share: 0.25}
network: {name: nano}
smaller: {name: nano, queries: 8}
crops: {crop: 64, scale_low: 1.0, scale_high: 1.0}
teach: {steps: 4, batch: 2, lr: 0.001, clip: 1.0, points: 4, log_every: 1}
student:
  steps: 4
  batch: 2
  lr: 0.001
  clip: 1.0
  burn_in: 2
  ema: 0.5
  log_every: 1
  filter: {class_threshold: 0.0, min_mass: 0.0}
compare: [labels-only, guided-distillation, all-labels]
"""
SCENES = ObjectsConfig(styles=(1, 0, 0, 0), objects=(2, 4), radius=(8, 20), parts=0)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instances")
    data = write_coco_dataset(folder / "data", 14, 3, classes=2, size=64, config=SCENES)
    whole = read_json(data / "annotations.json")
    (data / "annotations.json").unlink()
    for part, wanted in (("train", range(1, 11)), ("test", range(11, 15))):
        content = whole | {
            "images": [image for image in whole["images"] if image["id"] in wanted],
            "annotations": [item for item in whole["annotations"] if item["image_id"] in wanted],
        }
        write_json(data / "annotations" / f"instances_{part}.json", content)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def finished(recipe_file: Path) -> Path:
    out = recipe_file.parent / "run"
    run_of(load_recipe(recipe_file), out).execute("eval")
    return out


def test_every_method_is_scored(finished: Path) -> None:
    scores = read_json(finished / "eval" / "scores.json")
    assert list(scores["methods"]) == ["labels-only", "guided-distillation", "fewlabel", "smaller", "all-labels"]
    for row in scores["methods"].values():
        assert row["images"] == 4
        assert 0 <= row["AP"] <= row["AP50"] <= 100
        assert len(row["by_class"]) == 2
    assert read_log(finished / "teach" / LOG)[-1]["val"].keys() == {"AP", "AP50"}


def test_logs_say_which_parts_were_on(finished: Path) -> None:
    logs = {
        path: read_log(finished / path / LOG)[0]
        for path in ("teach", "train/fewlabel", "baselines/guided-distillation", "baselines/labels-only")
    }
    assert "similarity" in logs["teach"]
    assert "similarity" not in read_log(finished / "baselines" / "plain-teacher" / LOG)[0]
    assert logs["train/fewlabel"]["agreement"] > 0
    assert logs["baselines/guided-distillation"]["agreement"] == 0
    assert logs["baselines/guided-distillation"]["pseudo"] > 0
    assert "unlabelled" not in logs["baselines/labels-only"]


def test_the_report_shows_scores_refinement_and_objects(
    finished: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(load_recipe(recipe_file), finished).execute("report")
    page = finished / "report" / "report.html"
    assert f"report: {page.resolve()}" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and not re.search(r"https?://|@import|url\(", html)
    for name, method in (("Labels only", "labels-only"), ("fewlabel", "fewlabel"), ("Smaller student", "smaller")):
        scores = read_json(finished / "eval" / "scores.json")["methods"][method]
        shown = re.findall(r"<td>([^<]*)", html.split(f'<th scope="row">{name}</th>', 1)[1])[:7]
        keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "boundary_AP")
        assert shown == ["–" if scores[key] is None else f"{scores[key]:.1f}" for key in keys]
    for words in (
        "Share accepted",
        "Human label",
        "Pseudo-labels",
        "Refined by SAM",
        "result of nano-SAM",
        "2504.05301",
    ):
        assert words in html
    split = read_json(finished / "split" / "split.json")
    told = set(re.findall(r"<h4><code>([^<]*)</code>", html))
    assert len(told & set(split["unlabelled"])) == 4 and len(told & set(split["test"])) == 4
    assert set(re.findall(r'class="object (accepted|kept|dropped)"', html)) & {"accepted", "kept"}


def test_a_second_run_does_nothing(finished: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    run_of(load_recipe(recipe_file), finished).execute("eval")
    said = capsys.readouterr().out
    assert said.count("already done") == len(S4M.stages) - 1
    assert "guided-distillation" in said
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


def test_changed_settings_are_refused_by_name(finished: Path, recipe_file: Path) -> None:
    with pytest.raises(RunError, match=r"student\.burn_in was 2, is 3"):
        run_of(load_recipe(recipe_file, ("student.burn_in=3",)), finished).execute("train")


def test_kill_9_and_the_same_command_again(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewlabel.cli", "train", str(recipe_file), "--out", str(tmp_path / "run")]
    command += ["--threads", "1", "--device", "cpu", "--set", "teach.checkpoint_seconds=0"]
    command += ["--set", "student.checkpoint_seconds=0"]
    for file in ("teach/log.jsonl", "train/fewlabel/log.jsonl"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / file).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"the run ended before {file} was there"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for file in ("teach/weights.safetensors", "train/fewlabel/weights.safetensors"):
        one, two = load_file(finished / file), load_file(tmp_path / "run" / file)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "run" / "train" / MANIFEST).is_file()


def test_a_stage_of_another_method_is_named(recipe_file: Path, tmp_path: Path) -> None:
    run = run_of(load_recipe(recipe_file), tmp_path)
    with pytest.raises(RunError, match="no stage 'label'; its stages are check, split, teach, train, smaller"):
        run.stage("label")


def test_one_labelled_image_and_a_class_that_nobody_shows(recipe_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recipe_file.parent / "data", data)
    for part in ("train", "test"):
        path = data / "annotations" / f"instances_{part}.json"
        content = read_json(path)
        content["categories"].append({"id": 9, "name": "never seen", "supercategory": "none"})
        content["annotations"] = [item | {"category_id": 1} for item in content["annotations"]]
        write_json(path, content)
    few = (f"data.root={data}", "split.fraction=null", "split.count=1", "split.validation_share=0", "compare=[]")
    short = ("teach.steps=1", "student.steps=1", "smaller=null")
    run_of(load_recipe(recipe_file, (*few, *short)), tmp_path / "run").execute("eval")
    scores = read_json(tmp_path / "run" / "eval" / "scores.json")["methods"]["fewlabel"]
    assert scores["by_class"][2] == dict.fromkeys(scores["by_class"][2]) | {"instances": 0}
    assert scores["AP"] is not None
    card = read_json(tmp_path / "run" / "train" / "fewlabel" / "model.json")
    assert card["classes"][2] == "never seen"
    assert card["threshold"] == 0.5


def test_a_corrupt_image_among_the_unlabelled_is_named_or_listed(recipe_file: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(next((recipe_file.parent / "data" / "images").iterdir()), more / "good.png")
    (more / "broken.png").write_bytes(b"no picture")
    changes = (f"data.unlabelled={more}", "split.fraction=null", "split.count=4")
    with pytest.raises(DataError, match="broken"):
        run_of(load_recipe(recipe_file, changes), tmp_path / "run").execute("split")
    with pytest.raises(DataError, match="'all-labels' cannot be trained; remove it from compare"):
        run_of(load_recipe(recipe_file, changes), tmp_path / "run", keep_going=True).execute("split")
    changes = (*changes, "compare=[labels-only]")
    run = run_of(load_recipe(recipe_file, changes), tmp_path / "run", keep_going=True)
    run.execute("split")
    assert any("good" in id for id in run.split.unlabelled)
    assert not any("broken" in id for id in run.split.unlabelled)


def test_settings_that_cannot_be_met_are_named(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"student\.paste exchanges objects between images, but student\.batch is 1"):
        load_recipe(recipe_file, ("student.batch=1",))
    with pytest.raises(RecipeError, match=r"key 'student\.burnin' does not exist; the keys there are batch, burn_in"):
        load_recipe(recipe_file, ("student.burnin=1",))


def test_another_network_in_the_folder_of_the_start_is_noticed(
    finished: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(finished / "train" / "fewlabel", start)
    changes = (f"network.start={start}", "teach.similarity_weight=0", "teach.steps=1", "split.validation_share=0")
    run_of(load_recipe(recipe_file, changes), tmp_path / "run").execute("teach")
    run_of(load_recipe(recipe_file, changes), tmp_path / "run").execute("teach")
    assert "teach: already done" in capsys.readouterr().out
    shutil.copy(finished / "baselines" / "labels-only" / "weights.safetensors", start)
    with pytest.raises(RunError, match="files of the start"):
        run_of(load_recipe(recipe_file, changes), tmp_path / "run").execute("teach")


def test_without_sam_no_sam_is_asked(recipe_file: Path) -> None:
    plain = ("teach.similarity_weight=0", "student.refine=null", "student.paste=null", "student.batch=1")
    recipe = load_recipe(recipe_file, plain)
    assert isinstance(recipe, InstanceRecipe)
    assert not recipe.asks_sam
