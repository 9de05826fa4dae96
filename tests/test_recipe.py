"""Recipes: defaults, overrides, and one sentence for each mistake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.errors import RecipeError
from fewlabel.recipe import apply_override, dump_recipe, load_recipe
from fewlabel.students import STUDENTS
from fewlabel.students.detector.train import DetectorConfig
from fewlabel.students.train import StudentConfig

SHIPPED = sorted(Path(__file__).parents[1].glob("recipes/*.yaml")) + sorted(
    (Path(__file__).parents[1] / "src" / "fewlabel" / "recipes").glob("*.yaml")
)
SIRST = next(path for path in SHIPPED if path.stem == "scalpel-sirst")
BOXES = ("student.network=dfine", "student.training={steps: 5, batch: 2}")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.fraction=0", "'split.fraction' is 0, but input should be greater than 0"),
        ("split.fraction=1.5", "'split.fraction' is 1.5, but input should be less than or equal to 1"),
        (
            "split.fractoin=0.1",
            "key 'split.fractoin' does not exist; the keys there are count, fraction, groups, seed, ",
        ),
        ("colour=red", "key 'colour' does not exist; the keys there are data, eval, label"),
        ("student.training.stepps=3", "key 'student.training.stepps' does not exist; the keys there are .*steps"),
        (
            "student.network=acmm",
            "'student.network' is 'acmm', but input should be 'acm', 'alcnet', .* 'unet' or 'dfine'; correct it",
        ),
        ("student.synthetic_steps=0", "'student': compare holds synthetic-pretrained, which needs synthetic_steps"),
        ("student.compare=[mean-teachr]", "'student.compare.0' is 'mean-teachr', but input should be 'labels-only', "),
        (
            "student={training: {batch: 1}, online: true}",
            "'student': training.batch is 1, but a batch that learns online",
        ),
        ("student.mean_teacher.low=0.9", "'student.mean_teacher': low is 0.9 and high 0.7"),
        ("method=magic", "'method' is 'magic', but the methods are scalpel, s4m"),
        ("name", "not of the form section.key=value"),
        ("name.deeper=1", "'name' is a value, not a section"),
        ("split.seed=[", "the value is not YAML"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(SIRST, (override,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.online=true", "'student': online is true, but dfine gives boxes, and only students of masks learn"),
        ("student.compare=[mean-teacher]", "'student': compare holds mean-teacher, but dfine gives boxes"),
        (
            "student.soft_weight=0.5",
            "'student': soft_weight is 0.5, but dfine learns from boxes, .* must be 0; corr",
        ),
        ("student.training.crop=100", "'student.training.crop' is 100, but input should be a multiple of 16"),
        (
            "student.training.bce_weight=1",
            "key 'student.training.bce_weight' does not exist; the keys there are augment, batch, .*crop, .*warmup",
        ),
        ("student.training=3", "'student.training' is 3, but input should be a valid dictionary"),
    ],
)
def test_what_boxes_cannot_have_is_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(SIRST, (*BOXES, override))
    assert "bce_weight," not in str(caught.value) and "\n" not in str(caught.value)


def test_the_network_decides_which_options_a_training_has() -> None:
    masks = load_recipe(SIRST).student
    boxes = load_recipe(SIRST, ("student.network=dfine",)).student
    assert type(masks.training) is StudentConfig and masks.training.crop == 256
    assert type(boxes.training) is DetectorConfig and boxes.training.crop == 128
    assert (boxes.training.steps, boxes.training.precision) == (masks.training.steps, masks.training.precision)
    assert "bce_weight" in masks.model_dump()["training"] and "bce_weight" not in boxes.model_dump()["training"]


@pytest.mark.parametrize("name", [*STUDENTS, "dfine"])
def test_every_student_can_be_asked_for(name: str) -> None:
    assert load_recipe(SIRST, (f"student.network={name}",)).student.network == name


def test_missing_broken_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "absent.yaml")
    for text, message in (("a: [", "not valid YAML"), ("", "holds no keys"), ("name: x", "key 'data' is missing")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "bad.yaml")


@given(st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=4), st.integers())
def test_override_sets_exactly_the_named_place(path: list[str], value: int) -> None:
    values: dict = {"other": {"kept": 1}}
    apply_override(values, f"x.{'.'.join(path)}={value}")
    place = values["x"]
    for key in path:
        place = place[key]
    assert place == value and values["other"] == {"kept": 1}
