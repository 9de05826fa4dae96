"""The recipe of instance segmentation: Mask2Former, SAM's structure and SAM's masks."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fewlabel.data.instance_crops import CropConfig
from fewlabel.recipe.sections import CommonRecipe, Section
from fewlabel.s4m.network import NetworkConfig
from fewlabel.s4m.student import StudentConfig
from fewlabel.s4m.teacher import TeachConfig

InstanceBaseline = Literal["labels-only", "guided-distillation", "all-labels"]
InstanceMethod = InstanceBaseline | Literal["fewlabel", "smaller"]


class InstanceEvalSection(Section):
    """How networks see whole images."""

    side: int | None = Field(
        default=None, ge=32, description="Images are resized until their shorter side has so many pixels; null: as is."
    )


class CacheSection(Section):
    """Where SAM's word on views is kept between epochs and runs."""

    folder: Path = Field(description="Of the cache; relative to the working folder. Several runs may share it.")
    gb: float = Field(10.0, gt=0, description="Bound on each of its two parts, in 10^9 bytes.")


class InstanceRecipe(CommonRecipe):
    """Everything that decides a run on images with many objects."""

    method: Literal["s4m"] = Field("s4m", description="s4m: instance segmentation.")
    sam: str = Field(default="nano", description="A name from `fewlabel sam list`, a checkpoint's folder, or a hub id.")
    allow_sam3: bool = Field(default=False, description="Agree to the licence of SAM 3, which is not Apache-2.0.")
    cache: CacheSection | None = Field(
        None, description="Keep what SAM says in structural distillation; only for crops that do not vary."
    )
    network: NetworkConfig = Field(description="Teacher and student alike.")
    smaller: NetworkConfig | None = Field(
        None, description="A lighter network that learns from the trained student and ships in its place."
    )
    crops: CropConfig = CropConfig()
    teach: TeachConfig
    student: StudentConfig
    compare: tuple[InstanceBaseline, ...] = Field(
        ("labels-only",),
        description="Baselines with the same network and number of steps: labels-only; guided-distillation, a mean"
        " teacher without SAM; all-labels.",
    )
    eval: InstanceEvalSection = InstanceEvalSection()

    @model_validator(mode="after")
    def _something_to_exchange(self) -> "InstanceRecipe":
        student = self.student
        if student.paste is not None and student.batch < 2:
            raise ValueError("student.paste exchanges objects between images, but student.batch is 1: take 2, or null")
        return self

    @model_validator(mode="after")
    def _views_come_again(self) -> "InstanceRecipe":
        if self.cache is not None and (self.crops.varies or self.teach.colours):
            raise ValueError(
                "cache keeps what SAM says of views that come again, but crops or teach.colours vary them: set"
                " crops.scale_low and scale_high to 1, flips, turns and teach.colours to false, or leave cache out"
            )
        return self

    @property
    def asks_sam(self) -> bool:
        """Whether any part of the recipe needs a SAM."""
        return self.teach.similarity_weight > 0 or self.refines

    @property
    def refines(self) -> bool:
        """Whether a SAM refines the student's pseudo-labels."""
        return self.student.refine is not None and self.student.unlabelled_weight > 0

    @property
    def methods(self) -> tuple[InstanceMethod, ...]:
        """The trained networks in the order of the score table, baselines first."""
        order: tuple[InstanceMethod, ...] = (
            "labels-only",
            "guided-distillation",
            "fewlabel",
            "smaller",
            "all-labels",
        )
        wanted = {*self.compare, "fewlabel", *(("smaller",) if self.smaller is not None else ())}
        return tuple(method for method in order if method in wanted)
