"""What a report says: plain values, filled from a run folder and turned into a page by `fewlabel.report.page`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewlabel.core.errors import RunError
from fewlabel.metrics.roc import RocCurve
from fewlabel.metrics.sizes import SizeBin
from fewlabel.report.methods import method_name


@dataclass(frozen=True)
class DataFacts:
    """Which images were used for what.

    Attributes:
        name: Name of the data set.
        labelled: Images whose human labels trained the teacher and the student.
        validation: Labelled images held back: the threshold is chosen on them, and the curves show them.
        unlabelled: Images used without their labels.
        test: Images that the scores are measured on.
        fraction: Labelled (and validation) share of the training images, in (0, 1].
        seed: Seed of the split.
        targets: Targets in the labelled images, or None when not counted.
    """

    name: str
    labelled: int
    validation: int
    unlabelled: int
    test: int
    fraction: float
    seed: int
    targets: int | None = None


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one network on the test images.

    Attributes:
        method: `labels-only`, `synthetic-pretrained`, `fewlabel`, `all-labels`, `teacher` or another method's name; the
            summary compares `fewlabel` with the others.
        metrics: `IoU`, `nIoU`, `hIoU` and `Pd` in percent, `Fa` in false pixels per million; of students that give
            boxes `AP50`, `AP`, `AR50`, `precision` and `recall` in percent; of those that give objects the keys of
            `fewlabel.report.instances.METRICS` in percent. Other keys are left out of the table, and a
            missing or non-finite one is shown as not measured.
        matching: Rule that pairs predicted with true targets for Pd and Fa, e.g. `nearest`; boxes have their own.
        label: Name shown; empty for the usual name of the method.
        sizes: Pd by area of the target, from small to large; empty when not counted.
        curve: Pd against Fa over the threshold, None where undefined; None when not measured.
        by_class: Scores of each class, in the order of class ids; empty when not counted.
    """

    method: str
    metrics: Mapping[str, float]
    matching: str = "nearest"
    label: str = ""
    sizes: Sequence[SizeBin] = ()
    curve: RocCurve | None = None
    by_class: Sequence[Mapping[str, float | None]] = ()

    @classmethod
    def from_scores(cls, method: str, scores: Mapping[str, Any], label: str = "") -> "ScoreRow":
        """Make a row from the scores of a method in scores.json.

        Args:
            method: The method.
            scores: What `fewlabel.metrics.scores.evaluate` returns, as JSON holds it, with the curve under `roc` where
                one was measured; or what `fewlabel.metrics.instances.instance_compute` returns.
            label: See the class.
        """
        numbers = {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}
        matching = str(scores.get("matching", "nearest"))
        sizes, classes = scores.get("Pd_by_area", ()), scores.get("by_class", ())
        return cls(method, numbers, matching, label, sizes, scores.get("roc"), classes)

    @property
    def name(self) -> str:
        """The name that a reader sees."""
        return self.label or method_name(self.method)


@dataclass(frozen=True)
class PseudoLabels:
    """How the teacher's proposals on the unlabelled images were sorted, and how good the accepted ones are.

    Attributes:
        images: Images that were labelled by the teacher.
        accepted: Proposed targets that train the student.
        ignored: Proposed targets whose pixels do not count in the student's loss.
        rejected: Proposed targets that were taken for background.
        reasons: Proposed targets of any outcome, by the gate's word for its reason.
        quality: `IoU`, `nIoU`, `hIoU` and `Pd` in percent, `Fa` per million, Pd by area under `Pd_by_area`; measured
            against labels that no training saw; None when no such labels exist.
        coverage: Accepted ÷ proposed, in [0, 1]; None to have it taken from the counts above.
    """

    images: int
    accepted: int
    ignored: int
    rejected: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    quality: Mapping[str, Any] | None = None
    coverage: float | None = None

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "PseudoLabels":
        """Take over what `LabelStore.summary` returns, with the scores against the truth under `truth` if known."""
        return cls(
            images=summary["images"],
            accepted=summary["accepted"],
            ignored=summary["ignored"],
            rejected=summary["rejected"],
            reasons=summary.get("reasons", {}),
            quality=summary.get("truth"),
            coverage=summary.get("coverage"),
        )

    @property
    def proposed(self) -> int:
        """Proposed targets of any outcome."""
        return self.accepted + self.ignored + self.rejected

    @property
    def share(self) -> float | None:
        """Coverage in [0, 1]; None when nothing was proposed."""
        if self.coverage is not None:
            return self.coverage
        return self.accepted / self.proposed if self.proposed else None


