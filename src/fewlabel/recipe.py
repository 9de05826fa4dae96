"""The typed recipe: one model behind the YAML file, the command line's overrides and Python."""

import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fewlabel.core.errors import RecipeError
from fewlabel.core.radiometry import Radiometry
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.readers import FORMATS
from fewlabel.scalpel.distill import TeachConfig
from fewlabel.scalpel.teacher import TeacherConfig
from fewlabel.scalpel.transfer import PseudoConfig
from fewlabel.students import STUDENTS
from fewlabel.students.detector.network import DETECTOR
from fewlabel.students.detector.train import DetectorConfig
from fewlabel.students.mean_teacher import MeanTeacherConfig
from fewlabel.students.train import StudentConfig

Baseline = Literal["labels-only", "synthetic-pretrained", "mean-teacher", "all-labels"]
Method = Baseline | Literal["fewlabel"]

if TYPE_CHECKING:
    Network = str
    Format = str
else:  # one list of networks, that of the students; a type checker cannot read a Literal from a map
    Network = Literal[(*STUDENTS, DETECTOR)]
    Format = Literal[FORMATS]


class Section(BaseModel):
    """Base of the recipe's sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Where the images are."""

    format: Format = Field("auto", description=f"Layout of the folder: {', '.join(FORMATS)}; auto recognises it.")
    root: Path = Field(description="The data set's folder or file; relative paths start at the recipe's folder.")
    unlabelled: Path | None = Field(
        None, description="Further images or videos without labels, a folder or file; they join the training images."
    )
    unlabelled_format: Format = Field("auto", description="Layout of those.")
    radiometry: Radiometry = Field(
        Radiometry(), description="How grey values become the input of networks; recorded in the exported model."
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Largest height x width of an image that is decoded.")


class SplitSection(Section):
    """How the training images are divided."""

    fraction: float | None = Field(
        None, gt=0, le=1, description="Labelled share of the training images; null uses every mask there is, or count."
    )
    count: int | None = Field(None, ge=1, description="Number of labelled images, in place of a fraction.")
    seed: int = Field(0, ge=0, description="Seed of the choice; the same seed gives nested fractions.")
    validation_share: float = Field(0.2, ge=0, lt=1, description="Share of the labelled images held out for choices.")
    groups: str | None = Field(
        None,
        min_length=1,
        description="Images that stay in one part: null leaves each free; layout keeps sequences of the data set's"
        " layout together; any other text is a regular expression whose first group in the image's name is the key.",
    )
    twins_together: bool = Field(False, description="Near duplicates that the check finds stay in one part.")

    @model_validator(mode="after")
    def _one_size(self) -> "SplitSection":
        if self.fraction is not None and self.count is not None:
            raise ValueError(f"fraction is {self.fraction} and count is {self.count}, but only one of them can be met")
        return self


def training_config(network: str | None) -> type[StudentConfig] | type[DetectorConfig]:
    """The kind of training options that a network takes."""
    return DetectorConfig if network == DETECTOR else StudentConfig


class StudentSection(Section):
    """The network that ships and how it is trained; every compared method uses the same."""

    network: Network = Field(
        "acm", description=f"Architecture: {', '.join(STUDENTS)} give masks, {DETECTOR} gives boxes."
    )
    training: StudentConfig | DetectorConfig = Field(
        description="Steps, batch, crop, learning rate and, of networks that give masks, losses; on labels and"
        " pseudo-labels."
    )
    synthetic_steps: int = Field(0, ge=0, description="Steps on rendered infrared scenes before; 0 starts at random.")
    labelled_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Probability that a crop comes from a given label instead of a pseudo-label; of mean-teacher the"
        " labelled share of each batch.",
    )
    soft_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the cross-entropy with the teacher's probabilities in the loss on pseudo-labels; the rest"
        " is the loss on accepted targets. 0: the probabilities are not kept.",
    )
    online: bool = Field(
        False,
        description="fewlabel's student also learns online, as mean-teacher does: half of each batch are unlabelled"
        " crops with its own averaged weights as teacher, the other half labels and pseudo-labels.",
    )
    mean_teacher: MeanTeacherConfig = Field(
        MeanTeacherConfig(), description="Options of mean-teacher, and of fewlabel where it learns online."
    )
    compare: tuple[Baseline, ...] = Field(
        ("labels-only",),
        description="Baselines trained beside fewlabel, with the same network and number of steps: labels-only;"
        " synthetic-pretrained, on labels after rendered scenes; mean-teacher, the same and online on unlabelled"
        " images, without SAM; all-labels.",
    )

    @field_validator("training", mode="before")
    @classmethod
    def _of_network(cls, value: Any, info: ValidationInfo) -> StudentConfig | DetectorConfig:
        """Options of the kind that the network takes, so that a key of the other kind is an unknown one."""
        return training_config(info.data.get("network")).model_validate(value)

    @model_validator(mode="after")
    def _consistent(self) -> "StudentSection":
        if self.network == DETECTOR:
            if self.online or "mean-teacher" in self.compare:
                key = "online is true" if self.online else "compare holds mean-teacher"
                raise ValueError(f"{key}, but {DETECTOR} gives boxes, and only students of masks learn online")
            if self.soft_weight:
                raise ValueError(
                    f"soft_weight is {self.soft_weight:g}, but {DETECTOR} learns from boxes, which have no"
                    " probabilities of pixels: it must be 0"
                )
        if "synthetic-pretrained" in self.compare and not self.synthetic_steps:
            raise ValueError("compare holds synthetic-pretrained, which needs synthetic_steps above 0")
        if (self.online or "mean-teacher" in self.compare) and self.training.batch < 2:
            raise ValueError("training.batch is 1, but a batch that learns online holds at least 2 crops")
        return self


