"""The run of instance segmentation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewlabel.pipeline import instance_stages as stages
from fewlabel.pipeline.folder import S4M, Stage
from fewlabel.pipeline.inputs import checkpoint_hash
from fewlabel.pipeline.instance_collect import collect
from fewlabel.pipeline.instance_scoring import evaluate, score_table
from fewlabel.pipeline.staged import StagedRun, Work
from fewlabel.recipe import InstanceRecipe
from fewlabel.report.instances import write as write_report
from fewlabel.s4m.network import NetworkConfig
from fewlabel.s4m.start import network_folder

METHOD = "fewlabel"


@dataclass(frozen=True)
class InstanceRun(StagedRun):
    """A run of the s4m recipe."""

    plan = S4M
    together = True

    recipe: InstanceRecipe

    @property
    def every_label(self) -> str:
        """Where `all-labels` is asked for."""
        return "compare" if "all-labels" in self.recipe.compare else ""

    def said(self, stage: Stage, last: bool) -> str:
        """That nothing was asked for; at the end the scores, and where the report is."""
        if last and stage == "smaller" and self.recipe.smaller is None:
            return "smaller: the recipe names no smaller network, so none was trained; set smaller.name, such as tiny"
        if not last or stage not in ("eval", "report"):
            return ""
        table = score_table(self.folder.stage("eval"))
        page = self.folder.stage("report") / "report.html"
        return f"{table}\nreport: {page.resolve()}" if stage == "report" else table

    def work(self) -> dict[Stage, Work]:
        """What each stage reads and does."""
        recipe = self.recipe

        def common() -> dict[str, Any]:
            return self.settings("seed", "network", "crops", "eval") | {
                "files of the start": _start_hash(recipe.network)
            }

        def sam(asked: bool) -> dict[str, Any]:
            return {"files of the SAM": checkpoint_hash(recipe.sam) if asked else "none"}

        def teach_inputs() -> dict[str, Any]:
            cached = {"SAM's word kept": recipe.cache is not None}  # rounded; where it is kept does not matter
            return common() | self.settings("teach") | cached | sam(recipe.teach.similarity_weight > 0)

        def train_inputs() -> dict[str, Any]:
            return common() | self.settings("student") | sam(recipe.refines)

        def smaller_inputs() -> dict[str, Any]:
            start = "none" if recipe.smaller is None else _start_hash(recipe.smaller)
            return train_inputs() | self.settings("smaller") | {"files of the smaller start": start}

        return {
            "teach": (teach_inputs, self._teach),
            "train": (train_inputs, self._train),
            "smaller": (smaller_inputs, self._smaller),
            "baselines": (lambda: common() | self.settings("teach", "student", "compare"), self._baselines),
            "eval": (lambda: self.settings("eval"), self._eval),
            "report": (lambda: self.settings("name"), self._report),
        }

    def _teach(self, out: Path) -> None:
        inputs = self.fingerprint("split")
        stages.teach_teacher(self.recipe, self.dataset, self.split, out, inputs=inputs, device=self.device)

    def _train_one(self, method: Any, guiding: Path | None, out: Path, inputs: str) -> None:
        stages.train_method(
            method, self.recipe, self.dataset, self.split, guiding, out, inputs=inputs, device=self.device
        )

    def _train(self, out: Path) -> None:
        self._train_one(METHOD, self.folder.stage("teach"), out, self.fingerprint("teach"))

    def _smaller(self, out: Path) -> None:
        if self.recipe.smaller is not None:
            self._train_one("smaller", self.folder.stage("train") / METHOD, out, self.fingerprint("train"))

    def _baselines(self, out: Path) -> None:
        inputs = self.fingerprint("split")
        for method in self.recipe.compare:
            guiding = None
            if method == "guided-distillation":
                guiding = out / stages.PLAIN_TEACHER
                stages.teach_teacher(
                    self.recipe, self.dataset, self.split, guiding, inputs=inputs, device=self.device, plain=True
                )
            self._train_one(method, guiding, out, inputs)

    def _eval(self, out: Path) -> None:
        evaluate(self.recipe, self.dataset, self.split, self.folder, out, device=self.device)

    def _report(self, out: Path) -> None:
        write_report(collect(self.recipe, self.folder, self.dataset, self.split), out / "report.html")


def _start_hash(network: NetworkConfig) -> str:
    """Hash of the weights that a network begins with; a hub id itself, `none` from scratch.

    A folder keeps its name when another training fills it.
    """
    if network.start is not None:
        return checkpoint_hash(str(network_folder(Path(network.start)) or network.start))
    return "none" if network.backbone_weights is None else checkpoint_hash(network.backbone_weights)
