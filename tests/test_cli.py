"""The command line: instant help, one sentence and status 2 for a user's error, nothing half-written."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fewlabel import cli
from fewlabel.data.synth.dataset import write_dataset
from fewlabel.sam import families
from fewlabel.sam.nano import NANO_FOLDER

Call = Callable[..., "Ended"]
FIXTURES = Path(__file__).parent / "sam" / "fixtures"
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
    for command in (
        "run",
        "demo",
        "check",
        "split",
        "teach",
        "label",
        "train",
        "eval",
        "report",
        "export",
        "explain",
        "predict",
        "sam",
    ):
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


def test_a_folder_without_masks_is_told_what_is_missing(data: Path, call: Call) -> None:
    shutil.rmtree(data / "masks")
    shutil.rmtree(data / "img_idx")  # test images have to have masks
    result = call("check", data)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("no labels: ")]
    assert "in masks/ under the name of its image" in line and "nothing can be trained" in line


def test_keep_going_says_where_the_rejected_are_even_when_there_are_none(data: Path, call: Call) -> None:
    out = data.parent / "out"
    result = call("check", data, "--keep-going", "--out", out)
    assert f"written: {out / 'check.html'}, {out / 'check.json'} and {out / 'rejected.csv'}" in result.stdout
    assert "format: sirst, because it holds" in result.stdout and (out / "check.html").is_file()
    assert (out / "rejected.csv").read_text() == "id,file,reason\n"
    before = sorted(data.rglob("*"))
    assert "nothing was written; --out FOLDER writes" in call("check", data, "--keep-going").stdout
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", RECIPE, "--set", "split.fraction=0"), "'split.fraction' is 0"),
        (("check", RECIPE, "--format", "coco"), "belong to a data set"),
        (("preview", RECIPE, "--max-pixels", "9"), "belong to a data set"),
        (("run", RECIPE, "--set", "split.fraction=1.5"), "'split.fraction' is 1.5"),
        (("run", RECIPE, "--set", "teach.stpes=3"), "key 'teach.stpes' does not exist"),
        (("run", "absent.yaml"), "absent.yaml does not exist"),
        (("check", "absent"), "absent does not exist; give the folder"),
        (("export", "absent"), "not a run folder"),
        (("explain", "absent", "image"), "absent is no run folder whose label stage is done"),
        (("predict", "absent.onnx", "absent", "--out", "out"), "absent.onnx"),
        (("run", RECIPE, "--device", "toaster"), "Device 'toaster' cannot be used"),
        (("run", RECIPE, "--set", "student.network=vgg"), "'student.network' is 'vgg'"),
        (("run", RECIPE, "--set", "student.synthetic_steps=0"), "needs synthetic_steps above 0"),
        (("pretrain", "--preset", "tpu", "--device", "cpu"), "no pre-training preset 'tpu'"),
    ],
    ids=[
        "fraction-0",
        "format-of-a-recipe",
        "limit-of-a-recipe",
        "fraction-1.5",
        "unknown-key",
        "no-recipe",
        "no-data",
        "no-run",
        "no-labels",
        "no-model",
        "no-device",
        "no-network",
        "no-scenes",
        "no-preset",
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


def test_layout_and_limit_are_the_users_choice(data: Path, call: Call) -> None:
    for arguments, said in (
        (("--format", "foo"), "no data format 'foo'; choose one of auto, coco"),
        (("--max-pixels", "9"), "more than the limit of 9"),
    ):
        result = call("check", data, *arguments)
        assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert "format: masks, as asked for" in call("check", data, "--format", "masks").stdout


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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub within reach, and nothing of it kept on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_original_checkpoint_is_told_converted_and_used(tmp_path: Path, data: Path, call: Call) -> None:
    original, folder = FIXTURES / "sam.pth", tmp_path / "converted"
    told = call("sam", "info", original)
    assert told.returncode == 0 and f"fewlabel sam convert {original} OUT" in told.stdout, told.stderr
    converted = call("sam", "convert", original, folder)
    assert converted.returncode == 0, converted.stderr
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    assert f"sha256 {sha256}  sam.pth" in converted.stdout
    told = call("sam", "info", folder)
    assert told.returncode == 0 and "family     sam\n" in told.stdout, told.stderr
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in told.stdout
    for path in sorted((data / "images").iterdir())[1:]:
        path.unlink()
    done = call("sam", "embed", data / "images", "--sam", folder, "--cache", tmp_path / "cache", "--device", "cpu")
    assert done.returncode == 0 and "1 images: 1 encoded" in done.stdout, done.stderr


def test_images_are_encoded_once(tmp_path: Path, data: Path, call: Call) -> None:
    command = ("sam", "embed", data / "images", "--cache", tmp_path / "cache", "--cache-gb", "0.5", "--device", "cpu")
    for said in ("8 images: 8 encoded, 0.0 % were there already", "8 images: 0 encoded, 100.0 % were there already"):
        done = call(*command)
        assert done.returncode == 0 and said in done.stdout, done.stderr
        assert "did not fit" not in done.stdout
    few = call("sam", "embed", data / "images", "--cache", tmp_path / "few", "--cache-gb", "0.001", "--device", "cpu")
    assert few.returncode == 0 and "did not fit into --cache-gb 0.001" in few.stdout, few.stderr
    wrong = call("sam", "embed", tmp_path / "nowhere", "--cache", tmp_path / "new", "--device", "cpu")
    assert wrong.returncode == 2 and "is not a folder" in wrong.stderr
    assert not (tmp_path / "new").exists()


class Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def pickle_with_code(folder: Path) -> Path:
    """A checkpoint that would run code."""
    torch.save({"model": Payload(folder / "ran")}, folder / "sam_vit_b.pth")
    return folder / "sam_vit_b.pth"


def truncated_original(folder: Path) -> Path:
    """The first half of a download."""
    whole = (FIXTURES / "sam.pth").read_bytes()
    (folder / "sam.pth").write_bytes(whole[: len(whole) // 2])
    return folder / "sam.pth"


def foreign_original(folder: Path) -> Path:
    """Weights of something else."""
    torch.save({"bert.embeddings.weight": torch.zeros(3, 3)}, folder / "bert.pth")
    return folder / "bert.pth"


def truncated_folder(folder: Path) -> Path:
    """nano-SAM, cut."""
    (folder / "config.json").write_bytes((NANO_FOLDER / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((NANO_FOLDER / "model.safetensors").read_bytes()[:200_000])
    return folder


def foreign_folder(folder: Path) -> Path:
    """nano-SAM's configuration with weights of something else."""
    (folder / "config.json").write_bytes((NANO_FOLDER / "config.json").read_bytes())
    save_file({"bert.embeddings.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    return folder


def other_family(folder: Path) -> Path:
    """Weights of SAM 2 that call themselves SAM."""
    (folder / "config.json").write_text('{"model_type": "sam"}')
    (folder / "model.safetensors").write_bytes((NANO_FOLDER / "model.safetensors").read_bytes())
    return folder


def other_model(folder: Path) -> Path:
    """A folder of another kind of model."""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"bert.embeddings.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "make", [pickle_with_code, truncated_original, foreign_original], ids=lambda make: make.__name__
)
def test_bad_originals_end_with_one_sentence_and_status_2(
    make: Callable[[Path], Path], tmp_path: Path, call: Call
) -> None:
    checkpoint, out = make(tmp_path), tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    for command in (("info", checkpoint), ("convert", checkpoint, out)):
        ended = call("sam", *command)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"fewlabel: {checkpoint}") and ended.stderr.count("\n") == 1, ended.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "make",
    [truncated_folder, foreign_folder, other_family, other_model, truncated_original],
    ids=lambda make: make.__name__,
)
def test_bad_checkpoints_end_with_one_sentence_and_status_2(
    make: Callable[[Path], Path], tmp_path: Path, data: Path, call: Call
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    checkpoint = make(checkpoint)
    for command in (
        ("info", checkpoint),
        ("embed", data / "images", "--sam", checkpoint, "--cache", tmp_path / "cache"),
    ):
        ended = call("sam", *command)
        assert ended.returncode == 2
        sentence = ended.stderr
        assert sentence.startswith("fewlabel: ") and sentence.count("\n") == 1 and str(checkpoint) in sentence, sentence
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sam", "facebook/sam-vit-base"), "facebook/sam-vit-base is neither a folder nor"),
        (("--sam", "sam2.1-large"), "sam2.1-large is neither a folder nor"),
        (("--sam", "sam3"), "SAM License of 2025-11-19: derivatives stay under it, and military"),
        (("--sam", "mobile-sam"), "fewlabel sam convert"),
        (("--cache-gb", "0"), "0.0 GB"),
        (("--precision", "fp8"), "'fp8' is no precision"),
    ],
    ids=["hub", "short-name", "sam3", "mobile-sam", "no-cache", "precision"],
)
def test_embed_refuses_with_one_sentence(
    arguments: tuple[str, ...], said: str, data: Path, call: Call, tmp_path: Path
) -> None:
    ended = call("sam", "embed", data / "images", "--cache", tmp_path / "cache", *arguments)
    assert ended.returncode == 2 and said in ended.stderr
    assert ended.stderr.startswith("fewlabel: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("offline")
def test_a_recipe_takes_sam3_only_with_consent(data: Path, call: Call) -> None:
    command = ("teach", recipe_for(data), "--out", data.parent / "run", "--set", "teacher.sam=sam3", "--device", "cpu")
    ended = call(*command)
    assert ended.returncode == 2 and "give --allow-sam3" in ended.stderr.splitlines()[-1], ended.stderr
    families._say.cache_clear()
    ended = call(*command, "--allow-sam3")
    lines = [line for line in ended.stderr.splitlines() if "SAM 3" in line or line.startswith("fewlabel: ")]
    assert ended.returncode == 2 and len(lines) == 2, ended.stderr
    assert lines[0].startswith("Licence notice: SAM 3 is under the SAM License of 2025-11-19")
    assert lines[1].startswith("fewlabel: sam3 is neither a folder nor a checkpoint that can be fetched")
