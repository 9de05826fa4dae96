"""A run: the stages of one recipe in order, each done once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewlabel.core.errors import RunError
from fewlabel.core.files import read_json, write_text
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.pipeline import scoring, stages
from fewlabel.pipeline.collect import collect
from fewlabel.pipeline.folder import RunFolder, Stage, plan
from fewlabel.pipeline.inputs import checkpoint_hash, inventory, open_dataset
from fewlabel.recipe import Method, Recipe, dump_recipe
from fewlabel.report.page import write as write_report


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

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set without the images that the check rejected."""
        return open_dataset(self.recipe.data.root, [item["id"] for item in self._checked["rejected"]])

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
        work = self._work()
        for stage in plan(until):
            config, action = work[stage]
            fingerprint = self.folder.fingerprint(stage, config())
            values = self.recipe.model_dump(mode="json")
            done_now = self.folder.run_stage(stage, fingerprint, action, recipe=values, redo=self.redo)
            if done_now:
                write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
            seconds = (self.folder.manifest(stage) or {}).get("seconds", 0)
            print(f"{stage}: {f'done in {seconds:.0f} s' if done_now else 'already done'}", flush=True)
        if until in ("eval", "report"):
            print(scoring.score_table(self.folder.stage("eval")))
        if until == "report":
            print(f"report: {(self.folder.stage('report') / 'report.html').resolve()}")

    def _work(self) -> dict[Stage, tuple[Callable[[], Any], Callable[[Path], None]]]:
        """For each stage: the settings and inputs that it reads itself, and what it does."""
        recipe = self.recipe

        def settings(*sections: str) -> Callable[[], Any]:
            consent = {"teacher": {"allow_sam3"}}  # decides whether a stage may run, not what comes out of it
            return lambda: recipe.model_dump(mode="json", include=set(sections), exclude=consent)

        def check_inputs() -> Any:
            masks_needed = recipe.split.fraction is not None
            return [recipe.data.format, inventory(recipe.data.root), masks_needed]

        def split_inputs() -> Any:
            return [settings("split")(), "all-labels" in recipe.student.compare]

        def student(*without: str) -> Callable[[], Any]:
            left = {key: value for key, value in recipe.student.model_dump(mode="json").items() if key not in without}
            return lambda: [recipe.seed, left]

        def teach_inputs() -> Any:
            return [settings("teacher", "teach", "seed")(), checkpoint_hash(recipe.teacher.sam)]

        return {
            "check": (check_inputs, self._check),
            "split": (split_inputs, self._split),
            "teach": (teach_inputs, self._teach),
            "label": (settings("label"), self._label),
            "synthetic": (student("compare", "labelled_share"), self._synthetic),
            "train": (student("compare"), self._train),
            "baselines": (student("labelled_share"), self._baselines),
            "eval": (settings("eval"), self._eval),
            "report": (settings("name"), self._report),
        }

    def _check(self, out: Path) -> None:
        root, fraction = self.recipe.data.root, self.recipe.split.fraction
        print("\n".join(stages.check(root, out, keep_going=self.keep_going, fraction=fraction).lines()))

    def _split(self, out: Path) -> None:
        stages.split(self.recipe, self.dataset, self._checked["areas"], out)

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
        stages.label(self.recipe, self.dataset, self.split, teacher, out, inputs=inputs, device=self.device)

    def _synthetic(self, out: Path) -> None:
        stages.train_synthetic(self.recipe, out, device=self.device)

    def _train(self, out: Path) -> None:
        self._train_methods(("fewlabel",), out, inputs=self._fingerprint("label"))

    def _baselines(self, out: Path) -> None:
        self._train_methods(self.recipe.student.compare, out, inputs=self._fingerprint("split"))

    def _train_methods(self, methods: tuple[Method, ...], out: Path, *, inputs: str) -> None:
        labels, start = self.folder.stage("label"), self.folder.stage("synthetic")
        for method in methods:
            pool = stages.method_pool(method, self.recipe, self.dataset, self.split, labels)
            held_out = scoring.validation_pairs(self.dataset, self.split)
            stages.train_method(method, self.recipe, pool, held_out, start, out, inputs=inputs, device=self.device)

    def _eval(self, out: Path) -> None:
        scoring.evaluate(self.recipe, self.dataset, self.split, self.folder, out)

    def _report(self, out: Path) -> None:
        write_report(collect(self.recipe, self.folder, self.dataset, self.split), out / "report.html")


def check_folder(root: Path, *, keep_going: bool = False, out: Path | None = None) -> None:
    """Check a data set's folder on its own and print what is there.

    Args:
        root: The folder.
        keep_going: List unusable images instead of stopping at the first.
        out: Folder for check.json and rejected.csv; without one, what was rejected is printed.

    Raises:
        DataError: An image or mask cannot be used, and `keep_going` is off.
    """
    report = stages.check(root, out, keep_going=keep_going, fraction=None)
    print("\n".join(report.lines()))
    if out is None:
        for problem in report.rejected:
            print(f"- {problem.id}: {problem.reason}")
