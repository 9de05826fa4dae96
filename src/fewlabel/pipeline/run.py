"""A run: the stages of one recipe in order, each done once."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fewlabel.core.errors import FewlabelError, RunError
from fewlabel.core.files import read_json, sha256_json, write_text
from fewlabel.data.dataset import Dataset
from fewlabel.data.inventory import Inventory, difference, take
from fewlabel.data.pixels import MAX_PIXELS
from fewlabel.data.split import Split
from fewlabel.pipeline import labelling, scoring, stages
from fewlabel.pipeline.collect import collect
from fewlabel.pipeline.folder import RunFolder, Stage, plan
from fewlabel.pipeline.inputs import checkpoint_hash, data_section, layouts, open_dataset
from fewlabel.pipeline.labelling import SUMMARY
from fewlabel.recipe import Method, Recipe, dump_recipe
from fewlabel.report.contents import PseudoLabels
from fewlabel.report.page import write as write_report
from fewlabel.report.summary import label_warning

START = ("network", "training", "synthetic_steps")
"""Keys of the student's section that every training of a student depends on."""


@dataclass(frozen=True)
class Run:
    """One recipe in one folder.

    Attributes:
        recipe: What to do.
        path: The run folder; made when missing.
        keep_going: Quarantine unusable images instead of stopping at the first.
        redo: Replace stages that other settings made.
        device: Where the networks train and label; does not count as a setting.
    """

    recipe: Recipe
    path: Path
    keep_going: bool = False
    redo: bool = False
    device: str = "cpu"
    _files: dict[Path, Inventory] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set without the images that the check rejected."""
        return open_dataset(self.recipe.data, [item["id"] for item in self._checked["rejected"]])

    @cached_property
    def _checked(self) -> dict[str, Any]:
        """What the check stage wrote."""
        return dict(read_json(self.folder.stage("check") / "check.json"))

    @cached_property
    def split(self) -> Split:
        """Which images are labelled, held out, unlabelled and for testing."""
        return Split.load(self.folder.stage("split") / "split.json")

    def execute(self, until: Stage = "report") -> None:
        """Do a stage and all that it rests on; a stage that is done is skipped.

        Args:
            until: The last stage.

        Raises:
            FewlabelError: An input or setting cannot be used; the sentence says which. Finished stages stay.
        """
        there_before = self.path.exists()
        try:
            for stage in plan(until):
                self._do(stage)
        except FewlabelError:
            if not there_before:
                with suppress(OSError):  # not there, or no longer empty
                    self.path.rmdir()
            raise
        if until in ("eval", "report"):
            print(scoring.score_table(self.folder.stage("eval")))
        if until == "report":
            print(f"report: {(self.folder.stage('report') / 'report.html').resolve()}")

    def _do(self, stage: Stage) -> None:
        """Do one stage, whose needs are done, and say so."""
        inputs, action = self._work()[stage]
        settings = inputs()
        fingerprint = self.folder.fingerprint(stage, settings)
        values = self.recipe.model_dump(mode="json")
        done_now = self.folder.run_stage(stage, fingerprint, action, settings=settings, recipe=values, redo=self.redo)
        if done_now:
            write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
        for path in list(self._files):
            self._files.pop(path).save(path)  # only now: a run whose first stage fails leaves nothing behind
        seconds = (self.folder.manifest(stage) or {}).get("seconds", 0)
        print(f"{stage}: {f'done in {seconds:.0f} s' if done_now else 'already done'}", flush=True)
        if stage == "label":
            labels = PseudoLabels.from_summary(read_json(self.folder.stage("label") / SUMMARY))
            if warning := label_warning(labels):
                print(f"warning: {warning} Until then the student learns from the labels alone.", flush=True)

    def _work(self) -> dict[Stage, tuple[Callable[[], dict[str, Any]], Callable[[Path], None]]]:
        """For each stage: the settings and inputs that it reads itself, by name, and what it does."""
        recipe = self.recipe
        whole = recipe.model_dump(mode="json")

        def settings(*sections: str) -> dict[str, Any]:
            return {section: whole[section] for section in sections}

        def check_inputs() -> dict[str, Any]:
            masks_needed = recipe.split.fraction is not None
            data = {key: value for key, value in whole["data"].items() if key not in ("root", "unlabelled")}
            data["unlabelled"] = "none" if recipe.data.unlabelled is None else "given"
            return {"data": data, "files of the data": self._data_hash(), "masks needed": masks_needed}

        def split_inputs() -> dict[str, Any]:
            return settings("split") | {"all-labels compared": "all-labels" in recipe.student.compare}

        def teach_inputs() -> dict[str, Any]:
            # Consent decides whether a stage may run, not what comes out of it.
            teacher = {key: value for key, value in whole["teacher"].items() if key != "allow_sam3"}
            checkpoint = checkpoint_hash(recipe.teacher.sam)
            return settings("teach", "seed") | {"teacher": teacher, "files of the SAM": checkpoint}

        def label_inputs() -> dict[str, Any]:
            return settings("label") | {"probabilities kept": recipe.student.soft_weight > 0}

        def student(*keys: str) -> dict[str, Any]:
            return settings("seed") | {"student": {key: whole["student"][key] for key in keys}}

        def train_inputs() -> dict[str, Any]:
            learns_online = ("mean_teacher",) if recipe.student.online else ()
            return student(*START, "labelled_share", "soft_weight", "online", *learns_online)

        def baselines_inputs() -> dict[str, Any]:
            compared = "mean-teacher" in recipe.student.compare
            return student(*START, "compare", *(("labelled_share", "mean_teacher") if compared else ()))

        return {
            "check": (check_inputs, self._check),
            "split": (split_inputs, self._split),
            "teach": (teach_inputs, self._teach),
            "label": (label_inputs, self._label),
            "synthetic": (lambda: student(*START), self._synthetic),
            "train": (train_inputs, self._train),
            "baselines": (baselines_inputs, self._baselines),
            "eval": (lambda: settings("eval"), self._eval),
            "report": (lambda: settings("name"), self._report),
        }

    def _check(self, out: Path) -> None:
        data, fraction = self.recipe.data, self.recipe.split.fraction
        print("\n".join(layouts(data)))
        print("\n".join(stages.check(data, out, keep_going=self.keep_going, fraction=fraction).lines()))

    def _split(self, out: Path) -> None:
        stages.split(self.recipe, self.dataset, self._checked, out)

    def _data_hash(self) -> str:
        """Hash of the data's files; what they were is kept in the run folder, so that a change can be named.

        Raises:
            RunError: The files have changed, and results that cost hours rest on what they were.
        """
        hashes = []
        for name, root in (("data", self.recipe.data.root), ("unlabelled", self.recipe.data.unlabelled)):
            if root is None:
                continue
            path = self.path / f"{name}-files.json"
            known = Inventory.load(path) if path.is_file() else None
            found = take(root, known)
            changed = difference(known, found) if known is not None else ""
            if changed and self.folder.costly("check") and not self.redo:
                raise RunError(
                    f"The files of {root} are no longer those that {self.path} was made from: {changed}; restore them,"
                    " choose another run folder with --out, or give --redo to replace what rests on them."
                )
            if known is None or found.files != known.files:
                self._files[path] = found
            hashes.append(found.sha256)
        return sha256_json(hashes)

    def _fingerprint(self, stage: Stage) -> str:
        manifest = self.folder.manifest(stage)
        if manifest is None:
            raise RunError(f"Stage {stage!r} of {self.path} is not done; run it first.")
        return str(manifest["fingerprint"])

    def _teach(self, out: Path) -> None:
        inputs = self._fingerprint("split")
        stages.teach_teacher(self.recipe, self.dataset, self.split, out, inputs=inputs, device=self.device)

    def _label(self, out: Path) -> None:
        teacher, inputs = self.folder.stage("teach"), self._fingerprint("teach")
        labelling.label(self.recipe, self.dataset, self.split, teacher, out, inputs=inputs, device=self.device)

    def _synthetic(self, out: Path) -> None:
        stages.train_synthetic(self.recipe, out, device=self.device)

    def _train(self, out: Path) -> None:
        self._train_methods(("fewlabel",), out, inputs=self._fingerprint("label"))

    def _baselines(self, out: Path) -> None:
        self._train_methods(self.recipe.student.compare, out, inputs=self._fingerprint("split"))

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
    report = stages.check(data, out, keep_going=keep_going, fraction=None)
    print("\n".join(report.lines()))
    if out is None:
        for problem in report.rejected:
            print(f"- {problem.id}: {problem.reason}")
