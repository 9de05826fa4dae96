"""The cells of the scalpel benchmark: which methods are compared, on what, and what each changes in the recipe."""

from dataclasses import dataclass
from typing import Literal

from fewlabel.scalpel.bank import OPERATOR_NAMES
from fewlabel.students.detector.network import DETECTOR

STUDENT_METHODS = ("labels-only", "synthetic-pretrained", "mean-teacher", "all-labels")
"""Methods without a SAM: a student alone."""

# A control has none of what fewlabel adds to SAM: no operators as input, experts or judges, and no distillation.
_BARE = ("teach.distil_weight=0", "teach.preserve_weight=0", "label.gate.min_support=0")
_OWN = "teacher.experts=none"

TEACHER_METHODS: dict[str, tuple[str, ...]] = {
    "adapter-none": (*_BARE, _OWN, "teacher.adapter=null"),
    "adapter-lora": (*_BARE, _OWN, "teacher.adapter.kind=lora"),
    "adapter-conv-lora": (*_BARE, _OWN, "teacher.adapter.kind=conv-lora"),
    "adapter-sam-adapter": (*_BARE, _OWN, "teacher.adapter.kind=sam-adapter"),
    "adapter-conv-experts": (*_BARE, "teacher.experts=convolutions"),
    "fewlabel": (),
    **{
        f"fewlabel-minus-{left_out.replace('_', '-')}": (
            f"teacher.operators=[{', '.join(name for name in OPERATOR_NAMES if name != left_out)}]",
        )
        for left_out in OPERATOR_NAMES
    },
    "fewlabel-minus-learned-gate": ("teacher.adapter.gate=random",),
    # Off by default: a trial on the labelled share and rendered scenes showed no gain that stands out from the seeds.
    "fewlabel-plus-distillation": ("teach.distil_weight=1",),
    "fewlabel-plus-preservation": ("teach.preserve_weight=0.3",),
    "fewlabel-minus-balance": ("teacher.adapter.balance=0",),
    "fewlabel-minus-coarse-loss": ("teach.coarse_weight=0",),
    "fewlabel-minus-soft-iou": ("teach.iou_weight=0",),
    "fewlabel-minus-cross-entropy": ("teach.bce_weight=0",),
}
"""Methods that label with a SAM teacher, and what each changes in the recipe."""

METHODS = (*STUDENT_METHODS[:-1], *TEACHER_METHODS, "all-labels")
OPERATORS_LEFT_OUT = tuple(f"fewlabel-minus-{name.replace('_', '-')}" for name in OPERATOR_NAMES)

# IoU of ACM with all labels, published by the BasicIRSTD toolbox; a ratio to `all-labels` only means something where
# our own `all-labels` comes within 5 points of it.
PUBLISHED = {("NUAA-SIRST", "acm"): 69.4, ("NUDT-SIRST", "acm"): 64.9}
TRAINED_OUT = 5.0

Grid = Literal["cpu", "boxes", "full"]


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement.

    Attributes:
        dataset: Folder name of the data set.
        fraction: Labelled share of the training images from which the split is made.
        seed: Seed of split, weights and crops.
        student: Network, a key of `fewlabel.students.STUDENTS`.
        method: One of METHODS.
    """

    dataset: str
    fraction: float
    seed: int
    student: str
    method: str

    @property
    def name(self) -> str:
        """Name of the cell's record, without its ending."""
        return f"{self.dataset}-{self.method}-{self.student}-{self.fraction:g}-seed{self.seed}"


def cells(grid: Grid) -> list[Cell]:
    """The cells of a grid in the order in which they are to be measured: whole columns of a seed first.

    Args:
        grid: `full` is the whole plan; `cpu` the part of it that two cores can do; `boxes` that of students which give
            boxes, whose records are a benchmark of their own.

    Returns:
        The cells; `all-labels` is measured at one fraction only, since it uses every label.
    """
    if grid == "cpu":
        nuaa = (*STUDENT_METHODS, "fewlabel", "adapter-none", "adapter-lora", "adapter-conv-experts")
        plan = {
            "NUAA-SIRST": (*nuaa, *OPERATORS_LEFT_OUT),
            "NUDT-SIRST": ("labels-only", "synthetic-pretrained", "fewlabel", "all-labels"),
        }
        return [
            Cell(dataset, 0.1, seed, student, method)
            for seed in (0, 1)
            for dataset, methods in plan.items()
            for student in ("acm", "unet")
            for method in methods
        ]
    if grid == "boxes":
        methods = ("labels-only", "synthetic-pretrained", "fewlabel", "all-labels")
        return [Cell("NUAA-SIRST", 0.1, seed, DETECTOR, method) for seed in (0, 1) for method in methods]
    return [
        Cell(dataset, fraction, seed, student, method)
        for fraction in (0.1, 0.05, 0.2)
        for seed in (0, 1, 2)
        for dataset in ("NUAA-SIRST", "NUDT-SIRST")
        for student in ("acm", "alcnet", "unet", "dnanet", "mshnet")
        for method in METHODS
        if fraction == 0.1 or method != "all-labels"
    ]