@dataclass(frozen=True)
class RouterWeights:
    """What the teacher's router chose, averaged over images.

    A level has two gates: the image gate looks at the image as a whole; the final gate, which is what the experts
    are weighted with, is the product of the image gate and a gate of each token, scaled to a sum of 1.

    Attributes:
        experts: Names of the E experts, such as the operators, in the order of the weights.
        levels: By level name: E mean weights of the image gate and E mean weights of the final gate (averaged over
            tokens as well), each in [0, 1].
        entropy: By level name: (step, mean entropy of the final gates divided by log E) over the training, in [0, 1]:
            1 = all experts used alike, 0 = one expert per token.
    """

    experts: tuple[str, ...]
    levels: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    entropy: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for level, (image, final) in self.levels.items():
            if {len(image), len(final)} != {len(self.experts)}:
                raise RunError(
                    f"Router level {level!r} of the report holds {len(image)} weights of the image gate and "
                    f"{len(final)} of the final gate where {len(self.experts)} experts are named; pass one weight "
                    "of each gate per expert."
                )


@dataclass(frozen=True, eq=False)
class Example:
    """One image and what each part of the method made of it; every map is aligned with the image.

    Attributes:
        id: Name of the image.
        image: float32 (H, W), standardised.
        truth: bool (H, W) human label, or None when unknown.
        priors: float32 (E, H, W) responses of the operators, any scale; E may be 0.
        teacher: float (H, W) teacher's probability in [0, 1], or None.
        target: bool (H, W) accepted pseudo-label, or None for an image that has none (a test image, say).
        weight: float (H, W) weight of each pixel in the student's loss, 0 = ignored; None counts as 1 everywhere.
        student: float (H, W) student's probability in [0, 1], or None.
        boxes: float32 (N, 4) xyxy in pixel edges, the boxes that count of a student that gives boxes, or None.
        box_scores: float32 (N,) in [0, 1], their scores; comes with `boxes`.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray | None
    priors: np.ndarray
    teacher: np.ndarray | None = None
    target: np.ndarray | None = None
    weight: np.ndarray | None = None
    student: np.ndarray | None = None
    boxes: np.ndarray | None = None
    box_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or 0 in self.image.shape:
            raise RunError(f"Example {self.id!r} of the report has an image of shape {self.image.shape}; pass (H, W).")
        for name in ("truth", "teacher", "target", "weight", "student"):
            value = getattr(self, name)
            if value is not None and value.shape != self.image.shape:
                raise RunError(
                    f"Example {self.id!r} of the report has {name} of shape {value.shape} beside an image of shape "
                    f"{self.image.shape}; pass maps of the image's size."
                )
        counts = [None if values is None else len(values) for values in (self.boxes, self.box_scores)]
        if counts[0] != counts[1]:
            raise RunError(
                f"Example {self.id!r} of the report has {counts[0]} boxes and {counts[1]} scores; pass one score each."
            )
        if self.priors.ndim != 3 or self.priors.shape[1:] != self.image.shape:
            raise RunError(
                f"Example {self.id!r} of the report has priors of shape {self.priors.shape}; pass (operators, "
                f"{self.image.shape[0]}, {self.image.shape[1]})."
            )


@dataclass(frozen=True)
class StageTime:
    """Wall-clock time of one stage.

    Attributes:
        name: Name of the stage.
        seconds: Seconds it took when it was run.
        peak_rss_mb: Peak resident memory in MiB, or None when not measured.
    """

    name: str
    seconds: float
    peak_rss_mb: float | None = None


@dataclass(frozen=True)
class Doubt:
    """A labelled image whose labels the student doubts.

    Attributes:
        id: The image.
        part: "training", which the student learnt from, or "validation".
        reasons: Sentences: what the label and the prediction disagree in.
    """

    id: str
    part: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RunReport:
    """What the reports of all methods hold. All text is escaped on the page; whatever is empty or None is left out.

    Attributes:
        title: Heading of the page, e.g. the name of the run.
        recipe: The recipe as YAML text.
        facts: The data set and its split.
        student: Name of the student network, e.g. `acm`.
        sam: Name of the SAM of the run; `nano` (or a name that starts with `nano`) is the embedded one.
        scores: Score rows in the order of the table.
        curves: By training name: the records of its log.jsonl, `{"step", "lr", "loss", ...}` and
            `{"step", "val": {...}}` in any mixture.
        stages: Wall-clock time of each stage.
        versions: Software names and versions.
        hardware: One line on the machine.
        notes: Sentences that a reader must know, one paragraph each.
        created: Date shown; empty for none. The page holds no other date, so equal data gives equal bytes.
    """

    title: str
    recipe: str
    facts: DataFacts
    student: str
    sam: str
    scores: Sequence[ScoreRow] = ()
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    stages: Sequence[StageTime] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    notes: Sequence[str] = ()
    created: str = ""


@dataclass(frozen=True)
class ReportData(RunReport):
    """Everything that the report of small targets shows.

    Attributes:
        boxes: Whether the student gives boxes.
        pseudo_labels: Outcome of the labelling stage, or None when there was none.
        doubts: Labelled images that are worth another look, the most doubtful first.
        router: What the router chose, or None.
        operators: Names of the examples' priors, in order; missing ones are numbered.
        examples: Images with all intermediate results; about eight keep the page below 5 MB.
    """

    boxes: bool = False
    pseudo_labels: PseudoLabels | None = None
    doubts: Sequence[Doubt] = ()
    router: RouterWeights | None = None
    operators: Sequence[str] = ()
    examples: Sequence[Example] = ()
