"""The runs of each method, and a check without one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewlabel.core.files import read_json
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.pipeline import checking, labelling, scoring, stages
from fewlabel.pipeline.collect import collect
from fewlabel.pipeline.folder import SCALPEL, Stage
from fewlabel.pipeline.inputs import checkpoint_hash, data_section, layouts
from fewlabel.pipeline.labelling import SUMMARY
from fewlabel.pipeline.staged import StagedRun, Work
from fewlabel.recipe import Method, Recipe
from fewlabel.report.contents import PseudoLabels
from fewlabel.report.page import write as write_report
from fewlabel.report.summary import label_warning

START = ("network", "training", "synthetic_steps")
"""Keys of the student's section that every training of a student depends on."""


@dataclass(frozen=True)
class Run(StagedRun):
    """A run of the scalpel recipe."""

    plan = SCALPEL

    recipe: Recipe

    @property
    def every_label(self) -> str:
        """Where `all-labels` is asked for."""
        return "student.compare" if "all-labels" in self.recipe.student.compare else ""

    def said(self, stage: Stage, last: bool) -> str:
        """A warning about pseudo-labels that hold nothing; at the end the scores, and where the report is."""
        if stage == "label":
            labels = PseudoLabels.from_summary(read_json(self.folder.stage("label") / SUMMARY))
            warning = label_warning(labels)
            return f"warning: {warning} Until then the student learns from the labels alone." if warning else ""
        if not last or stage not in ("eval", "report"):
            return ""
        table = scoring.score_table(self.folder.stage("eval"))
        page = self.folder.stage("report") / "report.html"
        return f"{table}\nreport: {page.resolve()}" if stage == "report" else table

    def work(self) -> dict[Stage, Work]:
        """What each stage reads and does."""
        recipe = self.recipe
        whole = recipe.model_dump(mode="json")

        def teach_inputs() -> dict[str, Any]:
            # Consent decides whether a stage may run, not what comes out of it.
            teacher = {key: value for key, value in whole["teacher"].items() if key != "allow_sam3"}
            checkpoint = checkpoint_hash(recipe.teacher.sam)
            return self.settings("teach", "seed") | {"teacher": teacher, "files of the SAM": checkpoint}

        def label_inputs() -> dict[str, Any]:
            return self.settings("label") | {"probabilities kept": recipe.student.soft_weight > 0}

        def student(*keys: str) -> dict[str, Any]:
            return self.settings("seed") | {"student": {key: whole["student"][key] for key in keys}}

        def train_inputs() -> dict[str, Any]:
            learns_online = ("mean_teacher",) if recipe.student.online else ()
            return student(*START, "labelled_share", "soft_weight", "online", *learns_online)

        def baselines_inputs() -> dict[str, Any]:
            compared = "mean-teacher" in recipe.student.compare
            return student(*START, "compare", *(("labelled_share", "mean_teacher") if compared else ()))

        return {
            "teach": (teach_inputs, self._teach),
            "label": (label_inputs, self._label),
            "synthetic": (lambda: student(*START), self._synthetic),
            "train": (train_inputs, self._train),
            "baselines": (baselines_inputs, self._baselines),
            "eval": (lambda: self.settings("eval"), self._eval),
            "report": (lambda: self.settings("name"), self._report),
        }

    def _teach(self, out: Path) -> None:
        inputs = self.fingerprint("split")
        stages.teach_teacher(self.recipe, self.dataset, self.split, out, inputs=inputs, device=self.device)

    def _label(self, out: Path) -> None:
        teacher, inputs = self.folder.stage("teach"), self.fingerprint("teach")
        labelling.label(self.recipe, self.dataset, self.split, teacher, out, inputs=inputs, device=self.device)

    def _synthetic(self, out: Path) -> None:
        stages.train_synthetic(self.recipe, out, device=self.device)

    def _train(self, out: Path) -> None:
        self._train_methods(("fewlabel",), out, inputs=self.fingerprint("label"))

    def _baselines(self, out: Path) -> None:
        self._train_methods(self.recipe.student.compare, out, inputs=self.fingerprint("split"))

    def _train_methods(self, methods: tuple[Method, ...], out: Path, *, inputs: str) -> None:
        labels, start = self.folder.stage("label"), self.folder.stage("synthetic")
        for method in methods:
            stages.train_method(
                method, self.recipe, self.dataset, self.split, labels, start, out, inputs=inputs, device=self.device
            )

    def _eval(self, out: Path) -> None:
        scoring.evaluate(self.recipe, self.dataset, self.split, self.folder, out)

    def _report(self, out: Path) -> None:
        write_report(collect(self.recipe, self.folder, self.dataset, self.split), out / "report.html")


def check_folder(
    root: Path,
    *,
    keep_going: bool = False,
    out: Path | None = None,
    format: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Check a data set's folder on its own and print what is there.

    Args:
        root: The folder, or a file that is a whole data set.
        keep_going: List unusable images instead of stopping at the first.
        out: Folder for check.json, check.html and rejected.csv; without one, what was rejected is printed.
        format: Its layout; "auto" recognises it.
        max_pixels: Largest height x width of an image that is decoded.

    Raises:
        DataError: An image or mask cannot be used, and `keep_going` is off.
    """
    data = data_section(root, format, max_pixels)
    print("\n".join(layouts(data)))
    report = checking.check(data, out, keep_going=keep_going, fraction=None)
    print("\n".join(report.lines()))
    if out is None:
        for problem in report.rejected:
            print(f"- {problem.id}: {problem.reason}")
