"""The recipe of infrared small targets: SAM adapted into a teacher, pseudo-labels, a small student."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fewlabel.recipe.sections import CommonRecipe, Section
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
else:  # one list of networks, that of the students
    Network = Literal[(*STUDENTS, DETECTOR)]


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


class Recipe(CommonRecipe):
    """Everything that decides a run on infrared small targets."""

    method: Literal["scalpel"] = Field("scalpel", description="scalpel: infrared small targets.")
    teacher: TeacherConfig
    teach: TeachConfig
    label: PseudoConfig
    student: StudentSection
    eval: EvalSection = EvalSection(matching="nearest")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The trained students in the order of the score table, baselines first."""
        order: tuple[Method, ...] = ("labels-only", "synthetic-pretrained", "mean-teacher", "fewlabel", "all-labels")
        return tuple(method for method in order if method == "fewlabel" or method in self.student.compare)
