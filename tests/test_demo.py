"""The demo: what it renders and refuses, and, by `make test-slow`, the whole of it as a newcomer runs it."""

import resource
import socket
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from fewlabel.core.errors import RunError
from fewlabel.data.synth.infrared import InfraredConfig
from fewlabel.pipeline.demo import CAVEAT, SCENES, TRAIN, run_demo
from fewlabel.recipe import parse_recipe


def test_the_images_are_not_of_the_distribution_that_the_teacher_is_taught_on() -> None:
    recipe = parse_recipe(yaml.safe_load((files("fewlabel") / "recipes" / "demo.yaml").read_text()), "demo.yaml")
    taught = recipe.teach.scenes
    assert taught == InfraredConfig()
    assert SCENES.psf[0] >= taught.psf[1]
    assert SCENES.stripes > taught.stripes and SCENES.distractors > taught.distractors
    assert SCENES.read_noise[0] > taught.read_noise[0] and SCENES.read_noise[1] > taught.read_noise[1]
    assert not {"clear_sky", "stratus"} & set(SCENES.kinds)


def test_few_labels_and_the_same_training_for_every_student() -> None:
    recipe = parse_recipe(yaml.safe_load((files("fewlabel") / "recipes" / "demo.yaml").read_text()), "demo.yaml")
    assert recipe.split.fraction is not None and recipe.split.fraction * TRAIN <= 6
    assert recipe.methods == ("labels-only", "synthetic-pretrained", "fewlabel", "all-labels")
    # Rendered scenes before the training are steps that labels-only does not get: their control must be in the table.
    assert recipe.student.synthetic_steps > 0 and "synthetic-pretrained" in recipe.student.compare


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("keep")
    with pytest.raises(RunError, match="holds no demo"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_demo_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.set_num_threads(2)
    began = time.monotonic()
    try:
        run_demo(tmp_path / "demo")
    finally:
        torch.set_num_threads(1)
    assert time.monotonic() - began < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 1024 * 1024
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
    assert CAVEAT in capsys.readouterr().out
