"""A recipe's options on data: layouts, further images, radiometry, counts and groups, up to the split."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from fewlabel.core.errors import DataError, FewlabelError, RecipeError
from fewlabel.core.files import read_json
from fewlabel.data.readers import open_folder
from fewlabel.data.writers import convert
from fewlabel.pipeline.run import Run, check_folder
from fewlabel.recipe import load_recipe


def split_of(path: Path, folder: Path, *overrides: str) -> Run:
    run = Run(load_recipe(path, ("student.compare=[labels-only]", *overrides)), folder)
    run.execute("split")
    return run


def test_the_same_data_in_another_layout_are_split_alike(recipe_file: Path, scenes: Path, tmp_path: Path) -> None:
    convert(open_folder(scenes), tmp_path / "coco", "coco")
    plain = split_of(recipe_file, tmp_path / "a")
    other = split_of(recipe_file, tmp_path / "b", f"data.root={tmp_path / 'coco'}")
    assert plain.split.sha256 == other.split.sha256
    assert (tmp_path / "b" / "check" / "check.html").is_file()


def test_further_images_are_unlabelled_training_images(recipe_file: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    for source in sorted((scenes / "images").iterdir())[:3]:
        (tmp_path / "film" / source.name).write_bytes(source.read_bytes())
    further = f"data.unlabelled={tmp_path / 'film'}"
    run = split_of(recipe_file, tmp_path / "run", further, "split.fraction=null", "split.count=5")
    assert len(run.split.labelled) == 5
    assert sum(id.startswith("unlabelled__") for id in run.split.unlabelled) == 3
    (tmp_path / "film" / "more.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"film/more.png is not an image"):
        split_of(recipe_file, tmp_path / "run", further, "split.fraction=null", "split.count=5")


def test_of_further_sequences_every_so_many_frames_are_taken(recipe_file: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "flight" / "day").mkdir(parents=True)
    for number, source in enumerate(sorted((scenes / "images").iterdir())[:7]):
        (tmp_path / "flight" / "day" / f"{number}.png").write_bytes(source.read_bytes())
    options = (f"data.unlabelled={tmp_path / 'flight'}", "data.unlabelled_every=3", "split.fraction=null")
    run = split_of(recipe_file, tmp_path / "run", *options, "split.count=5")
    taken = [id for id in run.split.unlabelled if id.startswith("unlabelled__")]
    assert taken == ["unlabelled__day__0", "unlabelled__day__3", "unlabelled__day__6"]
    assert len(run.split.labelled) == 5  # the data set's own images are all there


def test_further_images_have_groups_of_their_own_and_a_layout(
    recipe_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    Pillow.effect_noise((32, 32), 40).save(tmp_path / "more" / "cam0.png")
    further = (f"data.unlabelled={tmp_path / 'more'}", "split.fraction=null", r"split.groups=(scene_000\d)")
    run = split_of(recipe_file, tmp_path / "run", *further)
    assert "unlabelled__cam0" in run.split.unlabelled
    assert f"{tmp_path / 'more'}: format: plain, because it holds images" in capsys.readouterr().out
    with pytest.raises(DataError, match="has no folder 'images'"):
        split_of(recipe_file, tmp_path / "other", *further, "data.unlabelled_format=sirst")


def test_labels_that_are_boxes_are_told(
    recipe_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(open_folder(scenes), tmp_path / "boxes", "yolo-boxes")
    split_of(recipe_file, tmp_path / "run", f"data.root={tmp_path / 'boxes'}")
    assert "labels: boxes" in capsys.readouterr().out
    split_of(recipe_file, tmp_path / "masks")
    assert "labels: boxes" not in capsys.readouterr().out


def test_radiometry_reaches_every_image(recipe_file: Path, tmp_path: Path) -> None:
    run = split_of(recipe_file, tmp_path / "run", "data.radiometry={policy: fixed, low: 0, high: 65535}")
    image = run.dataset.image(run.split.train[0])
    assert image.radiometry.policy == "fixed" and abs(image.normalised()).max() <= 1.74


def test_groups_are_not_torn(recipe_file: Path, scenes: Path, tmp_path: Path) -> None:
    run = split_of(recipe_file, tmp_path / "run", r"split.groups=(scene_000\d)")
    parts = [{id[:10] for id in part} for part in (run.split.train, run.split.validation, run.split.unlabelled)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    with pytest.raises(RecipeError, match="no parentheses"):
        split_of(recipe_file, tmp_path / "run", "split.groups=scene")


def test_twins_stay_together(recipe_file: Path, scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for source in sorted((scenes / part).iterdir())[:8]:
            for copy in ("", "_again"):
                (root / part / f"{source.stem}{copy}{source.suffix}").write_bytes(source.read_bytes())
    run = split_of(recipe_file, tmp_path / "run", f"data.root={root}", "split.twins_together=true")
    for part in (run.split.train, run.split.validation, run.split.unlabelled):
        names = [id.removesuffix("_again") for id in part]
        assert all(names.count(name) == 2 for name in names)
    assert read_json(tmp_path / "run" / "check" / "check.json")["duplicates"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("split.count=3",), "only one of them can be met"),
        (("data.unlabelled=more",), "give split.count instead"),
        (("data.radiometry.policy=fixed",), "needs low"),
        (("data.radiometry.policy=magic",), "'data.radiometry.policy' is 'magic'"),
        (("data.format=xls",), "'data.format' is 'xls', but input should be 'auto', 'coco'"),
        (("data.max_pixels=100",), "more than the limit of 100"),
        (("split.fraction=null", "split.count=13"), "13 masks, but only 12 exist"),
    ],
)
def test_mistakes_are_one_sentence(overrides: tuple[str, ...], said: str, recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FewlabelError) as caught:
        split_of(recipe_file, tmp_path / "run", *overrides)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "split").exists()


def test_files_that_changed_before_anything_costly_are_named(
    recipe_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    split_of(recipe_file, tmp_path / "run", f"data.root={tmp_path / 'data'}")
    assert "have changed" not in capsys.readouterr().out
    mask = sorted((tmp_path / "data" / "masks").iterdir())[0]
    Pillow.fromarray(np.asarray(Pillow.open(mask))[::-1]).save(mask)
    split_of(recipe_file, tmp_path / "run", f"data.root={tmp_path / 'data'}")
    assert f"files of {tmp_path / 'data'} have changed: " in (said := capsys.readouterr().out)
    assert mask.name in said


def test_a_test_part_that_is_lost_is_told(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(open_folder(scenes), tmp_path / "coco", "coco")
    part = tmp_path / "coco" / "annotations" / "instances_test.json"
    part.write_text(part.read_text()[:-40])
    check_folder(tmp_path / "coco", keep_going=True, out=tmp_path / "out")
    assert "warning: there is no test image" in capsys.readouterr().out
    check_folder(scenes, keep_going=True)
    assert "warning: there is no test image" not in capsys.readouterr().out


def test_pictures_without_any_label_are_named(recipe_file: Path, tmp_path: Path) -> None:
    Pillow.effect_noise((32, 32), 40).save(tmp_path / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "photos" / "a.png")
    with pytest.raises(DataError, match="no training image has a mask"):
        split_of(recipe_file, tmp_path / "run", f"data.root={tmp_path / 'photos'}", "split.fraction=null")
