"""The command line: instant help, one sentence and status 2 for a user's error, nothing half-written."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fewlabel import cli
from fewlabel.data.synth.dataset import write_dataset

Call = Callable[..., "Ended"]
RECIPE = Path(__file__).parents[1] / "recipes" / "scalpel-sirst.yaml"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line's entry point in this process, which has imported torch already."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fewlabel", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


def test_help_lists_every_command_without_importing_torch() -> None:
    code = "import sys, fewlabel.cli as c\ntry:\n    c.app(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "print('HEAVY', sorted({'torch', 'transformers', 'scipy', 'numpy', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in result.stdout
    for command in ("run", "demo", "check", "split", "teach", "label", "train", "eval", "report", "export", "predict"):
        assert f" {command} " in result.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data set to damage."""
    folder = tmp_path / "DATA"
    write_dataset(folder, train=6, test=2, seed=1, size=32)
    return folder


def first(folder: Path) -> Path:
    """The first file of a folder by name."""
    return sorted(folder.iterdir())[0]


def truncate(data: Path) -> str:
    """An image that ends in the middle."""
    path = first(data / "images")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)).save(path.with_suffix(".png"))
    path.unlink()
    path = path.with_suffix(".png")
    path.write_bytes(path.read_bytes()[:-40])
    return path.name


def empty(data: Path) -> str:
    """An image file of no bytes."""
    path = first(data / "images")
    path.write_bytes(b"")
    return path.name


def missing_mask(data: Path) -> str:
    """An image without its mask."""
    path = first(data / "masks")
    path.unlink()
    return path.stem


def wrong_size(data: Path) -> str:
    """A mask of another size than its image."""
    path = first(data / "masks")
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(path)
    return path.name


def one_pixel(data: Path) -> str:
    """An image and mask of one pixel."""
    image, mask = first(data / "images"), first(data / "masks")
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(image.with_suffix(".png"))
    image.unlink()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(mask)
    return image.stem


def absent_image(data: Path) -> str:
    """An id in the list without a file."""
    listing = next((data / "img_idx").glob("train*"))
    listing.write_text(listing.read_text() + "ghost\n")
    return "ghost"


def twins(data: Path) -> str:
    """Two files with one stem."""
    path = first(data / "images")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(path.with_suffix(".png"))
    return path.stem


def recipe_for(data: Path) -> Path:
    """The shipped recipe on this data, half of it labelled."""
    values = yaml.safe_load(RECIPE.read_text())
    values["data"]["root"], values["split"]["fraction"] = str(data), 0.5
    path = data.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def all_black(data: Path) -> str:
    """An image of zeros."""
    path = first(data / "images")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(path.with_suffix(".png"))
    path.unlink()
    return path.stem


DAMAGES = [all_black, truncate, empty, missing_mask, wrong_size, one_pixel, absent_image, twins]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bad_data_end_with_one_sentence_and_status_2(data: Path, damage: Callable[[Path], str], call: Call) -> None:
    culprit = damage(data)
    run = data.parent / "run"
    result = call("run", recipe_for(data), "--out", run)
    assert result.returncode == 2, result.stderr
    sentence = [line for line in result.stderr.splitlines() if line.startswith("fewlabel: ")]
    assert len(sentence) == 1 and culprit in sentence[0]
    assert "Traceback" not in result.stderr
    assert not (run / "check" / "check.json").exists() and not (run / "split").exists()


def test_keep_going_quarantines_what_cannot_be_used(data: Path, call: Call) -> None:
    culprits = [truncate(data), absent_image(data)]
    run = data.parent / "run"
    result = call("split", recipe_for(data), "--out", run, "--keep-going")
    assert result.returncode == 0, result.stderr
    rows = (run / "check" / "rejected.csv").read_text()
    assert all(culprit in rows for culprit in culprits) and len(rows.splitlines()) == 3
    assert "ghost" not in (run / "split" / "split.json").read_text()


def test_images_without_targets_are_legal_and_named(data: Path, call: Call) -> None:
    mask = first(data / "masks")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    result = call("check", data)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"images without targets: \d+ \(.*{mask.stem}", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", RECIPE, "--set", "split.fraction=0"), "'split.fraction' is 0"),
        (("run", RECIPE, "--set", "split.fraction=1.5"), "'split.fraction' is 1.5"),
        (("run", RECIPE, "--set", "teach.stpes=3"), "key 'teach.stpes' does not exist"),
        (("run", "absent.yaml"), "absent.yaml does not exist"),
        (("check", "absent"), "absent"),
        (("export", "absent"), "not a run folder"),
        (("predict", "absent.onnx", "absent", "--out", "out"), "absent.onnx"),
        (("run", RECIPE, "--device", "toaster"), "Device 'toaster' cannot be used"),
        (("run", RECIPE, "--set", "student.network=vgg"), "'student.network' is 'vgg'"),
        (("run", RECIPE, "--set", "student.synthetic_steps=0"), "needs synthetic_steps above 0"),
    ],
    ids=[
        "fraction-0",
        "fraction-1.5",
        "unknown-key",
        "no-recipe",
        "no-data",
        "no-run",
        "no-model",
        "no-device",
        "no-network",
        "no-scenes",
    ],
)
def test_wrong_arguments_end_with_one_sentence_and_status_2(
    arguments: tuple[str | Path, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("fewlabel: ") and said in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_in_place_of_files_and_files_in_place_of_folders(data: Path, call: Call, tmp_path: Path) -> None:
    for arguments in (("run", data), ("split", recipe_for(data), "--out", first(data / "images"))):
        result = call(*arguments)
        assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("fewlabel: "), result.stderr
        assert "Traceback" not in result.stderr


def test_a_labelled_share_without_targets_is_refused(data: Path, call: Call) -> None:
    for mask in (data / "masks").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    result = call("split", recipe_for(data), "--out", data.parent / "run")
    assert result.returncode == 2 and "shows a target" in result.stderr
    assert not (data.parent / "run" / "split").exists()