class EvalSection(Section):
    """How the student is scored on the test list."""

    matching: Literal["nearest", "legacy"] = Field("nearest", description="Rule that matches predictions to targets.")


class Recipe(Section):
    """Everything that decides a run."""

    name: str = Field(min_length=1, description="Name of the run; the default run folder is runs/NAME.")
    method: Literal["scalpel"] = Field("scalpel", description="scalpel: infrared small targets.")
    seed: int = Field(0, ge=0, description="Seed of every training.")
    data: DataSection
    split: SplitSection
    teacher: TeacherConfig
    teach: TeachConfig
    label: PseudoConfig
    student: StudentSection
    eval: EvalSection = EvalSection(matching="nearest")

    @model_validator(mode="after")
    def _share_of_labels(self) -> "Recipe":
        if self.data.unlabelled is not None and self.split.fraction is not None:
            raise ValueError(
                "split.fraction is a share of training images that all have labels, but data.unlabelled adds some"
                " that have none: give split.count instead, or leave both out to use every label"
            )
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The trained students in the order of the score table, baselines first."""
        order: tuple[Method, ...] = ("labels-only", "synthetic-pretrained", "mean-teacher", "fewlabel", "all-labels")
        return tuple(method for method in order if method == "fewlabel" or method in self.student.compare)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from YAML.

    Args:
        path: The YAML file.
        overrides: Changes as `section.key=value`, the value in YAML; they win over the file.

    Returns:
        The recipe, with `data.root` made absolute: relative to the file, or to the working folder in an override.

    Raises:
        RecipeError: The file is missing or is not YAML, a key does not exist, or a value is of the wrong kind.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"Recipe {path} does not exist; check the path.") from None
    except OSError as error:
        raise RecipeError(f"Recipe {path} cannot be read ({error.strerror}); give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path} is not valid YAML ({' '.join(str(error).split())}); mend it.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {path} holds no keys; start from one in the recipes folder.")
    for override in overrides:
        apply_override(values, override)
    recipe = parse_recipe(values, str(path))
    # What is typed on the command line starts where it is typed, what is written in a file starts at the file.
    typed = {override.partition("=")[0] for override in overrides}
    recipe = with_root(recipe, (Path.cwd() if "data.root" in typed else path.parent) / recipe.data.root)
    if recipe.data.unlabelled is not None:
        further = (Path.cwd() if "data.unlabelled" in typed else path.parent) / recipe.data.unlabelled
        data = recipe.data.model_copy(update={"unlabelled": further.resolve()})
        recipe = recipe.model_copy(update={"data": data})
    checkpoint = path.parent / recipe.teacher.sam
    if checkpoint.is_dir():
        teacher = recipe.teacher.model_copy(update={"sam": str(checkpoint.resolve())})
        recipe = recipe.model_copy(update={"teacher": teacher})
    return recipe


def with_root(recipe: Recipe, root: Path) -> Recipe:
    """The same recipe for the data set in another folder."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root.resolve()})})


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's values.

    Args:
        values: Nested keys and values as YAML gives them.
        where: The file's name, for messages.

    Raises:
        RecipeError: Names the first wrong key, what it held, and what is expected.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(first["loc"][:-1], values))
            raise RecipeError(f"Recipe {where}: key {key!r} does not exist; the keys there are {known}.") from None
        if first["type"] == "missing":
            raise RecipeError(f"Recipe {where}: key {key!r} is missing; add it.") from None
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        # A rule that binds several keys is broken by a whole section, which nobody wants to read back.
        got = "" if isinstance(first["input"], dict) else f" is {first['input']!r}, but"
        place = f"{key!r}{got or ':'} " if key else ""
        raise RecipeError(f"Recipe {where}: {place}{reason}; correct it.") from None


def _known_keys(location: tuple[int | str, ...], values: dict[str, Any]) -> list[str]:
    """Names of the fields at a place in the recipe with these values."""
    model: Any = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if annotation == StudentConfig | DetectorConfig:
            annotation = training_config(values["student"].get("network"))
        elif isinstance(annotation, types.UnionType):
            annotation = next(choice for choice in annotation.__args__ if choice is not type(None))
        model = annotation
    return sorted(model.model_fields)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one nested value from `section.key=value`, in place.

    Raises:
        RecipeError: The text has no `=`, its value is not YAML, or a section on the way is not one.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            f"Override {override!r} is not of the form section.key=value; write, say, split.fraction=0.1."
        )
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"Override {override!r}: {section!r} is a value, not a section; check the key.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"Override {override!r}: the value is not YAML; quote it.") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
