"""What the recipes of all methods share: where the data is, and how it is divided."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewlabel.core.radiometry import Radiometry
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.readers import FORMATS

if TYPE_CHECKING:
    Format = str
else:  # one list of layouts, that of the readers; a type checker cannot read a Literal from a map
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
    unlabelled_every: int = Field(
        1,
        ge=1,
        description="Of each of their videos and sequences each so-many-th frame is taken, the first one too.",
    )
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


class CommonRecipe(Section):
    """What every recipe holds."""

    name: str = Field(min_length=1, description="Name of the run; the default run folder is runs/NAME.")
    method: str
    seed: int = Field(0, ge=0, description="Seed of every training.")
    data: DataSection
    split: SplitSection

    @model_validator(mode="after")
    def _share_of_labels(self) -> "CommonRecipe":
        if self.data.unlabelled is not None and self.split.fraction is not None:
            raise ValueError(
                "split.fraction is a share of training images that all have labels, but data.unlabelled adds some"
                " that have none: give split.count instead, or leave both out to use every label"
            )
        return self
