"""A run: the stages of one recipe in order, each done once, whatever the method."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from fewlabel.core.errors import FewlabelError, RunError
from fewlabel.core.files import read_json, sha256_json, write_text
from fewlabel.data.dataset import Dataset
from fewlabel.data.inventory import Inventory, difference, take
from fewlabel.data.split import Split
from fewlabel.pipeline import checking
from fewlabel.pipeline.folder import Plan, RunFolder, Stage
from fewlabel.pipeline.inputs import layouts, open_dataset
from fewlabel.recipe import CommonRecipe, dump_recipe
from fewlabel.training import ranks

Work = tuple[Callable[[], dict[str, Any]], Callable[[Path], None]]
"""Of a stage: what gives the settings and inputs that it reads itself, by name, and what it does in its folder."""


@dataclass(frozen=True)
class StagedRun:
    """One recipe in one folder.

    Attributes:
        recipe: What to do.
        path: The run folder; made when missing.
        keep_going: Quarantine unusable images instead of stopping at the first.
        redo: Replace stages that other settings made.
        device: Where the networks train and label; does not count as a setting.
    """

    plan: ClassVar[Plan]
    together: ClassVar[bool] = False
    """Whether several processes may train its networks together."""

    recipe: CommonRecipe
    path: Path
    keep_going: bool = False
    redo: bool = False
    device: str = "cpu"
    _files: dict[Path, Inventory] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.path, self.plan)

    @property
    @abstractmethod
    def every_label(self) -> str:
        """The recipe's key that asks for a method which needs a label of every training image; empty: none does."""

    @abstractmethod
    def work(self) -> dict[Stage, Work]:
        """The stages after the split."""

    @abstractmethod
    def said(self, stage: Stage, last: bool) -> str:
        """What is printed after a stage, done now or before, that is or is not the last one wanted; may be empty."""

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            RunError: The recipe's method has no such stage.
        """
        for stage in self.plan.stages:
            if stage == name:
                return stage
        raise RunError(
            f"A recipe of method {self.recipe.method!r} has no stage {name!r}; its stages are"
            f" {', '.join(self.plan.stages)}."
        )

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
        if ranks.size() > 1 and not self.together:
            raise RunError(
                f"A recipe of method {self.recipe.method!r} trains in one process, but {ranks.size()} were started;"
                " start it without accelerate."
            )
        there_before = ranks.first_only(self.path.exists)
        try:
            for stage in self.plan.until(until):
                self._do(stage)
                if ranks.is_first() and (text := self.said(stage, stage == until)):
                    print(text, flush=True)
        except FewlabelError:
            if not there_before and ranks.is_first():
                with suppress(OSError):  # not there, or no longer empty
                    self.path.rmdir()
            raise

    def _do(self, stage: Stage) -> None:
        """Do one stage, whose needs are done, and say so."""
        inputs, action = self._work()[stage]
        settings = ranks.first_only(inputs)  # hashes the data's files: once is enough, and all go by one answer
        fingerprint = self.folder.fingerprint(stage, settings)
        values = self.recipe.model_dump(mode="json")
        done_now = self.folder.run_stage(stage, fingerprint, action, settings=settings, recipe=values, redo=self.redo)
        if not ranks.is_first():
            return
        if done_now:
            write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
        for path in list(self._files):
            self._files.pop(path).save(path)  # only now: a run whose first stage fails leaves nothing behind
        seconds = (self.folder.manifest(stage) or {}).get("seconds", 0)
        print(f"{stage}: {f'done in {seconds:.0f} s' if done_now else 'already done'}", flush=True)

    def settings(self, *sections: str) -> dict[str, Any]:
        """Sections of the recipe as JSON values."""
        whole = self.recipe.model_dump(mode="json")
        return {section: whole[section] for section in sections}

    def _work(self) -> dict[Stage, Work]:
        """All stages."""

        def check_inputs() -> dict[str, Any]:
            section = self.settings("data")["data"]
            data = {key: value for key, value in section.items() if key not in ("root", "unlabelled")}
            data["unlabelled"] = "none" if self.recipe.data.unlabelled is None else "given"
            masks_needed = self.recipe.split.fraction is not None
            return {"data": data, "files of the data": self._data_hash(), "masks needed": masks_needed}

        def split_inputs() -> dict[str, Any]:
            return self.settings("split") | {"all-labels compared": bool(self.every_label)}

        return {"check": (check_inputs, self._check), "split": (split_inputs, self._split), **self.work()}

    def _check(self, out: Path) -> None:
        data, fraction = self.recipe.data, self.recipe.split.fraction
        print("\n".join(layouts(data)))
        print("\n".join(checking.check(data, out, keep_going=self.keep_going, fraction=fraction).lines()))

    def _split(self, out: Path) -> None:
        checking.split(self.recipe, self.dataset, self._checked, out, every_label=self.every_label)

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
            if changed:
                print(f"files of {root} have changed: {changed}", flush=True)
            if known is None or found.files != known.files:
                self._files[path] = found
            hashes.append(found.sha256)
        return sha256_json(hashes)

    def fingerprint(self, stage: Stage) -> str:
        """Fingerprint of a finished stage."""
        manifest = self.folder.manifest(stage)
        if manifest is None:
            raise RunError(f"Stage {stage!r} of {self.path} is not done; run it first.")
        return str(manifest["fingerprint"])
