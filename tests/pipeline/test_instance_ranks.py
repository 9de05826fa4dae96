"""The recipes for four GPUs, with tiny networks and two processes over gloo: from the data to the scores."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow
from safetensors.torch import load_file
from tests.pipeline.conftest import tiny_values
from tests.sam.tiny_sam import tiny_sam2

from fewlabel.core.files import read_json, write_json
from fewlabel.data.instance_crops import RecordPool, record_loaders
from fewlabel.data.synth.objects import ObjectsConfig, catalogue_for, render
from fewlabel.data.synth.objects_coco import write_coco_dataset
from fewlabel.pipeline.folder import MANIFEST, S4M
from fewlabel.pipeline.instance_run import InstanceRun
from fewlabel.pipeline.instance_scoring import load_network
from fewlabel.pipeline.instance_stages import fresh_network, score
from fewlabel.recipe import InstanceRecipe, load_recipe
from fewlabel.s4m.batches import stacked
from fewlabel.s4m.teacher import Labelled
from fewlabel.sam.catalogue import find
from fewlabel.training.log import LOG, read_log
from fewlabel.training.loop import WEIGHTS, _step_seed

RECIPES = Path(__file__).parents[2] / "recipes"
SCENES = ObjectsConfig(styles=(1, 0, 0, 0), objects=(2, 4), radius=(8, 20), parts=0)
TRAIN, TEST = 8, 2
CARS, BICYCLES = 26, 33  # Cityscapes' ids of the rendered classes

TINY = {  # what makes the recipes small; all else is as shipped, bfloat16 and the batches included
    "split.fraction": 0.5,
    "network": {"name": "nano"},
    "crops.crop": 64,
    "teach.steps": 2,
    "teach.points": 4,
    "teach.log_every": 1,
    "student.steps": 2,
    "student.burn_in": 1,
    "student.log_every": 1,
    "student.filter": {"class_threshold": 0.0, "min_mass": 0.0},
    "eval.side": 64,
}


def street_scenes(root: Path) -> Path:
    """Rendered scenes in Cityscapes' layout, two cities to train on and one held out."""
    catalogue = catalogue_for(np.random.default_rng([3, 0, 1]), "generic", SCENES, 2)
    for k in range(TRAIN + TEST):
        scene = render(np.random.default_rng([3, k, 2]), 64, SCENES, catalogue)
        numbers = np.full(scene.labels.shape, 7, np.uint16)  # road
        for index, kind in enumerate(scene.classes):
            numbers[scene.labels == index + 1] = (CARS, BICYCLES)[kind] * 1000 + index
        part, city = ("train", ("aachen", "ulm")[k % 2]) if k < TRAIN else ("val", "lindau")
        stem = f"{city}_000000_{k:06d}"
        for folder, ending, pixels in (
            ("leftImg8bit", "leftImg8bit", np.ascontiguousarray(scene.pixels.transpose(1, 2, 0))),
            ("gtFine", "gtFine_instanceIds", numbers),
        ):
            path = root / folder / part / city / f"{stem}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(pixels).save(path)
    return root


def common_objects(root: Path) -> Path:
    """Rendered scenes in the layout of COCO 2017."""
    write_coco_dataset(root, TRAIN + TEST, 3, classes=2, size=64, config=SCENES)
    whole = read_json(root / "annotations.json")
    for part, images in (("train2017", whole["images"][:TRAIN]), ("val2017", whole["images"][TRAIN:])):
        wanted = {image["id"] for image in images}
        annotations = [item for item in whole["annotations"] if item["image_id"] in wanted]
        write_json(
            root / "annotations" / f"instances_{part}.json", whole | {"images": images, "annotations": annotations}
        )
        (root / part).mkdir()
        for image in images:
            (root / "images" / image["file_name"]).rename(root / part / image["file_name"])
    (root / "images").rmdir()
    (root / "annotations.json").unlink()
    return root


LAYOUTS = {"s4m-cityscapes": street_scenes, "s4m-coco": common_objects}


