"""The cells of the s4m benchmark: which parts of the method are on, on what, and what that changes in the recipe."""

from dataclasses import dataclass
from typing import Literal

NO_STRUCTURE, NO_REFINEMENT, NO_PASTE = "teach.similarity_weight=0", "student.refine=null", "student.paste=null"
PUBLISHED_REFINEMENT = "student.refine={choose: quality, gate: null}"

# Methods that guide a student, in the order of the published ablation. Guided distillation is S⁴M without its parts.
GUIDED: dict[str, tuple[str, ...]] = {
    "guided-distillation": (NO_STRUCTURE, NO_REFINEMENT, NO_PASTE),
    "guided-plus-structure": (NO_REFINEMENT, NO_PASTE),
    "guided-plus-refinement": (NO_STRUCTURE, NO_PASTE),
    "guided-plus-paste": (NO_STRUCTURE, NO_REFINEMENT),
    "fewlabel": (),
    "fewlabel-minus-gate": (PUBLISHED_REFINEMENT,),
}
METHODS = ("labels-only", *GUIDED, "all-labels")
MAIN = ("labels-only", "guided-distillation", "fewlabel", "all-labels")

DATASETS = {"DSB2018": (0.05, 0.1, 0.3), "objects": (0.01, 0.05, 0.1)}
"""Labelled shares of each data set."""

Grid = Literal["cpu", "full"]


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement.

    Attributes:
        dataset: A key of DATASETS.
        fraction: Labelled share of the training images.
        seed: Seed of split, weights and crops.
        method: One of METHODS.
    """

    dataset: str
    fraction: float
    seed: int
    method: str

    @property
    def name(self) -> str:
        """Name of the cell's record, without its ending."""
        return f"{self.dataset}-{self.method}-{self.fraction:g}-seed{self.seed}"


def cells(grid: Grid) -> list[Cell]:
    """The cells of a grid in the order in which they are to be measured.

    Args:
        grid: `full` is the whole plan, three seeds for the main rows and one for the others; `cpu` is the share of it
            that two cores can do: one share of each data set, two seeds.

    Returns:
        The cells; `all-labels` is measured at one fraction only, since it uses every label.
    """
    if grid == "cpu":
        methods = [method for method in METHODS if method != "fewlabel-minus-gate"]
        return [
            Cell(dataset, fraction, seed, method)
            for seed in (0, 1)
            for dataset, fraction in (("DSB2018", 0.1), ("objects", 0.05))
            for method in methods
        ]
    return [
        Cell(dataset, fraction, seed, method)
        for seed in (0, 1, 2)
        for dataset, fractions in DATASETS.items()
        for fraction in fractions
        for method in (METHODS if seed == 0 else MAIN)
        if fraction == fractions[1] or method != "all-labels"
    ]
