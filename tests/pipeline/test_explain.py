"""Images that a user names: any part of the split, any time, with the gate's own figures."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.masks import components
from fewlabel.core.radiometry import standardise
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.labels.gate import Candidate, decide
from fewlabel.labels.store import LabelStore
from fewlabel.pipeline import explain as module
from fewlabel.pipeline.explain import Explainer, check_id, explain
from fewlabel.pipeline.run import Run
from fewlabel.recipe import load_recipe
from fewlabel.scalpel import transfer
from fewlabel.scalpel.teacher import load_teacher


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose label stage is done; a threshold within an almost untrained teacher's narrow range proposes much."""
    spec = importlib.util.spec_from_file_location("tiny_conftest", Path(__file__).with_name("conftest.py"))
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    folder = tmp_path_factory.mktemp("explained")
    write_dataset(folder / "TINY", train=5, test=1, seed=5, size=48)
    values = tiny.tiny_values(folder / "TINY")
    values["split"] = {"fraction": 0.6, "validation_share": 0.4}
    values["teacher"]["adapter"] = {"gate": "random"}
    values["student"]["compare"] = []
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe(folder / "tiny.yaml"), folder / "run")
    run.execute("teach")
    teacher = load_teacher(run.folder.stage("teach"))
    image = standardise(run.dataset.image(run.split.unlabelled[0]).grey())
    threshold = float(np.quantile(transfer.predict(teacher, image, "one").probability, 0.96))
    gate = {"min_quality": 0.6 * threshold, "min_area": 3}
    values["label"] |= {"threshold": threshold, "margin": 0.1 * threshold, "gate": gate}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe(folder / "tiny.yaml"), folder / "run")
    run.execute("label")
    return run


@pytest.fixture(scope="module")
def explainer(labelled: Run) -> Explainer:
    return Explainer(labelled.recipe, labelled.folder, labelled.dataset, load_teacher(labelled.folder.stage("teach")))


def test_the_figures_are_those_that_the_gate_judged(labelled: Run, explainer: Explainer) -> None:
    """Asked again with the figures of the page, the gate says what the store holds; qualities are the store's too."""
    store, seen = LabelStore(labelled.folder.stage("label") / "labels"), set()
    for id in store.ids():
        label, found = store.get(id), explainer.image(id)
        assert found.trained and len(found.proposals) == len(label.reasons)
        scores = iter((*label.accepted.scores, *label.rejected.scores))
        for number, proposal in enumerate(found.proposals, start=1):
            candidate = Candidate(**{key: proposal.figures[key] for key in Candidate.__dataclass_fields__})
            verdict = decide(candidate, found.labels.size, labelled.recipe.label.gate)
            assert verdict == (proposal.verdict, proposal.reason)
            assert proposal.figures["area"] == (found.labels == number).sum()
            if proposal.verdict != "ignored":
                assert proposal.figures["quality"] == pytest.approx(next(scores), abs=1e-6)
            seen.add(proposal.reason)
        np.testing.assert_array_equal(found.example.target, label.accepted.semantic())
    assert len(seen) >= 2, "the recipe of this test has to give several reasons"


def test_every_part_can_be_named_and_says_what_it_was(labelled: Run, explainer: Explainer) -> None:
    for part in ("train", "validation", "unlabelled", "test"):
        found = explainer.image(getattr(labelled.split, part)[0])
        assert found.trained == (part == "unlabelled")
        assert found.part in (module.PARTS[part], module.LEFT_OUT if part == "unlabelled" else "")
        assert found.example.teacher.shape == found.example.image.shape == found.labels.shape
        assert found.example.truth is not None and found.missed is not None
        _, count = components(found.example.teacher > explainer.threshold)
        assert len(found.proposals) == count  # of the teacher that made the labels, whether stored or made anew
        assert len(found.gates) >= 2 and all(level.tokens is not None for level in found.gates)


def test_before_and_after_the_student_and_again_with_other_images(labelled: Run, tmp_path: Path) -> None:
    ids, (test,) = labelled.split.unlabelled, labelled.split.test
    before = {path: path.stat().st_mtime_ns for path in labelled.path.rglob("*") if path.is_file()}
    explain(labelled.path, [ids[0], ids[0]], tmp_path / "page.html")
    first = (tmp_path / "page.html").read_text()
    assert first.count("<h2>") == 1 and f"<code>{ids[0]}</code>" in first and "<figcaption>student<" not in first
    assert before == {path: path.stat().st_mtime_ns for path in labelled.path.rglob("*") if path.is_file()}
    labelled.execute("train")
    explain(labelled.path, [ids[1], test], tmp_path / "page.html")
    second = (tmp_path / "page.html").read_text()
    assert second.count("<h2>") == 2 and ids[0] not in second and "<figcaption>student<" in second
    assert not Path(labelled.path / "report").exists()


def test_an_unknown_name_gets_the_nearest_ones(labelled: Run, tmp_path: Path) -> None:
    known = labelled.dataset.train_ids[0]
    with pytest.raises(DataError, match=rf"TINY has no image '{known}.png'; the nearest names are {known}, "):
        explain(labelled.path, [known, f"{known}.png"], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="'dark' was rejected by the check: it is empty"):
        check_id("dark", labelled.dataset, {"dark": "it is empty"})


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder whose label stage is done"):
        explain(tmp_path, ["a"], tmp_path / "page.html")