def start(arguments: list[str], count: int) -> list[subprocess.Popen]:
    """The command in several processes that belong together, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_CPU": "true"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fewlabel.cli", *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    """Exit status, standard output and standard error of each process."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [error for _, error in said]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets and a SAM 2 with random weights."""
    folder = tmp_path_factory.mktemp("scale")
    tiny_sam2().save_pretrained(folder / "sam")
    for name, render_into in LAYOUTS.items():
        render_into(folder / name)
    return folder


def overrides(folder: Path, name: str, **more: object) -> tuple[str, ...]:
    """The recipe's values that make it tiny, as on the command line."""
    values = {**TINY, "data.root": str(folder / name), "sam": str(folder / "sam"), **more}
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


def command(folder: Path, name: str, out: Path, stage: str = "eval", **more: object) -> list[str]:
    """The command line of a tiny run."""
    sets = [word for text in overrides(folder, name, **more) for word in ("--set", text)]
    return [stage, str(RECIPES / f"{name}.yaml"), "--out", str(out), "--device", "cpu", "--threads", "1", *sets]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path) -> dict[str, Path]:
    """Both recipes run to the scores, one as `accelerate launch` starts it, which takes GPUs where there are some."""
    runs = {name: tiny_folder / f"{name}-run" for name in LAYOUTS}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "-m", "fewlabel.cli"]
    launched = subprocess.Popen(
        [*launcher, *command(tiny_folder, "s4m-coco", runs["s4m-coco"])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tiny_folder / "hub")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    codes, _, errors = ended([*start(command(tiny_folder, "s4m-cityscapes", runs["s4m-cityscapes"]), 2), launched])
    assert codes == [0, 0, 0], errors
    return runs


@pytest.mark.parametrize("name", LAYOUTS)
def test_shipped_recipes_are_for_these_sets(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert isinstance(recipe, InstanceRecipe)
    assert recipe.asks_sam and recipe.student.refine is not None and recipe.student.refine.gate is not None
    entry = find(recipe.sam)
    assert entry is not None and entry.title == "SAM 2.1 Hiera-L"
    assert recipe.student.paste is not None
    placement = {"s4m-cityscapes": "static", "s4m-coco": "dynamic"}[name]
    assert (recipe.student.paste.placement, recipe.data.format) == (placement, name.removeprefix("s4m-"))
    assert recipe.student.burn_in < recipe.student.steps == recipe.teach.steps
    # Four processes make the published batches.
    assert (4 * recipe.teach.batch, 4 * recipe.student.batch) == {"static": (4, 16), "dynamic": (16, 12)}[placement]


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_said_to_cost_so_much_is_what_is_shipped(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert isinstance(recipe, InstanceRecipe)
    counted = read_json(RECIPES.parent / "benchmarks" / "s4m" / "cost.json")["recipes"][name]
    assert counted["crop"] == recipe.crops.crop
    for stage, config in (("teach", recipe.teach), ("student", recipe.student)):
        assert (counted[stage]["steps"], counted[stage]["batch"]) == (config.steps, config.batch)
        low, high = counted[stage]["hours"]
        page = (RECIPES.parent / "docs" / "methods" / "s4m-at-scale.md").read_text()
        assert f"| {low:,.0f} to {high:,.0f} |" in page


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_reach_the_scores(finished: dict[str, Path], name: str) -> None:
    run = finished[name]
    row = read_json(run / "eval" / "scores.json")["methods"]["fewlabel"]
    assert row["images"] == TEST and math.isfinite(row["AP"])
    assert all((run / stage / MANIFEST).is_file() for stage in S4M.until("eval"))
    taught, guided = read_log(run / "teach" / LOG), read_log(run / "train" / "fewlabel" / LOG)
    assert [line["step"] for line in taught] == [line["step"] for line in guided] == [1, 2]  # written by one rank
    assert all(line["similarity"] > 0 for line in taught)
    assert guided[0]["pseudo"] > 0 and guided[0]["unlabelled"] > 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_logged_terms_are_means_over_the_ranks(finished: dict[str, Path], tiny_folder: Path, name: str) -> None:
    """The first step, done here for one rank after the other; masks must not weigh more because there are two."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides(tiny_folder, name))
    assert isinstance(recipe, InstanceRecipe)
    run = InstanceRun(recipe, finished[name])
    network = fresh_network(recipe, recipe.network, len(run.dataset.classes), pretrained=True).train()
    pool = RecordPool(record_loaders(run.dataset, run.split.train))
    labelled, terms = Labelled(pool.draw, recipe.teach, recipe.crops, recipe.seed, "cpu"), []
    for batch in range(2):
        views = labelled(batch)
        torch.manual_seed(_step_seed(recipe.seed, batch))
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            terms.append(network.loss_terms(network(stacked(views)), views))
    logged = read_log(finished[name] / "teach" / LOG)[0]
    for key in ("class", "mask", "dice"):
        assert logged[key] == pytest.approx(float(terms[0][key] + terms[1][key]) / 2, rel=1e-3), key


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_are_whole_and_written_once(finished: dict[str, Path], name: str) -> None:
    found = {str(path.relative_to(finished[name])) for path in finished[name].rglob("*") if path.is_file()}
    assert not [file for file in found if Path(file).name.startswith((".", "checkpoint", "started"))]
    assert {"teach/weights.safetensors", "train/fewlabel/weights.safetensors", "recipe.yaml"} <= found
    assert len([file for file in found if file.endswith(WEIGHTS)]) == 2


def test_what_was_written_scores_what_was_said(finished: dict[str, Path], tiny_folder: Path) -> None:
    name = "s4m-cityscapes"
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides(tiny_folder, name))
    assert isinstance(recipe, InstanceRecipe)
    run = InstanceRun(recipe, finished[name])
    network = load_network(recipe, run.folder, "fewlabel", len(run.dataset.classes))
    again = score(network, run.dataset, run.split.test, recipe.eval.side).compute()
    said = read_json(finished[name] / "eval" / "scores.json")["methods"]["fewlabel"]
    assert {key: again[key] for key in ("AP", "AP50", "images")} == {key: said[key] for key in ("AP", "AP50", "images")}


def test_two_ranks_again_do_nothing(finished: dict[str, Path], tiny_folder: Path) -> None:
    name = "s4m-cityscapes"
    before = {path: path.stat().st_mtime_ns for path in finished[name].rglob("*.safetensors")}
    codes, said, errors = ended(start(command(tiny_folder, name, finished[name]), 2))
    assert codes == [0, 0], errors
    assert said[0].count("already done") == len(S4M.until("eval"))
    assert said[1] == ""
    assert before == {path: path.stat().st_mtime_ns for path in finished[name].rglob("*.safetensors")}


def test_what_the_first_rank_cannot_read_ends_both(tiny_folder: Path, tmp_path: Path) -> None:
    lost = {"data.root": str(tmp_path / "nowhere")}
    codes, _, errors = ended(start(command(tiny_folder, "s4m-coco", tmp_path / "run", **lost), 2))
    assert codes == [2, 2]
    assert all(error.startswith("fewlabel: ") and error.count("\n") == 1 and "nowhere" in error for error in errors)
    assert not (tmp_path / "run").exists()


def test_a_method_of_one_process_says_so_in_both(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values(scenes)))
    codes, _, errors = ended(start(["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")], 2))
    assert codes == [2, 2]
    sentence = "fewlabel: A recipe of method 'scalpel' trains in one process, but 2 were started;"
    assert all(error.startswith(sentence) and error.count("\n") == 1 for error in errors), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_that_were_stopped_end_with_the_same_weights(tiny_folder: Path, tmp_path: Path) -> None:
    longer = {"teach.steps": 40, "teach.checkpoint_seconds": 0}
    one, two = (command(tiny_folder, "s4m-cityscapes", tmp_path / run, "teach", **longer) for run in ("one", "two"))
    assert ended(start(one, 2))[0] == [0, 0]
    processes = start(two, 2)
    deadline = time.monotonic() + 240
    while not (tmp_path / "two" / "teach" / LOG).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)  # the other one is told by it
    codes, _, errors = ended(processes)
    assert codes == [130, 130], errors
    assert not (tmp_path / "two" / "teach" / WEIGHTS).exists()
    assert ended(start(two, 2))[0] == [0, 0]
    before, after = (load_file(tmp_path / run / "teach" / WEIGHTS) for run in ("one", "two"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
