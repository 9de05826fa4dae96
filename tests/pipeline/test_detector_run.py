"""A whole run with a student that gives boxes: trained on pseudo-labels, scored, shown, exported and used."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fewlabel.core.errors import RunError
from fewlabel.deploy.predict import predict_folder
from fewlabel.deploy.runtime import OnnxStudent
from fewlabel.pipeline.explain import explain
from fewlabel.pipeline.export import export_run
from fewlabel.pipeline.folder import SCALPEL
from fewlabel.pipeline.run import Run
from fewlabel.pipeline.scoring import score_table
from fewlabel.pipeline.trained import load_student
from fewlabel.recipe import load_recipe
from fewlabel.students.detector.network import Detector

METHODS = ("labels-only", "synthetic-pretrained", "fewlabel")
OPEN = {"min_quality": 0, "max_spread": 0.5, "max_area_share": 1, "min_contrast": -100, "min_support": 0}


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a few steps whose teacher, hardly taught, is believed, so that there are pseudo-labels."""
    folder = tmp_path_factory.mktemp("boxes")
    values = {
        "name": "boxes",
        "data": {"root": str(scenes)},
        "split": {"fraction": 0.5, "validation_share": 0.2},
        "teacher": {"sam": "nano", "adapter": None, "experts": "none"},
        "teach": {"steps": 2, "batch": 1, "log_every": 1},
        "label": {"views": "one", "threshold": 0.01, "gate": OPEN},
        "student": {
            "network": "dfine",
            "training": {"steps": 3, "batch": 2, "crop": 48, "log_every": 1},
            "synthetic_steps": 2,
            "compare": METHODS[:2],
        },
    }
    (folder / "boxes.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe(folder / "boxes.yaml"), folder / "run")
    run.execute()
    return run


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_method_is_scored_by_boxes(finished: Run) -> None:
    scores = content(finished.path / "eval" / "scores.json")
    assert tuple(scores["methods"]) == METHODS and "threshold" not in scores
    for method, found in scores["methods"].items():
        stage = "train" if method == "fewlabel" else "baselines"
        assert found["images"] == 3 and found["boxes"] == 4
        assert {"AP50", "AP", "AR50", "AR", "precision", "recall"} <= set(found) and "IoU" not in found
        assert found["threshold"] == content(finished.path / stage / method / "threshold.json")["value"]
    truth = scores["pseudo_labels"]["truth"]
    assert {"IoU", "Pd", "AP50", "recall"} <= set(truth) and scores["pseudo_labels"]["accepted"] > 0


def test_the_table_has_dashes_where_masks_are_scored(finished: Run) -> None:
    head, *rows, last = score_table(finished.path / "eval").splitlines()
    assert head.split()[:7] == ["method", "AP50", "%", "AP", "%", "AR50", "%"] and head.endswith("(test list)")
    assert [row.split()[0] for row in rows] == list(METHODS)
    assert all(row.split()[-2:] == ["–", "–"] for row in rows)
    assert last.startswith("(pseudo-labels)") and "–" not in last.split()[-2:]
    assert max(map(len, (head, *rows, last))) <= 100


def test_training_logs_validation_by_boxes_and_starts_where_the_scenes_ended(finished: Run) -> None:
    lines = (finished.path / "train" / "fewlabel" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {"vfl", "bbox", "giou"} <= set(next(record for record in records if "loss" in record))
    assert [set(record["val"]) for record in records if "val" in record][-1] == {"AP50", "AP", "AR50"}
    for method in METHODS:
        student = load_student(finished.recipe, finished.folder, method)
        assert isinstance(student, Detector) and student.frame == 48 and not student.training
    assert (finished.path / "synthetic" / "weights.safetensors").is_file()


def test_report_and_explanation_show_boxes(finished: Run, tmp_path: Path) -> None:
    page = (finished.path / "report" / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "AP50 gain" in text and "IoU gain" not in text and "points of AP50" in text or "AP50 is level" in text
    assert page.count(">student<") == 8 and "box(es) of the student" in page
    ids = [finished.split.unlabelled[0], finished.split.test[0], finished.split.train[0]]
    explain(finished.path, ids, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count(">student<") == 3 and "box(es) of the student" in page


def test_a_lost_threshold_is_chosen_again(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    lost = tmp_path / "run" / "train" / "fewlabel" / "threshold.json"
    before = lost.read_bytes()
    lost.unlink()
    Run(finished.recipe, tmp_path / "run").execute("train")
    assert "train: done in" in capsys.readouterr().out and lost.read_bytes() == before
    Run(finished.recipe, finished.path).execute()
    assert capsys.readouterr().out.count("already done") == len(SCALPEL.stages)


def test_the_size_of_the_frames_is_a_setting(finished: Run) -> None:
    changed = load_recipe(finished.path / "recipe.yaml", ("student.training.crop=64",))
    with pytest.raises(RunError, match=r"Stage 'synthetic' .*\(student.training.crop was 48, is 64\)"):
        Run(changed, finished.path).execute("train")


@pytest.mark.slow  # the export of a detector takes most of a minute
def test_export_and_predict(finished: Run, scenes: Path, tmp_path: Path) -> None:
    parity = export_run(finished.path, tmp_path / "model.onnx", images=3)
    assert parity.passed and parity.images == 3
    proof = content(tmp_path / "model.parity.json")
    assert proof["passed"] is True and proof["compared"] >= 6
    info = OnnxStudent(tmp_path / "model.onnx").info
    record = content(finished.path / "train" / "fewlabel" / "threshold.json")
    chosen = record["value"]
    assert info.extra["threshold_chosen"] == record
    assert (info.student, info.frame, info.threshold) == ("dfine", 48, chosen)
    summary = predict_folder(tmp_path / "model.onnx", scenes / "images", tmp_path / "out")
    coco = content(tmp_path / "out" / "predictions.json")
    assert summary.images == len(coco["images"]) == 15 and summary.targets == len(coco["annotations"])
    assert not (tmp_path / "out" / "masks").exists()
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 15
    boxes = np.array([found["bbox"] for found in coco["annotations"]]).reshape(-1, 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 48.001).all()
    assert all(found["score"] > chosen - 1e-6 for found in coco["annotations"])
